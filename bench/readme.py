"""The README's figures, made from the JSON files between two markers: what a reader sees first is never typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bench import claims, saved
from bench.saved import Found
from bench.targets import TUNED_ROCKS, fastest_rocks
from bench.workloads import scale

README = Path(__file__).parent.parent / "README.md"
_BEGIN, _END = "<!-- figures: made by `python -m bench.page` -->", "<!-- figures end -->"
_DEMO_BEGIN, _DEMO_END = "<!-- demo: made by `python -m bench.page` -->", "<!-- demo end -->"
_ROCKS = {
    "rocks_tuned": "RocksDB (tuned)",
    "rocks_tuned_rows": "RocksDB (tuned, with a row cache)",
    "rocks_default": "RocksDB (default)",
    "rocks_zstd": "RocksDB (zstd, with a row cache)",
}
Cases = dict[tuple[str, str], Found]


def updated(text: str, folder: Path = saved.RESULTS) -> str:
    """The README with what the demo found and its table made anew. Raises ValueError where the markers are not there."""
    text = between(text, _DEMO_BEGIN, _DEMO_END, demo(folder))
    return between(text, _BEGIN, _END, f"{table(folder)}\n\n{claims.misses(folder)}")


def between(text: str, begin: str, end: str, content: str) -> str:
    """The text with other content between two markers. Raises ValueError where they are not there."""
    head, has_begin, rest = text.partition(begin)
    _, has_end, tail = rest.partition(end)
    if not (has_begin and has_end):
        raise ValueError(f"the page lacks {begin} or {end}")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def demo(folder: Path = saved.RESULTS) -> str:
    """What `ngramstore demo` found, in two sentences, from demo.json and demo_quick.json."""
    found, quick = (json.loads((folder / f"{name}.json").read_text()) for name in ("demo", "demo_quick"))
    plain, live, *served = (model["perplexity"] for model in found["models"])
    stores = ", ".join(
        f"{perplexity:.1f} from the {_store(model['name'])} ({model['table_bytes'] / 1e6:.0f} MB)"
        for perplexity, model in zip(served, found["models"][2:], strict=True)
    )
    return (
        f"Results of that run (`bench/results/demo.json`: one seed, a small model, {found['seconds']:.0f} s on {found['threads']} threads): "
        f"perplexity {plain:.1f} for the plain\ndecoder, {live:.1f} for SCONE live, {stores}; "
        f"a cache of 10 % of the rows answers\n{100 * found['hit_rate']:.0f} % of row requests. "
        f"`--quick` takes {quick['seconds']:.0f} s (`bench/results/demo_quick.json`)."
    )


def _store(name: str) -> str:
    """A demo's "scone, CODEC store", and how it is rounded where that is not plain rounding."""
    codec = name.split()[1]
    return f"{codec} store{', rounded by sensitivity' if codec == 'int4' else ''}"


def table(folder: Path = saved.RESULTS) -> str:
    """One line a case that was measured, and which commits their files are of."""
    cases = saved.cases(folder)
    lines = ["| case | ngramstore | others |", "|---|---|---|"]
    commits = {}
    for workload, case, line in _LINES:
        found = cases.get((workload, case))
        if found is not None:
            try:
                what, ours, beside = line(found.sound())
            except KeyError:  # what a warning makes void, or was not measured
                continue
            lines.append(f"| {what} (`{found.file}`) | {ours} | {beside} |")
            commits[found.file] = found.commit
    return "\n".join([*lines, "", saved.of_commits(commits)] if commits else lines)


def _others(found: Found, metric: str, names: dict[str, str]) -> str:
    """Number and name of each subject that was measured, the least first."""
    there = sorted((found.value(s, metric), label) for s, label in names.items() if found.has(s, metric))
    return "; ".join(f"{_short(value)} {label}" for value, label in there)


def _warm(found: Found) -> tuple[str, str, str]:
    others = {
        "memmap_numba": "memory map, compiled search",
        "memmap": "memory map + `searchsorted`",
        "dict": "Python dict",
    }
    metric = "us_per_key@1024"
    rocks = fastest_rocks(found, metric)
    others |= {"lmdb": "LMDB", "sqlite": "SQLite", rocks: _ROCKS[rocks]}
    if found.has("redis", metric):
        others["redis"] = saved.label("Redis", found.case["subjects"]["redis"]["facts"])
    return (
        "warm, cached, 1,024 keys per call",
        f"{_short(found.value('ngramstore', metric))} us per key",
        _others(found, metric, others),
    )


def _single(found: Found) -> tuple[str, str, str]:
    ours = f"{_short(found.value('ngramstore', 'us_per_key@1'))} us"
    return "one key per call, cached", ours, _others(found, "us_per_key@1", {"lmdb": "LMDB", "dict": "Python dict"})


def _match(found: Found) -> tuple[str, str, str]:
    metric = "us_per_position"
    others = {"lmdb": "LMDB probing the same way", "memmap": "memory map"}
    stored = found.case["subjects"]["ngramstore"]["facts"]["num_ngrams"]
    return (
        f"longest match, K = 5, real text, {stored:,} n-grams",
        f"{_short(found.value('ngramstore', metric))} us per position",
        _others(found, metric, others),
    )


def _small(found: Found) -> tuple[str, str, str]:
    metric = "mean_us_per_key@1024"
    tuned = fastest_rocks(found, metric, TUNED_ROCKS)
    others = {tuned: f"{_ROCKS[tuned]}, a cache of the same bytes", "rocks_zstd": _ROCKS["rocks_zstd"]}
    return (
        "cache of 10 % of the rows, the rest in the page cache, mean",
        f"{_short(found.value('ngramstore', metric))} us per key, zstd {_short(found.value('ngramstore_zstd', metric))}",
        _others(found, metric, others),
    )


def _cold(found: Found) -> tuple[str, str, str]:
    metric = "us_per_row"
    rocks = fastest_rocks(found, metric)
    others = {
        "flat_hint_pread_numba": "the same bytes from a flat file, all reads hinted, row numbers known",
        rocks: _ROCKS[rocks],
    }
    others |= {"memmap": "memory map, its IDs read at opening", "lmdb": "LMDB"}
    return (
        "1,024 random rows, all pages dropped, those of the index too; what opening reads is warm",
        f"{_short(found.value('ngramstore', metric))} us per row",
        _others(found, metric, others),
    )


def _build(found: Found) -> tuple[str, str, str]:
    others = {
        "rocks_tuned": _ROCKS["rocks_tuned"],
        "rocks_zstd1": "RocksDB's ingest with zstd",
        "memmap": "memory map",
        "lmdb": "LMDB",
    }
    copied, zstd = (_short(found.value(f"ngramstore_{kind}", "seconds")) for kind in ("copied", "zstd"))
    return (
        "build from quantized rows, ngramstore and RocksDB on both cores",
        f"{_short(found.value('ngramstore', 'seconds'))} s from a read-only map, {copied} where rows are copied, {zstd} with zstd",
        _others(found, "seconds", others),
    )


def _disk(found: Found) -> tuple[str, str, str]:
    ours = found.value("ngramstore f16 D=2048", "bytes_per_key")
    return (
        f"disk, {found.case['subjects']['ngramstore f16 D=2048']['facts']['num_keys']:,} keys of 2,048 values of 16 bits",
        f"{ours:,.0f} B per key",
        _others(found, "bytes_per_key", {"lmdb f16 D=2048": "LMDB"}),
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 4 else f"{value:.2f}"


def _rows(found: Found) -> tuple[str, str, str]:
    return (
        "48 rows of 264 B by number, as bytes, one token per call, files in the page cache",
        f"{_short(found.value('ngramstore_uncached', 'us_1'))} us, all rows in our cache {_short(found.value('ngramstore', 'us_1'))}",
        _others(
            found,
            "us_1",
            {
                "engramdb": "engramdb-python's `fetch`, which has no cache",
                "engramdb_cached": "engramdb-python's torch module, all rows in its cache",
            },
        ),
    )


def _hot(found: Found) -> tuple[str, str, str]:
    small, *_, large = found.subjects
    metric = "us_per_key@1024"
    return (
        f"hot rows of {scale.DIM} values among {large}, 1,024 per call",
        f"{_short(found.value(large, metric))} us per key",
        _others(found, metric, {small: f"among {small}"}),
    )


def _step(found: Found) -> tuple[str, str, str]:
    return (
        f"decoding step of a 50M decoder on a CPU, batch 1, {found.case['subjects']['batch_1']['facts']['cached']['rows']:,} rows of 512 values",
        f"{found.value('batch_1', 'longer_cached'):.2f} x cached, {found.value('batch_1', 'longer_cold'):.2f} x cold",
        "1 the same decoder with `nn.Embedding`",
    )


def _call(found: Found) -> tuple[str, str, str]:
    dim = "dim_512"
    return (
        "one call of `NGramEmbedding` in a loop of its own, one token, rows of 512 values",
        f"{_short(found.value(dim, 'call_us'))} us",
        _others(found, "nn_embedding_us", {dim: "`nn.Embedding`"}),
    )


_LINES: tuple[tuple[str, str, Callable[[Found], tuple[str, str, str]]], ...] = (
    ("store", "warm", _warm),
    ("store", "match", _match),
    ("store", "small_cache", _small),
    ("store", "cold_all", _cold),
    ("store", "warm", _single),
    ("tables", "engramdb_fetch_264", _rows),
    ("scale", "hot", _hot),
    ("decode", "step_50M", _step),
    ("decode", "overhead", _call),
    ("store", "build", _build),
    ("store", "disk", _disk),
)
