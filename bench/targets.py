"""Every target that the project set itself, as one line: what, the limit, and how to read the measured number out of
the JSON files.

A limit holds for a median over rounds; a ratio is taken within each round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench import target_numbers as numbers
from bench.saved import Found


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One target. `read` raises KeyError where the files do not have its numbers."""

    what: str
    limit: float
    file_of: str
    """`workload/case`, or the name of a file that has no cases."""
    read: Callable[[Any], float]
    rounds: Callable[[Any], list[float]] | None = None
    """What `read` is the median of, where it is one."""
    at_least: bool = False
    unit: str = "x"
    named: Callable[[Any], str] | None = None
    """What stands in place of `what`, where that depends on what the file has."""
    plainly: str = ""
    """For a reader who has a minute: a clause with {} where the number goes; claims with the same one are told together."""


def _ratio(
    what: str, limit: float, where: str, other: str, metric: str, *, subject: str = "ngramstore", **more
) -> Claim:
    """A time of ours by a time of another in the same rounds."""
    return Claim(
        what=what,
        limit=limit,
        file_of=where,
        read=lambda f: f.ratio(subject, other, metric),
        rounds=lambda f: f.ratios(subject, other, metric),
        **more,
    )


def _value(what: str, limit: float, where: str, subject: str, metric: str, unit: str, **more) -> Claim:
    return Claim(
        what=what,
        limit=limit,
        file_of=where,
        read=lambda f: f.value(subject, metric),
        rounds=lambda f: f.rounds(subject, metric),
        unit=unit,
        **more,
    )


def _disk(codec: str, dim: int, limit: float) -> Claim:
    """Bytes of index and rows by those of the raw rows; tokens apart."""
    subject = f"ngramstore {codec} D={dim}"

    def read(found: Found) -> float:
        size = found.value(subject, "bytes_per_key") - found.value(subject, "tokens_per_key")
        return size / found.case["subjects"][subject]["facts"]["row_bytes"]

    return Claim(
        what=f"disk: {codec}, {dim:,} values, vs the raw row, tokens not counted",
        limit=limit,
        file_of="store/disk",
        read=read,
    )


def two_threads(found: Found, metric: str = "speedup") -> float:
    """What two threads gain in the rounds in which two that only compute gain 1.9; not measured where those are fewer
    than three."""
    valid = _valid_gains(found, metric)
    if len(valid) < 3:
        raise ValueError("void")
    return median(valid)


def _valid_gains(found: Found, metric: str = "speedup") -> list[float]:
    gains = zip(found.rounds("ngramstore", metric), found.rounds("ngramstore", "control_speedup"), strict=True)
    return [gain for gain, control in gains if control >= 1.9]


TUNED_ROCKS = "rocks_tuned"
"""How the subjects begin that are RocksDB tuned for look-ups, with the cache as one of blocks or split."""


def fastest_rocks(found: Found, metric: str, named: str = "rocks_") -> str:
    """The subject that is RocksDB at its best in this case, of those whose name begins so. KeyError: none was measured."""
    subjects = [s for s in found.subjects if s.startswith(named) and found.has(s, metric)]
    if not subjects:
        raise KeyError(f"{named}*")
    return min(subjects, key=lambda s: found.value(s, metric))


def _rocks_ratio(
    what: str, limit: float, where: str, named: str, metric: str, *, subject: str = "ngramstore", **more
) -> Claim:
    """As `_ratio`, the other being RocksDB at its best."""
    return Claim(
        what=what,
        limit=limit,
        file_of=where,
        read=lambda f: f.ratio(subject, fastest_rocks(f, metric, named), metric),
        rounds=lambda f: f.ratios(subject, fastest_rocks(f, metric, named), metric),
        **more,
    )


def slowest(found: Found, metric: str) -> str:
    """The subject with the largest value. ValueError: none was measured."""
    return max((s for s in found.subjects if found.has(s, metric)), key=lambda s: found.value(s, metric))


_SMALL, _LARGE = "1,000,000 keys", "100,000,000 keys"
"""Subjects of the workload `scale`, by name: where the large one failed, the middle one does not stand in for it."""


def _scale_of(found: Found, metric: str) -> float:
    return median(_scale_rounds(found, metric))


def _scale_rounds(found: Found, metric: str) -> list[float]:
    return found.ratios(_LARGE, _SMALL, metric)


def _build_memory(found: Found) -> float:
    return found.value(_LARGE, "anon_mib") / found.case["subjects"][_LARGE]["facts"]["memory_mib"]


_WAYS = (("in_place", "read in place"), ("checksums", "in place with checksums"), ("packed", "packed"))

CLAIMS: tuple[Claim, ...] = (
    *(
        _ratio(f"warm, {size:,} keys per call, vs {label}", limit, "store/warm", other, f"us_per_key@{size}")
        for other, label, limit in (
            ("memmap", "memory map + searchsorted", 0.6), ("lmdb", "LMDB", 0.4),
        )
        for size in (1024, 8192)
    ),
    *(
        _rocks_ratio(f"warm, {size:,} keys per call, vs the fastest RocksDB", 0.3, "store/warm", "rocks_", f"us_per_key@{size}")
        for size in (1024, 8192)
    ),
    *(
        _ratio(f"warm, {size:,} keys per call, vs the floor", 1.3, "store/warm", "floor", f"us_per_key@{size}")
        for size in (1024, 8192)
    ),
    *(
        _ratio(
            f"warm, {size:,} keys per call, {kind}, vs a gather by our own prefetching kernel", 1.3, "store/warm_floors",
            "floor_ahead", f"us_per_key@{size}", subject=subject,
            plainly=f"a batch of {size:,} keys from the {kind.replace('rows in memory', 'resident rows')} takes {{}} times as long as a bare gather by "
            "our own kernel",
        )
        for subject, kind in (("ngramstore_resident", "rows in memory"), ("ngramstore", "row cache"))
        for size in (1024, 8192)
    ),
    Claim(
        what="two threads vs one, batches of 8,192", limit=1.7, at_least=True, file_of="store/threads", read=two_threads, rounds=_valid_gains,
        plainly="two threads have {} times the throughput of one",
    ),
    _ratio("one key per call, cached, vs LMDB", 1.0, "store/warm", "lmdb", "us_per_key@1"),
    _ratio("longest match vs exact look-ups of as many keys", 1.5, "store/match", "ngramstore_exact", "us_per_position"),
    _ratio("longest match vs LMDB that probes", 0.2, "store/match", "lmdb", "us_per_position"),
    *(
        _rocks_ratio(
            f"cache of 10 % of the rows, {size:,} keys, {kind}, vs {theirs}", limit, "store/small_cache", other,
            f"mean_us_per_key@{size}", subject=subject,
            plainly=f"with a cache of 10 % of the rows, {kind}, calls of {size:,} keys take {{}} of the time that {theirs} takes",
        )
        for subject, kind, other, theirs, limit in (
            ("ngramstore", "not compressed", TUNED_ROCKS, "tuned RocksDB", 1.0),
            ("ngramstore_zstd", "zstd", "rocks_zstd", "RocksDB with zstd", 0.5),
        )
        for size in (1024, 64)
    ),
    _ratio("cold rows, index warm, vs a flat file read in its order, all reads hinted", 1.5, "store/cold_rows", "flat_hint_pread_numba", "us_per_row"),
    _ratio("cold rows and index vs LMDB", 0.4, "store/cold_all", "lmdb", "us_per_row"),
    _ratio("cold rows and index, zstd, vs RocksDB with zstd", 0.4, "store/cold_all", "rocks_zstd", "us_per_row", subject="ngramstore_zstd"),
    _value("disk: index of 1M keys, rows of one size", 6.5, "store/index", "ngramstore int8 D=64", "index_per_key", "B per key"),
    _value("disk: index of 1M keys, compressed rows", 9.0, "store/index", "ngramstore_zstd f16 D=256", "index_per_key", "B per key"),
    _disk("f16", 2048, 1.03),
    _disk("int8", 1024, 1.02),
    _disk("int4", 1024, 1.02),
    _value("open 1M keys", 50, "store/open", "ngramstore", "open_ms", "ms"),
    _value("open 20M keys", 50, "store/open_large", "ngramstore", "open_ms", "ms"),
    _ratio(
        "build from int8 rows, as they are, vs tuned RocksDB", 1.0, "store/build", "rocks_tuned", "seconds",
        plainly="a build from int8 rows takes {} times as long as tuned RocksDB's ingest",
    ),
    _ratio(
        "build from int8 rows, zstd, vs RocksDB's SST ingest with zstd", 1.0, "store/build", "rocks_zstd1", "seconds", subject="ngramstore_zstd",
        plainly="a build that compresses takes {} times as long as RocksDB's ingest of compressed files",
    ),
    _value("memory that look-ups add, above the cache's budget (below 0: they stay within it)", 100, "store/memory", "ngramstore", "over_budget_mib", "MiB"),
    *(
        _ratio(
            f"{rows}, {tokens} token{'s' * (tokens > 1)} per call, {cached}, vs engramdb-python's {theirs if other == 'engramdb' else 'torch module'}",
            limit, f"tables/engramdb_{case}", other, f"us_{tokens}", subject=subject,
        )
        for case, rows, theirs, limit in (
            ("fetch_160", "rows by number, 160 B x 16, as bytes", "fetch", 1 / 3),
            ("fetch_264", "rows by number, 264 B x 48, as bytes", "fetch", 1 / 3),
            ("tensor_160", "rows by number, 160 B x 16, as a tensor", "torch helper", 1 / 10),
        )
        for subject, other, cached in (
            ("ngramstore", "engramdb_cached", "all rows in either's cache"),
            ("ngramstore_uncached", "engramdb", "no cache on either side"),
        )
        for tokens in (1, 512)
    ),
    *(
        _value(f"{what}, cold prompt of 2,048 tokens x 48 rows, vs hinted reads of the same pages", 1.5, "tables/prefill", name, "over_floor", "x")
        for name, what in _WAYS
    ),
    *(
        _value(f"{what}, bytes read per row, vs the row's pages", 1.3, "tables/prefill", name, "bytes_over_floor", "x")
        for name, what in _WAYS
    ),
    *(_value(f"{what}, 48 cached rows, one call", 100, "tables/decode", name, "us", "us") for name, what in _WAYS),
    _value("import of a 5 GB checkpoint in place", 2, "tables/import", "in_place", "seconds", "s"),
    *(_value(f"{what}, memory above the cache's budget (below 0: within it)", 200, "tables/memory", name, "over_budget_mib", "MiB") for name, what in _WAYS),
    Claim(what="100M keys, build: memory vs its budget", limit=1.0, file_of="scale/build", read=_build_memory),
    *(
        Claim(
            what=f"100M keys vs 1M, median call, {what}", limit=2.0, file_of=f"scale/{case}", read=lambda f, metric=metric: _scale_of(f, metric),
            rounds=lambda f, metric=metric: _scale_rounds(f, metric),
            plainly=f"look-ups (median call, {what}) take {{}} times as long among 100 million keys as among one million",
        )
        for what, case, metric in (
            ("Zipf, one key per call", "zipf", "us_per_key@1"),
            ("Zipf, 1,024 keys per call, the default cache for both", "zipf", "us_per_key@1024"),
            ("Zipf, 1,024 keys per call, a quarter of the rows cached", "zipf_quarter", "us_per_key@1024"),
            ("the same hot rows, 1,024 keys per call", "hot", "us_per_key@1024"),
        )
    ),
    Claim(what="demo: SCONE vs the plain decoder", limit=0.10, at_least=True, file_of="demo", read=numbers.demo_gain, unit="nats"),
    Claim(what="demo --quick: SCONE vs the plain decoder", limit=0.05, at_least=True, file_of="demo_quick", read=numbers.demo_gain, unit="nats"),
    *(
        Claim(
            what=f"SCONE vs the plain decoder, {text}, vocabulary of 4,096, mean of seeds", limit=0.05, at_least=True, file_of="quality",
            read=lambda r, text=text: numbers.quality_gain(r, text), unit="nats",
        )
        for text in ("code", "english")
    ),
    Claim(
        what=numbers.MATCHING, limit=0.02, file_of="quality", read=numbers.matching_share, named=numbers.matching_name,
    ),
    Claim(what="export: the store's processor time vs A_f's, worst shape", limit=1.0, file_of="export", read=numbers.export_share),
    Claim(what="int8 store vs the live model, perplexity", limit=0.05, file_of="demo", read=numbers.perplexity_off("store_int8"), unit="% off"),
    Claim(what="int4 store, rounded by sensitivity, vs the live model, perplexity", limit=0.5, file_of="demo", read=numbers.perplexity_off("store_int4"), unit="% off"),
    Claim(
        what="best codec of 4.5 bits per value or fewer, trained tables, perplexity, mean of code and English", limit=0.2, file_of="codecs",
        read=numbers.half_a_byte, unit="% more",
    ),
    Claim(
        what="best codec of 4.5 bits per value or fewer, trained tables, perplexity, its worst text", limit=0.2, file_of="codecs",
        read=numbers.half_a_byte_worst_text, unit="% more",
    ),
    Claim(
        what="mining, K = 5, one process", limit=5.0, at_least=True, file_of="mine", unit="M tokens/s",
        read=lambda r: numbers.mining(r)["ngramstore"]["million_tokens_per_s"],
    ),
    *(
        Claim(
            what=f"mining vs {name}", limit=0.5, file_of="mine",
            read=lambda r, name=name: 1 / numbers.mining(r)[name.lower()]["wall_over_ngramstore"],
        )
        for name in ("DuckDB", "Polars")
    ),
    *(
        _value(f"decode step, batch 1, {size} decoder, {mode}, vs nn.Embedding", limit, f"decode/step_{size}", "batch_1", f"longer_{mode}", "x")
        for size in ("10M", "50M", "120M")
        for mode, limit in (("cached", 1.02), ("tenth", 1.05))
    ),
    *(
        Claim(
            what=f"prompt: look-up time vs decoder time, {mode}", limit=0.05, file_of="decode/prefill",
            read=lambda f, mode=mode: f.value(f.subjects[0], f"share_{mode}"),
        )
        for mode in ("cached", "tenth")
    ),
    Claim(
        what="one call of NGramEmbedding, batch 1, the slowest of the widths measured", limit=30, file_of="decode/overhead", unit="us",
        read=lambda f: f.value(slowest(f, "call_us"), "call_us"), rounds=lambda f: f.rounds(slowest(f, "call_us"), "call_us"),
    ),
)  # fmt: skip
"""In the order of the page."""
