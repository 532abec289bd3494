"""The plot of `python -m bench codecs`: what perplexity costs against bits per value on disk, from the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import drawing

_TARGET_BITS, _TARGET_PERCENT = 4.5, 0.2
_ROUNDED = " rounded by sensitivity"


def plot(result: dict, path: Path) -> None:
    """Means over the tables with their standard errors; bits as stored or with zstd, what is less, at the tables' row width.

    Codecs of the store are blue (rounded by sensitivity: orange), other ways grey. The cost has a linear axis: what costs
    nothing lies on zero, with its error, and the differences between the others keep their size.
    """
    pyplot = drawing.pyplot()
    with pyplot.rc_context(drawing.STYLE):
        figure, axis = pyplot.subplots(figsize=(8, 4.4), layout="constrained")
        _target(axis)
        for line in result["summary"]:
            _point(axis, line)
        axis.axhline(0, color="#888888", linewidth=0.8, zorder=1)
        axis.set(
            xscale="log", xlim=(2.9, 40), xlabel="bits per value on disk (log scale)", ylabel="perplexity above f32, %"
        )
        ticks = [3, 4, 5, 6, 8, 16, 32]
        axis.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(axis="y")
        drawing.heading(
            figure,
            "What a codec costs: held-out perplexity above f32 rows (left and down is better)",
            f"Rows of {result['settings']['dim']} values, stored with zstd where that is smaller. Mean over "
            f"{max(line['tables'] for line in result['summary'])} trained tables; bars: standard error.\n"
            f"Blue: codecs of the store. Orange: int4 rounded by sensitivity. Shaded: at most {_TARGET_PERCENT:g} % "
            f"in at most {_TARGET_BITS:g} bits.",
        )
        drawing.save(figure, path)
        pyplot.close(figure)


def _target(axis: Any) -> None:
    axis.fill_between([1, _TARGET_BITS], 0, _TARGET_PERCENT, color="#e9eef2", zorder=0, linewidth=0)


def _point(axis: Any, line: dict) -> None:
    bits, cost = min(line["raw_bits"], line["zstd_bits"]), line["perplexity_percent"]
    is_rounded = line["family"].endswith(_ROUNDED)
    color = drawing.PEER if not line["is_codec"] else drawing.SECOND if is_rounded else drawing.OURS
    axis.errorbar(
        bits, cost, line["standard_error_percent"] or 0, color=color, capsize=3, marker="D" if is_rounded else "o",
        markersize=6, zorder=3,
    )  # fmt: skip
    name = line["family"].removeprefix("codec ").removesuffix(_ROUNDED)
    if line["name"].startswith("group"):
        is_narrow = bits < _TARGET_BITS - 0.1
        name, offset, side = f"{name}, {line['name']}", (-9 if is_narrow else 9, 0), "right" if is_narrow else "left"
    else:
        offset, side = (0, 12), "center"
    axis.annotate(
        name, (bits, cost), xytext=offset, textcoords="offset points", ha=side, va="center", fontsize=8.5, color=color
    )
