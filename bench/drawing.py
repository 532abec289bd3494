"""How all pictures of the bench look: colours that the colour-blind tell apart, dots with their spread, PNGs of few bytes.

Ours is the same blue everywhere. A logarithmic axis carries dots, never bars: a bar's length would depend on where the
axis begins. The background is opaque white, so that a picture reads the same on a light page and on a dark one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.saved import Found

OURS, PEER, BOUND = "#0072b2", "#5f6368", "#8a8f94"
SECOND = "#d55e00"
PEERS = {
    "dict": "#e69f00",
    "memmap": "#009e73",
    "memmap_numba": "#009e73",
    "lmdb": "#d55e00",
    "rocks_tuned": "#aa4488",
    "redis": "#333333",
}
"""Colours of the peers that are drawn as lines: Okabe and Ito's, which the colour-blind tell apart, the purple darker."""
BOUNDS = ("floor", "flat_")
"""Subjects that are told the row numbers begin so."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 130,
    "savefig.dpi": 130,
}


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """PNG of 64 colours: a quarter of the bytes, and no sign of it in plain dots and lines. The same figure gives the
    same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def heading(figure: Any, title: str, note: str) -> None:
    """What is measured and which way is better, in bold on top; how to read it, small at the foot."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#444444")


def is_ours(subject: str) -> bool:
    """ngramstore, in any of its settings."""
    return subject.startswith("ngramstore")


def color_of(subject: str) -> str:
    """Ours blue, bounds light grey, peers dark grey."""
    return OURS if is_ours(subject) else BOUND if subject.startswith(BOUNDS) else PEER


def line_color_of(subject: str) -> str:
    """As `color_of`, and a colour of its own for each peer that is drawn as a line."""
    return PEERS.get(subject, color_of(subject))


def dot(axis: Any, place: float, found: Found, subject: str, metric: str, *, is_hollow: bool = False) -> None:
    """The median as a dot with its number, all rounds as a line. Bounds are hollow diamonds."""
    values = found.rounds(subject, metric)
    median, color = found.value(subject, metric), color_of(subject)
    is_bound = subject.startswith(BOUNDS)
    axis.plot([min(values), max(values)], [place, place], color=color, linewidth=1.6, solid_capstyle="butt", zorder=2)
    axis.plot(
        median, place, "D" if is_bound else "o", color=color, markersize=5 if is_bound else 6,
        markerfacecolor="white" if is_bound or is_hollow else color, markeredgewidth=1.4, zorder=3,
    )  # fmt: skip
    axis.annotate(
        short(median), (max(values), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7.5,
        color=OURS if is_ours(subject) else "#333333",
    )  # fmt: skip


def finish_dots(axes: Sequence[Any], subjects: Sequence[Sequence[str]], label: str) -> None:
    """Panels of dots on one scale, one above or beside the other: names from the top down, ours in blue, room for the numbers."""
    for axis, names in zip(axes, subjects, strict=True):
        axis.set_xscale("log")
        axis.set_yticks(range(len(names)), labels=names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        for text in axis.get_yticklabels():
            if is_ours(text.get_text()):
                text.set(color=OURS, fontweight="bold")
        axis.grid(axis="x")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel(label)
        axis.label_outer()
    values = [value for axis in axes for line in axis.lines for value in line.get_xdata()]
    spread = max(values) / min(values)
    for axis in axes:
        axis.set_xlim(min(values) / spread**0.04, max(values) * spread**0.2)


def short(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places near the ascending values, at least `gap` from one another, moved as little as possible in the mean."""
    groups: list[list[float]] = []  # first place, number of members, sum of their values
    for value in values:
        groups.append([value, 1, value])
        while len(groups) > 1 and groups[-2][0] + groups[-2][1] * gap > groups[-1][0]:
            _, number, total = groups.pop()
            groups[-1][1] += number
            groups[-1][2] += total
            members = groups[-1][1]
            groups[-1][0] = groups[-1][2] / members - gap * (members - 1) / 2
    return [first + gap * i for first, number, _ in groups for i in range(int(number))]
