"""The demo as one picture: loss curves, matched lengths, bytes against perplexity, cache size against hit rate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import MissingExtra

_SMOOTH = 20
_NAMES = {"plain": "plain decoder", "scone": "SCONE"}
_COLORS = {"plain": "0.55", "scone": "C0"}


def plot_demo(result: dict[str, Any], path: Path) -> None:
    """Four panels from what the demo's report.json holds, as a PNG."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "torch") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axes, draw in zip(panels.flat, (_losses, _lengths, _sizes, _hits), strict=True):
        draw(axes, result)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"SCONE served from disk: {verdict(result['gain_nats'])} than the plain decoder ({result['preset']} preset)"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def verdict(gain_nats: float) -> str:
    """How far ahead SCONE is, in words that also fit where it is behind."""
    return f"{abs(gain_nats):.3f} nats {'better' if gain_nats >= 0 else 'worse'}"


def _losses(axes: Any, result: dict[str, Any]) -> None:
    """Training loss by step."""
    for name, values in result["losses"].items():
        window = min(_SMOOTH, len(values))
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        label = _NAMES.get(name, name)
        axes.plot(np.arange(window, len(values) + 1), smooth, label=label, color=_COLORS.get(name))
    axes.set(
        xlabel="step",
        ylabel="training loss, nats a token",
        title=f"Same decoder, same tokens (mean of {_SMOOTH} steps)",
    )
    axes.legend()


def _lengths(axes: Any, result: dict[str, Any]) -> None:
    """How many held-out tokens an f-gram of each length ends at."""
    held_out = result["matched"]["held_out"]
    names = [int(n) for n in held_out["by_length"]]
    shares = [100 * count / max(1, held_out["num_tokens"]) for count in held_out["by_length"].values()]
    bars = axes.bar([f"{n} tokens" if n else "none" for n in names], shares, color=_COLORS["scone"])
    bars[0].set_color(_COLORS["plain"])
    axes.bar_label(bars, fmt="%.0f %%", padding=2)
    axes.set(
        xlabel="longest f-gram ending at a token",
        ylabel="% of held-out tokens",
        title="How much text the f-grams match",
        ylim=(0, 1.12 * max(shares)),
    )


def _sizes(axes: Any, result: dict[str, Any]) -> None:
    """Bytes of each store against held-out perplexity."""
    perplexity, codecs = result["perplexity"], result["store_bytes"]
    for label, key in (("plain decoder", "plain"), ("SCONE, A_f live", "scone_live")):
        axes.axhline(perplexity[key], linestyle="--", color="0.5")
        axes.annotate(
            f"{label}: {perplexity[key]:.2f}", (0.02, perplexity[key]), xycoords=("axes fraction", "data"), va="bottom"
        )
    for codec, num_bytes in codecs.items():
        at = num_bytes / 1e6, perplexity[f"store_{codec}"]
        axes.plot(*at, "o", color=_COLORS["scone"])
        axes.annotate(
            f"{codec}: {at[1]:.2f}", at, xytext=(0, 8), textcoords="offset points", ha="center", color=_COLORS["scone"]
        )
    low, high = min(perplexity.values()), max(perplexity.values())
    margin = max(0.1 * (high - low), 0.005 * high)
    axes.set(
        xlabel="store on disk, MB",
        ylabel="held-out perplexity",
        title="Bytes against perplexity: served from a store",
        xlim=(0, 1.15 * max(codecs.values()) / 1e6),
        ylim=(low - margin, high + 1.5 * margin),
    )


def _hits(axes: Any, result: dict[str, Any]) -> None:
    """Size of the row cache against its hit rate."""
    rates = {float(share): rate for share, rate in result["hit_rate_by_cache_share"].items()}
    axes.plot([100 * share for share in rates], [100 * rate for rate in rates.values()], "o-", color=_COLORS["scone"])
    for share, rate in rates.items():
        axes.annotate(
            f"{rate:.0%}",
            (100 * share, 100 * rate),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set(
        xlabel="rows the cache holds, % of the store", ylabel="hit rate, %", title="LRU cache over held-out text, cold start",
        xscale="log", xlim=(70 * min(rates), 150), ylim=(0, 100),
    )  # fmt: skip
    ticks = [100 * share for share in rates]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


if __name__ == "__main__":  # redraw a report: python -m ngramstore_torch.experiment.demo_report report.json report.png
    plot_demo(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
