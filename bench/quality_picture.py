"""The quality grid as a picture: SCONE by tokens trained on, beside its rivals, and by the size of what it adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import drawing
from bench.quality_report import FGRAM_LR, has_usual_shape, is_usual

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "quality.png"
LABELS = {
    "scone": "SCONE",
    "hashed": "hashed tables,\nas many rows",
    "equal": "plain, equal\ntraining FLOPs",
    "wide": "plain, about\n2x FLOPs, wider",
    "deep": "plain, about\n2x FLOPs, deeper",
}
_NATS = "held-out nats above plain"


def picture(result: Mapping, path: Path) -> None:
    """Three panels as a PNG; differences to the plain decoder in held-out nats, bars are deviations over seeds."""
    pyplot = drawing.pyplot()
    curves = result["differences"]
    with pyplot.rc_context(drawing.STYLE):
        figure = pyplot.figure(figsize=(9, 7.2), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        _growth(figure.add_subplot(grid[0, :]), curves)
        _rivals(figure.add_subplot(grid[1, 0]), curves)
        _sizes(figure.add_subplot(grid[1, 1]), curves)
        drawing.heading(
            figure,
            "SCONE and its rivals: held-out loss less the plain decoder's, in nats (below zero is better)",
            "Mean of the seeds; bars: standard deviation, none for a single seed. Blue: code. Orange: English. Grey line: the plain "
            "decoder.\nSolid: A_f learns at a tenth of the decoder's rate. Dashed: at the decoder's rate.",
        )
        drawing.save(figure, path)
        pyplot.close(figure)


def _growth(axes: Any, curves: Sequence[Mapping]) -> None:
    """A line for each text, vocabulary and rate of A_f, named at its last point."""
    largest = max((c["tokenizer"] for c in curves), default=0)
    ends = []
    for c in (c for c in curves if c["model"] == "scone" and has_usual_shape(c)):
        style = {
            "color": _color(c["text"]),
            "linestyle": "-" if c["fgram_lr"] == FGRAM_LR else "--",
            "marker": "o" if c["tokenizer"] == largest else "s",
        }
        _line(axes, c["difference"], **style)
        last = max(c["difference"], key=int)
        label = f"{c['text']}, vocabulary {c['tokenizer']:,}, A_f rate {c['fgram_lr']:g}"
        ends.append((c["difference"][last]["mean"], int(last), label, style["color"]))
    _zero(axes)
    longest = max((tokens for _, tokens, *_ in ends), default=0)
    for mean, tokens, label, color in ends:
        is_left = tokens < longest and color == drawing.SECOND  # English that ends early: no line runs on its left
        axes.annotate(
            label, (tokens, mean), xytext=(-8 if is_left else 8, 0), textcoords="offset points", va="center", fontsize=8,
            color=color, ha="right" if is_left else "left",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="tokens trained on (log scale)", ylabel=_NATS, title="By tokens trained on")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.4)
    _plain_numbers(axes, sorted({int(t) for c in curves if has_usual_shape(c) for t in c["difference"]}))


def _rivals(axes: Any, curves: Sequence[Mapping]) -> None:
    tokens, tokenizer = _most_compared(curves)
    shown = [c for c in curves if c["tokenizer"] == tokenizer and str(tokens) in c["difference"] and is_usual(c)]
    texts = sorted({c["text"] for c in shown})
    models = [m for m in LABELS if any(c["model"] == m for c in shown)]
    for c in shown:
        if c["model"] in models:
            gain = c["difference"][str(tokens)]
            shift = 0.24 * (texts.index(c["text"]) - (len(texts) - 1) / 2)
            axes.errorbar(
                gain["mean"], models.index(c["model"]) + shift, xerr=gain["deviation"] or 0, marker="o", markersize=6,
                capsize=3, color=_color(c["text"]),
            )  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=1)
    axes.set_yticks(range(len(models)), [LABELS[model] for model in models], fontsize=8)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set(xlabel=_NATS, title=f"Rivals, {tokens:,} tokens, vocabulary {tokenizer:,}")


def _sizes(axes: Any, curves: Sequence[Mapping]) -> None:
    """By number of f-grams, a line for each f-gram model and number of tokens with more than one point."""
    lines: dict[tuple, dict[int, Mapping]] = {}
    for c in curves:
        if c["model"] == "scone" and has_usual_shape({**c, "num_fgrams": 0, "fgram_layers": 0}):
            for tokens, gain in c["difference"].items():
                kind = (c["text"], c["tokenizer"], c["fgram_layers"], int(tokens), c["fgram_lr"])
                lines.setdefault(kind, {})[c["num_fgrams"]] = gain
    shown = {kind: dict(sorted(points.items())) for kind, points in sorted(lines.items()) if len(points) > 1}
    for kind, points in shown.items():
        text, tokenizer, layers, tokens, rate = kind
        _line(axes, points, color=_color(text), marker="o", linestyle="-" if rate == FGRAM_LR else "--")
        place = next(iter(points))
        axes.annotate(
            f"{text}, {tokens:,} tokens,\nvocabulary {tokenizer:,}, A_f of {layers} layer{'s' * (layers > 1)}, rate {rate:g}",
            (place, points[place]["mean"] + (points[place]["deviation"] or 0)), xytext=(0, 6), textcoords="offset points", fontsize=8, color=_color(text),
            ha="left" if place == min(min(points) for points in shown.values()) else "right",
        )  # fmt: skip
    _zero(axes)
    axes.set(xscale="log", xlabel="f-grams (log scale)", ylabel=_NATS, title="By number of f-grams")
    axes.margins(y=0.2)
    _plain_numbers(axes, sorted({int(at) for points in shown.values() for at in points}))


def _line(axes: Any, points: Mapping, **style: Any) -> None:
    axes.errorbar(
        [int(at) for at in points],
        [point["mean"] for point in points.values()],
        [point["deviation"] or 0 for point in points.values()],
        capsize=3, markersize=5, **style,
    )  # fmt: skip


def _zero(axes: Any) -> None:
    axes.axhline(0, color="#888888", linewidth=1)
    axes.grid(axis="y")


def _plain_numbers(axes: Any, at: Sequence[int]) -> None:
    axes.minorticks_off()
    axes.set_xticks(at, labels=[f"{number:,}" for number in at], fontsize=8)


def _color(text: str) -> str:
    return drawing.SECOND if text == "english" else drawing.OURS


def _most_compared(curves: Sequence[Mapping]) -> tuple[int, int]:
    """Tokens and tokenizer at which the most models were measured."""
    counts = Counter((int(tokens), c["tokenizer"]) for c in curves for tokens in c["difference"])
    return max(counts, key=lambda point: (counts[point], point))
