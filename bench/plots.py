"""The plots of docs/results.md, drawn from the JSON files: one function a plot, each left out where its numbers are missing.

Ours is blue, what is told the row numbers is hatched grey, peers are grey. Times have a log axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from bench import saved
from bench.saved import Found

IMAGES = Path(__file__).parent.parent / "docs" / "images"
_OURS, _PEER, _BOUND, _COLD = "#1f6fb4", "#9aa0a6", "#e3e5e8", "#c4622d"
_LINES = ("#d1495b", "#66a182", "#edae49", "#8d5a97", "#2e4057", "#b0a990", "#00798c", "#7d4f50", "#5b8c5a", "#444444")
_BOUNDS = ("floor", "flat_")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.dpi": 110,
    "savefig.dpi": 110,
}


def names(folder: Path = saved.RESULTS) -> list[tuple[str, str]]:
    """(file name, caption) of every plot whose numbers are there."""
    cases = saved.cases(folder)
    return [(name, caption) for name, (caption, needs, _) in PLOTS.items() if all(need in cases for need in needs)]


def draw_all(folder: Path = saved.RESULTS, images: Path = IMAGES) -> list[Path]:
    """Write every plot whose numbers are there; the same numbers give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = saved.cases(folder)
    written = []
    images.mkdir(parents=True, exist_ok=True)
    for name, _ in names(folder):
        with pyplot.rc_context(_STYLE):
            figure = PLOTS[name][2](cases, pyplot)
            _save(figure, images / name)
            pyplot.close(figure)
        written.append(images / name)
    return written


def _save(figure: Any, path: Path) -> None:
    """PNG of 64 colours: a quarter of the bytes, and no sign of it in plain bars and lines."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def _warm_bars(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    found = cases["store", "warm"]
    return _bars(pyplot, found, "us_per_key@1024", "µs a key", "Warm, 1,024 keys a call: 1,024 int8 values a row")


def _warm_lines(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    found = cases["store", "warm"]
    sizes = [size for size in (1, 64, 1024, 8192) if any(found.has(s, f"us_per_key@{size}") for s in found.subjects)]
    return _lines(pyplot, found, sizes, "us_per_key@{}", "keys a call", "µs a key", "Warm: time of a key by batch size")


def _paper_lines(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, name, title in zip(
        axes, ("latency_ram", "latency_disk"), ("rows in memory", "rows on disk, cold"), strict=True
    ):
        _draw_lines(axis, cases["paper", name], (1, 2, 4, 8, 16), "us@{}", _spread)
        axis.set(title=f"Longest match, K = 5: {title}", xlabel="tokens a call")
        axis.set_xticks((1, 2, 4, 8, 16), labels=("1", "2", "4", "8", "16"))
    axes[0].set_ylabel("µs a call, median; thin: p99")
    return figure


def _cold_bars(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    cold, warm = cases["store", "cold_rows"], cases["store", "warm"]
    subjects = sorted(cold.subjects, key=lambda s: cold.value(s, "us_per_row"))
    figure, axis = pyplot.subplots(figsize=(7.5, 0.42 * len(subjects) + 1.3), layout="constrained")
    for place, subject in enumerate(subjects):
        is_ours = subject.startswith("ngramstore")
        _bar(axis, place - 0.2, cold.value(subject, "us_per_row"), 0.38, _COLD if is_ours else "#dcae96", subject)
        if warm.has(subject, "us_per_key@1024"):
            _bar(
                axis,
                place + 0.2,
                warm.value(subject, "us_per_key@1024"),
                0.38,
                _OURS if is_ours else "#a9c3d8",
                subject,
            )
    _finish(axis, subjects, "µs a row, log", "1,024 random rows in one call: cold (orange) and warm (blue)")
    return figure


def _disk_bars(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    found = cases["store", "disk"]
    kinds = list(dict.fromkeys(subject.partition(" ")[2] for subject in found.subjects))
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 2.6), layout="constrained")
    for axis, kind in zip(axes, kinds, strict=True):
        subjects = [s for s in found.subjects if s.endswith(f" {kind}")]
        raw = found.case["subjects"][subjects[0]]["facts"]["row_bytes"]
        for place, subject in enumerate(subjects):
            value = found.value(subject, "bytes_per_key")
            axis.bar(place, value, 0.65, color=_OURS if subject.startswith("ngramstore") else _PEER)
            axis.text(place, max(value, raw), f"{value:,.0f}", ha="center", va="bottom", fontsize=8)
        axis.axhline(raw, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(subjects)), labels=[s.split(" ")[0].replace("ngramstore", "ours") for s in subjects])
        axis.set(title=kind.replace(" D=", ", D = "))
    axes[0].set_ylabel("bytes a key; dotted: raw row")
    return figure


def _trace_bars(cases: dict[tuple[str, str], Found], pyplot: Any) -> Any:
    found = cases["store", "traces"]
    metrics = found.case["headline"]
    subjects = sorted(found.subjects, key=lambda s: found.value(s, metrics[0]))
    figure, axes = pyplot.subplots(
        1, len(metrics), figsize=(2.4 * len(metrics) + 1, 0.26 * len(subjects) + 1.2), sharey=True, layout="constrained"
    )
    for axis, metric in zip(axes, metrics, strict=True):
        for place, subject in enumerate(subjects):
            if found.has(subject, metric):
                _bar(axis, place, found.value(subject, metric), 0.7, _color(subject), subject)
        _finish(axis, subjects, "µs a key, log", metric.partition("@")[2])
    return figure


def _bars(pyplot: Any, found: Found, metric: str, unit: str, title: str) -> Any:
    subjects = sorted((s for s in found.subjects if found.has(s, metric)), key=lambda s: found.value(s, metric))
    figure, axis = pyplot.subplots(figsize=(7.5, 0.3 * len(subjects) + 1.3), layout="constrained")
    for place, subject in enumerate(subjects):
        _bar(axis, place, found.value(subject, metric), 0.7, _color(subject), subject)
    _finish(axis, subjects, f"{unit}, log", title)
    return figure


def _bar(axis: Any, place: float, value: float, height: float, color: str, subject: str) -> None:
    axis.barh(
        place, value, height, color=color, hatch="///" if subject.startswith(_BOUNDS) else None, edgecolor="white"
    )
    axis.annotate(_short(value), (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5)


def _finish(axis: Any, subjects: list[str], label: str, title: str) -> None:
    axis.set_xscale("log")
    axis.set_yticks(range(len(subjects)), labels=subjects)
    for text in axis.get_yticklabels():
        if text.get_text().startswith("ngramstore"):
            text.set(color=_OURS, fontweight="bold")
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.18)  # room for the numbers behind the bars
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.invert_yaxis()
    axis.set(xlabel=label, title=title)


def _lines(pyplot: Any, found: Found, sizes: list[int], metric: str, x: str, y: str, title: str) -> Any:
    figure, axis = pyplot.subplots(figsize=(8.5, 4.6), layout="constrained")
    _draw_lines(axis, found, sizes, metric)
    axis.set(title=title, xlabel=x, ylabel=f"{y}, log")
    axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
    return figure


def _draw_lines(
    axis: Any, found: Found, sizes: Any, metric: str, more: Callable[[Any, Found, str, Any, str], None] | None = None
) -> None:
    """One line a subject with its name at the right end; names that would overlap are moved apart."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()
    ends, styles = [], iter([(color, dash) for dash in ("-", (0, (4, 1.5))) for color in _LINES])
    for subject in found.subjects:
        if subject in ("ngramstore_zstd", "ngramstore_resident") or not all(
            found.has(subject, metric.format(size)) for size in sizes
        ):
            continue
        values = [found.value(subject, metric.format(size)) for size in sizes]
        is_ours, is_bound = subject == "ngramstore", subject.startswith(_BOUNDS)
        color, dash = (_OURS, "-") if is_ours else ("#777777", ":") if is_bound else next(styles)
        axis.plot(
            sizes, values, color=color, linewidth=2.6 if is_ours else 1.2, linestyle=dash,
            marker="o", markersize=4 if is_ours else 2.5, zorder=3 if is_ours else 2,
        )  # fmt: skip
        if more:
            more(axis, found, subject, sizes, color)
        ends.append((values[-1], subject, color, is_ours))
    gap, places = (axis.get_ylim()[1] / axis.get_ylim()[0]) ** 0.042, []
    for value, *_ in sorted(ends):
        places.append(max(value, places[-1] * gap) if places else value)
    lift = geometric_mean(place / end[0] for place, end in zip(places, sorted(ends), strict=True))  # as far down as up
    for (value, subject, color, is_ours), place in zip(sorted(ends), places, strict=True):
        axis.annotate(
            subject, (sizes[-1], value), xytext=(sizes[-1] * (sizes[-1] / sizes[0]) ** 0.03, place / lift), color=color,
            va="center", fontsize=8, fontweight="bold" if is_ours else "normal", annotation_clip=False,
        )  # fmt: skip
    axis.set_xlim(sizes[0] * 0.8, sizes[-1] * (sizes[-1] / sizes[0]) ** 0.32)
    axis.grid(axis="y", color="#eeeeee")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _spread(axis: Any, found: Found, subject: str, sizes: Any, color: str) -> None:
    """The p99 as a thin line."""
    values = [found.value(subject, f"p99_us@{size}") for size in sizes]
    axis.plot(sizes, values, color=color, linewidth=0.6, linestyle="--", zorder=1)


def _color(subject: str) -> str:
    return _OURS if subject.startswith("ngramstore") else _BOUND if subject.startswith(_BOUNDS) else _PEER


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


PLOTS: dict[str, tuple[str, tuple[tuple[str, str], ...], Callable[[dict[tuple[str, str], Found], Any], Any]]] = {
    "warm.png": ("Warm look-ups: time of a key at 1,024 keys a call", (("store", "warm"),), _warm_bars),
    "batch.png": ("Warm look-ups: time of a key by batch size", (("store", "warm"),), _warm_lines),
    "traces.png": ("Every peer on every trace", (("store", "traces"),), _trace_bars),
    "cold.png": ("Cold beside warm", (("store", "cold_rows"), ("store", "warm")), _cold_bars),
    "disk.png": ("Bytes on disk a key", (("store", "disk"),), _disk_bars),
    "latency.png": ("Latency by tokens a call", (("paper", "latency_ram"), ("paper", "latency_disk")), _paper_lines),
}
"""File -> caption, the cases it needs, how it is drawn."""
