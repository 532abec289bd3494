"""The quality grid as a picture: SCONE by tokens trained on, beside its rivals, and by the size of what it adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.quality_report import has_usual_shape, is_usual

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "quality.png"
LABELS = {
    "scone": "SCONE",
    "hashed": "hashed\ntable of as\nmany rows",
    "equal": "plain,\nequal\ntraining\nFLOPs",
    "wide": "plain,\n2x FLOPs,\nwider",
    "deep": "plain,\n2x FLOPs,\ndeeper",
}


def picture(result: Mapping, path: Path) -> None:
    """Three panels as a PNG; differences to the plain decoder in held-out nats, bars are deviations over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = result["differences"]
    figure, (growth, rivals, sizes) = pyplot.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    _growth(growth, curves)
    _rivals(rivals, curves)
    _sizes(sizes, curves)
    for axes in (growth, rivals, sizes):
        axes.axhline(0, color="0.5", linewidth=1)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _growth(axes: Any, curves: Sequence[Mapping]) -> None:
    for curve in (c for c in curves if c["model"] == "scone" and has_usual_shape(c)):
        _line(axes, curve["difference"], f"{curve['text']} {curve['tokenizer']:,}, A_f at rate {curve['fgram_lr']:g}")
    axes.set(
        xscale="log",
        xlabel="tokens trained on",
        ylabel="held-out nats, SCONE - plain (lower is better)",
        title="By tokens trained on",
    )


def _rivals(axes: Any, curves: Sequence[Mapping]) -> None:
    tokens, tokenizer = _most_compared(curves)
    shown = [c for c in curves if c["tokenizer"] == tokenizer and str(tokens) in c["difference"] and is_usual(c)]
    texts = sorted({c["text"] for c in shown})
    models = [m for m in LABELS if any(c["model"] == m for c in shown)]
    for number, text in enumerate(texts):
        for place, model in enumerate(models):
            for c in shown:
                if (c["text"], c["model"]) == (text, model):
                    gain = c["difference"][str(tokens)]
                    axes.bar(
                        place + 0.38 * (number - (len(texts) - 1) / 2), gain["mean"], 0.36, yerr=gain["deviation"],
                        color=f"C{number}", capsize=3, label=text if place == 0 else None,
                    )  # fmt: skip
    axes.set_xticks(range(len(models)), [LABELS[model] for model in models], fontsize=8)
    axes.set(ylabel="held-out nats, model - plain", title=f"Rivals after {tokens:,} tokens, vocabulary {tokenizer:,}")


def _sizes(axes: Any, curves: Sequence[Mapping]) -> None:
    """By number of f-grams, a line for each f-gram model and number of tokens with more than one point."""
    lines: dict[tuple, dict[int, Mapping]] = {}
    for c in curves:
        if c["model"] == "scone" and has_usual_shape({**c, "num_fgrams": 0, "fgram_layers": 0}):
            for tokens, gain in c["difference"].items():
                kind = (c["text"], c["tokenizer"], c["fgram_layers"], int(tokens), c["fgram_lr"])
                lines.setdefault(kind, {})[c["num_fgrams"]] = gain
    for (text, tokenizer, layers, tokens, rate), points in sorted(lines.items()):
        if len(points) > 1:
            _line(
                axes,
                dict(sorted(points.items())),
                f"{text} {tokenizer:,}, A_f {layers} layer, rate {rate:g}, {tokens:,} tokens",
            )
    axes.set(
        xscale="log",
        xlabel="f-grams",
        ylabel="held-out nats, SCONE - plain",
        title="By the number of f-grams",
    )


def _line(axes: Any, points: Mapping, label: str) -> None:
    axes.errorbar(
        [int(at) for at in points],
        [point["mean"] for point in points.values()],
        [point["deviation"] or 0 for point in points.values()],
        marker="o", capsize=3, label=label,
    )  # fmt: skip


def _most_compared(curves: Sequence[Mapping]) -> tuple[int, int]:
    """Tokens and tokenizer at which the most models were measured."""
    counts = Counter((int(tokens), c["tokenizer"]) for c in curves for tokens in c["difference"])
    return max(counts, key=lambda point: (counts[point], point))
