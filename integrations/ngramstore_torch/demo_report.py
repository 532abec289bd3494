"""The demo as one picture: loss curves, matched lengths, bytes against perplexity, cache size against hit rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import MissingExtra

_SMOOTH = 20


def plot_demo(result: dict[str, Any], path: Path) -> None:
    """Four panels from what the demo's report.json holds, as a PNG."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "torch") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((losses, lengths), (sizes, hits)) = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for name, values in result["losses"].items():
        window = min(_SMOOTH, len(values))
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        losses.plot(np.arange(window, len(values) + 1), smooth, label=name)
    losses.set(
        xlabel="step",
        ylabel="training loss, nats a token",
        title=f"Same decoder, same tokens (mean of {_SMOOTH} steps)",
    )
    losses.legend()

    held_out = result["matched"]["held_out"]
    names = [int(n) for n in held_out["by_length"]]
    shares = [100 * count / max(1, held_out["num_tokens"]) for count in held_out["by_length"].values()]
    lengths.bar([str(n) if n else "none" for n in names], shares)
    lengths.set(
        xlabel="longest f-gram ending at a token",
        ylabel="% of held-out tokens",
        title="How much text the f-grams match",
    )

    perplexity = result["perplexity"]
    for label, key in (("plain decoder", "plain"), ("SCONE, A_f live", "scone_live")):
        sizes.axhline(perplexity[key], linestyle="--", color="0.5")
        sizes.annotate(label, (0.02, perplexity[key]), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    for codec, num_bytes in result["store_bytes"].items():
        sizes.plot(num_bytes / 1e6, perplexity[f"store_{codec}"], "o", label=f"served, {codec}")
    sizes.set(
        xlabel="store on disk, MB", ylabel="held-out perplexity", title="Bytes against perplexity", xlim=(0, None)
    )
    sizes.legend(loc="center right")

    rates = {float(share): rate for share, rate in result["hit_rate_by_cache_share"].items()}
    hits.plot([100 * share for share in rates], [100 * rate for rate in rates.values()], "o-")
    hits.set(
        xlabel="rows the cache holds, % of the store", ylabel="hit rate, %", title="LRU cache over held-out text, cold start",
        xscale="log", ylim=(0, 100),
    )  # fmt: skip
    figure.suptitle(
        f"SCONE served from disk: {result['gain_nats']:.3f} nats better than the plain decoder ({result['preset']} preset)"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
