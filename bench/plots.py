"""The plots of docs/results.md, drawn from the JSON files: one function a plot, each left out where its numbers are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

from bench import drawing, saved
from bench.saved import Found

IMAGES = Path(__file__).parent.parent / "docs" / "images"
_READ = "Dot: median. Line: all rounds. Blue: ngramstore. Hollow diamonds are told the row numbers."
_FLOORS = ("ngramstore", "ngramstore_resident", "floor", "floor_ahead")
Cases = dict[tuple[str, str], Found]


def names(folder: Path = saved.RESULTS) -> list[tuple[str, str]]:
    """(file name, caption) of every plot whose numbers are there."""
    cases = saved.cases(folder)
    return [(name, caption) for name, (caption, needs, _) in PLOTS.items() if all(need in cases for need in needs)]


def draw_all(folder: Path = saved.RESULTS, images: Path = IMAGES) -> list[Path]:
    """Write every plot whose numbers are there; the same numbers give the same bytes."""
    pyplot = drawing.pyplot()
    cases = saved.cases(folder)
    written = []
    for name, _ in names(folder):
        with pyplot.rc_context(drawing.STYLE):
            figure = PLOTS[name][2](cases, pyplot)
            drawing.save(figure, images / name)
            pyplot.close(figure)
        written.append(images / name)
    return written


def _warm(cases: Cases, pyplot: Any) -> Any:
    """Every peer, and below, from a run of their own, the floors: what a gather costs that needs no search."""
    metric = "us_per_key@1024"
    warm, floors = cases["store", "warm"], cases.get(("store", "warm_floors"))
    peers = _sorted(warm, metric)
    bounds = [s for s in _sorted(floors, metric) if s in _FLOORS] if floors else []
    heights = [len(peers), len(bounds)] if bounds else [len(peers)]
    figure, axes = pyplot.subplots(
        len(heights), 1, figsize=(7.5, 0.25 * sum(heights) + 1.7), sharex=True, height_ratios=heights,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    panels = [peers, bounds][: len(heights)]
    for axis, found, subjects in zip(axes[:, 0], (warm, floors), panels, strict=False):
        for place, subject in enumerate(subjects):
            drawing.dot(axis, place, found, subject, metric)
    drawing.finish_dots(axes[:, 0], panels, "µs per key (log scale)")
    note = f"int8 rows of 1,024 values. {_READ}"
    if bounds:
        axes[1, 0].set_title("Beside both floors, in a separate run", fontsize=9)
        note += "\nfloor: a plain gather. floor_ahead: the same gather with ngramstore's prefetching kernel."
    drawing.heading(figure, "Warm look-ups, 1,024 keys per call: time per key (lower is better)", note)
    return figure


def _batch(cases: Cases, pyplot: Any) -> Any:
    found = cases["store", "warm"]
    sizes = [size for size in (1, 64, 1024, 8192) if any(found.has(s, f"us_per_key@{size}") for s in found.subjects)]
    shown = ("ngramstore", "dict", "memmap_numba", "lmdb", "rocks_tuned", "redis", "floor")
    figure, axis = pyplot.subplots(figsize=(7.5, 4.4), layout="constrained")
    _label(axis, _lines(axis, found, [s for s in shown if s in found.subjects], sizes, "us_per_key@{}"))
    axis.set(xlabel="keys per call (log scale)", ylabel="µs per key (log scale)")
    axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
    note = "int8 rows of 1,024 values; medians. floor is told the row numbers. The tables below have the other peers."
    drawing.heading(figure, "Warm look-ups by batch size: time per key (lower is better)", note)
    return figure


def _latency(cases: Cases, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(8.5, 4.2), sharey=True, layout="constrained")
    titles = ("rows in memory", "rows on disk, cold")
    ends = []
    for axis, name, title in zip(axes, ("latency_ram", "latency_disk"), titles, strict=True):
        found = cases["paper", name]
        subjects = [s for s in found.subjects if s != "ngramstore_resident"]
        ends.append(_lines(axis, found, subjects, (1, 2, 4, 8, 16), "us@{}", "p99_us@{}"))
        axis.set(title=title, xlabel="tokens per call (log scale)")
        axis.set_xticks((1, 2, 4, 8, 16), labels=("1", "2", "4", "8", "16"))
    for axis, found in zip(axes, ends, strict=True):  # both have drawn, so the scale they share is final
        _label(axis, found)
    axes[0].set_ylabel("µs per call (log scale)")
    drawing.heading(
        figure, "Longest match, K = 5: time per call (lower is better)", "Thick: median. Thin, dashed: p99."
    )
    return figure


def _cold(cases: Cases, pyplot: Any) -> Any:
    cold, warm = cases["store", "cold_all"].sound(), cases["store", "warm"]
    subjects = _sorted(cold, "us_per_row")
    figure, axis = pyplot.subplots(figsize=(7.5, 0.32 * len(subjects) + 1.5), layout="constrained")
    for place, subject in enumerate(subjects):
        drawing.dot(axis, place, cold, subject, "us_per_row")
        if warm.has(subject, "us_per_key@1024"):
            drawing.dot(axis, place, warm, subject, "us_per_key@1024", is_hollow=True)
    drawing.finish_dots([axis], [subjects], "µs per row (log scale)")
    drawing.heading(
        figure,
        "1,024 random rows in one call, cold and warm: time per row (lower is better)",
        "Filled: all pages dropped, what opening reads is warm. Hollow: everything in memory (the warm runs). Line: all rounds. Blue: ngramstore.\n"
        "Diamonds read the same bytes from a flat file and are told the row numbers.",
    )
    return figure


def _disk(cases: Cases, pyplot: Any) -> Any:
    found = cases["store", "disk"]
    kinds = list(dict.fromkeys(subject.partition(" ")[2] for subject in found.subjects))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(8.5, 2.9), layout="constrained")
    for axis, kind in zip(axes, kinds, strict=True):
        subjects = [s for s in found.subjects if s.endswith(f" {kind}")]
        raw = found.case["subjects"][subjects[0]]["facts"]["row_bytes"]
        for place, subject in enumerate(subjects):
            value = found.value(subject, "bytes_per_key")
            axis.bar(place, value, 0.65, color=drawing.color_of(subject))
            axis.text(place, raw / 12, f"{value:,.0f}", ha="center", va="center", fontsize=8.5, color="white")
        axis.axhline(raw, color="black", linewidth=1, linestyle=":")
        labels = [s.split(" ")[0].replace("ngramstore_", "with ") for s in subjects]
        axis.set_xticks(range(len(subjects)), labels=labels, fontsize=8)
        axis.set_title(kind.replace(" D=", ", D = "))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0].set_ylabel("bytes per key")
    note = "Dotted: the encoded row alone. Blue: ngramstore, plain and with zstd; index and tokens are in it."
    drawing.heading(figure, "Disk: bytes per key (lower is better)", note)
    return figure


def _traces(cases: Cases, pyplot: Any) -> Any:
    found = cases["store", "traces"]
    metrics = found.case["headline"]
    subjects = _sorted(found, metrics[0])
    rows = -(-len(metrics) // 3)
    figure, axes = pyplot.subplots(
        rows, 3, figsize=(9, rows * (0.2 * len(subjects) + 0.6) + 0.7), sharey=True, sharex=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for place, subject in enumerate(subjects):
            if found.has(subject, metric):
                drawing.dot(axis, place, found, subject, metric)
        axis.set_title(metric.partition("@")[2])
    drawing.finish_dots(list(axes.flat), [subjects] * axes.size, "µs per key (log scale)")
    drawing.heading(figure, "Warm look-ups by trace, 1,024 keys per call: time per key (lower is better)", _READ)
    return figure


def _sorted(found: Found, metric: str) -> list[str]:
    """Subjects that have the metric, the fastest first."""
    return sorted((s for s in found.subjects if found.has(s, metric)), key=lambda s: found.value(s, metric))


def _lines(
    axis: Any, found: Found, subjects: Sequence[str], sizes: Sequence[int], metric: str, tail: str | None = None
) -> dict[str, float]:
    """One line a subject that has all sizes: its name -> where it ends. tail: a second, thin line."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()
    ends = {}
    for subject in subjects:
        if not all(found.has(subject, metric.format(size)) for size in sizes):
            continue
        values = [found.value(subject, metric.format(size)) for size in sizes]
        is_ours, is_bound = drawing.is_ours(subject), subject.startswith(drawing.BOUNDS)
        color = drawing.line_color_of(subject)
        axis.plot(
            sizes, values, color=color, linewidth=2.8 if is_ours else 1.5, linestyle=":" if is_bound else "-",
            marker="o", markersize=5 if is_ours else 3.5, zorder=3 if is_ours else 2,
        )  # fmt: skip
        if tail:
            tails = [found.value(subject, tail.format(size)) for size in sizes]
            axis.plot(sizes, tails, color=color, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        ends[subject] = values[-1]
    axis.set_xlim(sizes[0] * 0.85, sizes[-1] * 1.1)
    axis.grid(axis="y")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    return ends


def _label(axis: Any, ends: dict[str, float]) -> None:
    """The name of each line at its right end; names that would overlap are moved apart."""
    low, high = axis.get_ylim()
    subjects = sorted(ends, key=lambda subject: ends[subject])
    places = drawing.apart([log(ends[subject]) for subject in subjects], 0.05 * log(high / low))
    for subject, place in zip(subjects, places, strict=True):
        axis.annotate(
            subject, (1, exp(place)), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            color=drawing.line_color_of(subject), va="center", fontsize=8.5,
            fontweight="bold" if drawing.is_ours(subject) else "normal",
        )  # fmt: skip


PLOTS: dict[str, tuple[str, tuple[tuple[str, str], ...], Callable[[Cases, Any], Any]]] = {
    "warm.png": ("Warm look-ups at 1,024 keys per call: time per key, and the floors", (("store", "warm"),), _warm),
    "batch.png": ("Warm look-ups by batch size: time per key", (("store", "warm"),), _batch),
    "traces.png": ("Every peer on every trace: time per key", (("store", "traces"),), _traces),
    "cold.png": ("1,024 random rows, cold and warm: time per row", (("store", "cold_all"), ("store", "warm")), _cold),
    "disk.png": ("Bytes on disk per key", (("store", "disk"),), _disk),
    "latency.png": (
        "Longest match by tokens per call: median and p99",
        (("paper", "latency_ram"), ("paper", "latency_disk")),
        _latency,
    ),
}
"""File -> caption, the cases it needs, how it is drawn."""
