"""Workload `store`: look-ups, size, build and memory of one million rows beside the peers, on identical bytes and keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench import data, peers, text
from bench.harness import Case
from bench.rows import row_bytes
from bench.setup import Setup
from bench.workloads.store_parts import parts_case
from bench.workloads.store_threads import threads_case
from bench.workloads.store_traces import traces_case, traces_small_case

DIM = 1024
WARM = (
    "ngramstore", "ngramstore_zstd", "ngramstore_resident", "floor", "memmap", "memmap_numba", "dict", "nn_embedding",
    "lmdb", "rocks_tuned", "rocks_default", "rocks_zstd", "sqlite", "redis", "safetensors", "lance",
)  # fmt: skip
WARM_F16 = (
    "ngramstore", "ngramstore_resident", "floor", "memmap", "memmap_numba", "dict", "nn_embedding", "fbgemm", "lmdb",
    "rocks_tuned", "rocks_default", "sqlite", "redis", "safetensors", "lance",
)  # fmt: skip
FLOORS = ("ngramstore", "ngramstore_resident", "floor", "floor_ahead")
SMALL_CACHE = ("ngramstore", "ngramstore_zstd", "rocks_zstd", "rocks_tuned")
COLD = (
    "ngramstore", "ngramstore_zstd", "flat_hint_pread", "flat_hint_pread_numba", "flat_pread", "memmap", "lmdb", "rocks_tuned",
    "rocks_zstd",
)  # fmt: skip
MATCH = ("ngramstore", "ngramstore_exact", "floor", "memmap", "lmdb")
OPEN = ("ngramstore", "ngramstore_zstd", "memmap", "lmdb", "rocks_tuned", "sqlite")
BUILD = ("ngramstore", "ngramstore_zstd", "ngramstore_copied", "rocks_zstd1", "rocks_tuned", "lmdb", "memmap")
MEMORY = ("ngramstore", "ngramstore_zstd", "rocks_zstd")
DISK = (("f16", 2048), ("int8", 1024), ("int4", 1024))
INDEX = (("ngramstore", "int8", 64), ("ngramstore_zstd", "f16", 256))
"""The index does not depend on the width of the rows, so narrow ones will do, of all the keys."""

KEYS_NOTE = "peers get ready-made u64 keys; ngramstore hashes token ids inside the timed call"
OUT_NOTE = "every call fills one float32 (B, D) array given by the caller and returns a bool mask; one thread"


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the source data and the files of the subjects first."""
    makers = {
        "warm": _warm,
        "warm_f16": _warm_f16,
        "warm_floors": _warm_floors,
        "traces": traces_case,
        "traces_small": traces_small_case,
        "match": _match,
        "threads": threads_case,
        "parts": parts_case,
        "small_cache": _small_cache,
        "cold_rows": _cold_rows,
        "cold_all": _cold_all,
        "disk": _disk,
        "index": _index,
        "open": _open,
        "open_large": _open_large,
        "build": _build,
        "memory": _memory,
    }
    optional = {"open_large"} - ({"open_large"} if setup.large else set())
    return [make(setup) for name, make in setup.choose(makers).items() if name not in optional]


def clean(setup: Setup) -> None:
    """Remove what only a run needs; sources and built files stay for the next one."""
    shutil.rmtree(setup.root / "scratch", ignore_errors=True)


def _num_keys(setup: Setup) -> int:
    return setup.num_keys or (40_000 if setup.quick else 1_000_000)


def _source(setup: Setup, codec: str = "int8") -> Path:
    return data.prepare(setup.root, _num_keys(setup), setup.dim or DIM, setup.seed, codec)


def _tiny(setup: Setup, dim: int) -> Path:
    return data.prepare(setup.root, 2000, dim, setup.seed)


def _warm(setup: Setup) -> Case:
    return _warm_case(setup, "warm", WARM, "int8")


def _warm_f16(setup: Setup) -> Case:
    return _warm_case(setup, "warm_f16", WARM_F16, "f16")


def _warm_floors(setup: Setup) -> Case:
    case = _warm_case(setup, "warm_floors", FLOORS, "int8")
    notes = (
        *case.notes,
        "floor: a plain gather in numba; floor_ahead: the product's own kernel, which asks for rows ahead",
    )
    return replace(case, baseline="floor_ahead", notes=notes)


def _warm_case(setup: Setup, name: str, subjects: tuple[str, ...], codec: str) -> Case:
    source = _source(setup, codec)
    arguments = {
        "source": str(source),
        "batch_sizes": [1, 64, 1024, 8192] if _num_keys(setup) >= 8192 else [1, 64],
        "lookups": setup.pick(409_600, 16_384),
        "max_calls": setup.pick(6400, 300),
        "warmup_s": setup.warmup_s,
        "budget_s": setup.pick(2.0, 0.1),
    }
    return Case(
        name=name,
        title=f"exact look-ups of {codec} rows, Zipf(1.0), 20 % absent, everything in the subject's own cache",
        function="bench.workloads.store_get:warm",
        subjects=setup.subjects(subjects, source, arguments),
        baseline="memmap",
        headline=("us_per_key@1", "us_per_key@64", "us_per_key@1024", "us_per_key@8192", "p99_us_per_call@64"),
        notes=(KEYS_NOTE, OUT_NOTE, "row caches hold every row; page cache warm (facts: page_cache_share)"),
    )


def _match(setup: Setup) -> Case:
    num = min(_num_keys(setup), 1_000_000)
    source = text.prepare(setup.root, num, setup.dim or DIM, setup.seed, setup.pick(None, 60))
    arguments = {
        "source": str(source),
        "positions": setup.pick(1024, 1024),
        "calls": setup.pick(400, 30),
        "warmup_s": setup.warmup_s,
    }
    return Case(
        name="match",
        title="longest match, K = 5, 1,024 positions of real text a call",
        function="bench.workloads.store_match:match",
        subjects=setup.subjects(MATCH, source, arguments),
        baseline="ngramstore_exact",
        headline=("us_per_position", "p99_us_per_call"),
        notes=(
            f"text: {source.name}",
            "ngramstore gets tokens; lmdb and memmap get the IDs of all suffixes and probe 2, 3, ... until a miss;",
            "ngramstore_exact and floor are told which n-gram matches and fetch as many keys",
        ),
    )


def _small_cache(setup: Setup) -> Case:
    budget = _num_keys(setup) * row_bytes(setup.dim or DIM) // 10
    arguments = {
        "source": str(_source(setup)),
        "batch_sizes": [64, 1024],
        "lookups": setup.pick(409_600, 16_384),
        "max_calls": setup.pick(2000, 200),
        "warmup_s": setup.warmup_s / 4,
        "cache_bytes": budget,
        "settling": 2 * _num_keys(setup),
    }
    return Case(
        name="small_cache",
        title=f"exact look-ups, Zipf(1.0), row cache of {budget / 2**20:.0f} MiB: 10 % of the rows; page cache warm",
        function="bench.workloads.store_get:warm",
        subjects=setup.subjects(SMALL_CACHE, _source(setup), arguments),
        baseline="rocks_zstd",
        headline=("mean_us_per_key@64", "mean_us_per_key@1024", "p99_us_per_call@64", "p99_us_per_call@1024"),
        notes=(
            KEYS_NOTE,
            OUT_NOTE,
            "the same number of bytes for every subject's cache, which has served twice as many other look-ups as there are rows",
            "the mean, since a median would leave out the calls with many misses; hit_rate: of the timed calls",
        ),
    )


def _cold_rows(setup: Setup) -> Case:
    return _cold(
        setup, "cold_rows", drop_index=False, title="row pages dropped, index warm where it is apart from the rows"
    )


def _cold_all(setup: Setup) -> Case:
    return _cold(setup, "cold_all", drop_index=True, title="every page of the subject dropped, index too")


def _cold(setup: Setup, name: str, *, drop_index: bool, title: str) -> Case:
    subjects = [subject for subject in setup.available(COLD) if drop_index or peers.create(subject).index_apart]
    arguments = {
        "case": name,
        "source": str(_source(setup)),
        "batch": min(1024, _num_keys(setup)),
        "drops": setup.pick(7, 2),
        "drop_index": drop_index,
    }
    return Case(
        name=name,
        title=f"1,024 random present rows in one call; {title}",
        function="bench.workloads.store_get:cold",
        subjects=setup.subjects(subjects, _source(setup), arguments),
        baseline="flat_hint_pread_numba",
        headline=("us_per_row", "slowest_us_per_row"),
        notes=(
            "flat_* are told the row numbers; flat_hint_pread_numba hints and reads in the order of the file",
            "every drop is checked with mincore (facts: page_cache_share_after_drop, index); a host may still cache, so all files were read once before",
        ),
    )


def _disk(setup: Setup) -> Case:
    num = setup.num_keys or setup.pick(200_000, 5000)
    wanted = [(subject, codec, dim) for codec, dim in DISK for subject in ("ngramstore", "ngramstore_zstd", "lmdb")]
    return _sizes(
        setup, "disk", f"bytes on disk a key, {num:,} 3-grams", num, wanted,
        baseline="lmdb f16 D=2048",
        headline=("bytes_per_key", "index_per_key", "tokens_per_key", "rows_per_key", "other_per_key"),
        note="LMDB stores the same encoded rows under 8-byte keys, and no tokens",
    )  # fmt: skip


def _index(setup: Setup) -> Case:
    num = _num_keys(setup)
    return _sizes(
        setup, "index", f"index on disk, {num:,} 3-grams", num, INDEX,
        baseline="ngramstore int8 D=64",
        headline=("index_per_key", "tokens_per_key", "rows_per_key"),
        note="ngramstore_zstd keeps the offsets of compressed rows in its index",
    )  # fmt: skip


def _sizes(
    setup: Setup,
    name: str,
    title: str,
    num: int,
    wanted: Iterable[tuple[str, str, int]],
    *,
    baseline: str,
    headline: tuple[str, ...],
    note: str,
) -> Case:
    """Bytes by part of (subject, codec, width); once, as nothing in them varies."""
    wanted, root = list(wanted), str(setup.root / "scratch")
    available = setup.available(tuple(dict.fromkeys(subject for subject, _, _ in wanted)))
    return Case(
        name=name,
        title=title,
        function="bench.workloads.store_files:disk",
        subjects={
            f"{subject} {codec} D={dim}": {
                "subject": subject, "num_keys": num, "dim": dim, "codec": codec, "root": root,
            }
            for subject, codec, dim in wanted
            if subject in available
        },
        baseline=baseline,
        headline=headline,
        notes=(note,),
        rounds=1,
    )  # fmt: skip


def _open(setup: Setup) -> Case:
    return _opening(setup, "open", _source(setup), OPEN)


def _open_large(setup: Setup) -> Case:
    source = data.prepare(setup.root, 20_000_000, 16, setup.seed)
    return _opening(setup, "open_large", source, ("ngramstore", "memmap", "lmdb", "rocks_tuned"))


def _opening(setup: Setup, name: str, source: Path, subjects: tuple[str, ...]) -> Case:
    origin = data.load(source)
    tiny = _tiny(setup, origin.dim)
    arguments = {"source": str(source), "tiny_source": str(tiny)}
    setup.build(subjects, tiny)
    return Case(
        name=name,
        title=f"open {origin.num_keys:,} keys of {origin.dim} dimensions, files in the page cache",
        function="bench.workloads.store_files:opening",
        subjects=setup.subjects(subjects, source, arguments),
        baseline="memmap",
        headline=("open_ms", "first_get_ms"),
        notes=("imports and compilation are done; memmap loads all IDs into RAM here",),
    )


def _build(setup: Setup) -> Case:
    arguments = {"source": str(_source(setup)), "root": str(setup.root / "scratch")}
    return Case(
        name="build",
        title=f"write {_num_keys(setup):,} rows that are int8 already, from random order, synced",
        function="bench.workloads.store_files:build",
        subjects={name: {"subject": name, **arguments} for name in setup.available(BUILD)},
        baseline="rocks_zstd1",
        headline=("seconds", "cpu_s", "bytes_per_key", "peak_anon_mib"),
        notes=(
            "ngramstore also hashes and keeps the tokens; peers get IDs and sort them",
            "ngramstore keeps rows out of the page cache and does not copy rows of a read-only map; ngramstore_copied gets them in a",
            "buffer that is filled again; facts: budget_mib of the build, and seconds by stage (pack: of all threads together)",
            "RocksDB: SST files written by one process a core, then ingested; rocks_zstd1: zstd level 1",
        ),
        rounds=3,
        environment={},
    )


def _memory(setup: Setup) -> Case:
    source = _source(setup)
    tiny = _tiny(setup, setup.dim or DIM)
    setup.build(MEMORY, tiny)
    arguments = {
        "source": str(source),
        "tiny_source": str(tiny),
        "cache_bytes": _num_keys(setup) * row_bytes(setup.dim or DIM) // 10,
        "lookups": setup.pick(409_600, 40_960),
        "batch": min(1024, _num_keys(setup)),
    }
    return Case(
        name="memory",
        title="anonymous memory above the baseline after import, store ten times the cache budget",
        function="bench.workloads.store_memory:memory",
        subjects=setup.subjects(MEMORY, source, arguments),
        baseline="rocks_zstd",
        headline=("anon_mib", "over_budget_mib", "open_mib"),
        notes=("facts: cache_mib is the budget, file_mib is shared page cache",),
        is_forkable=False,
        rounds=3,
    )
