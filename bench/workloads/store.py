"""Workload `store`: look-ups, size, build and memory of one million rows beside the peers, on identical bytes and keys."""

from __future__ import annotations

import shutil
from dataclasses import replace

from bench import peers, text
from bench.harness import Case
from bench.setup import SIZES, Offer, Setup
from bench.workloads import store_source as shared
from bench.workloads.store_files import SIZE_OFFERS
from bench.workloads.store_memory import MEMORY, memory_case
from bench.workloads.store_parts import PARTS, parts_case
from bench.workloads.store_source import KEYS_NOTE, OUT_NOTE
from bench.workloads.store_threads import SUBJECTS as THREADS
from bench.workloads.store_threads import threads_case
from bench.workloads.store_traces import SMALL_SUBJECTS as TRACES_SMALL
from bench.workloads.store_traces import SUBJECTS as TRACES
from bench.workloads.store_traces import traces_case, traces_small_case

WARM = (
    "ngramstore", "ngramstore_zstd", "ngramstore_resident", "floor", "memmap", "memmap_numba", "dict", "nn_embedding",
    "lmdb", "rocks_tuned", "rocks_tuned_rows", "rocks_default", "rocks_zstd", "sqlite", "redis", "safetensors", "lance",
)  # fmt: skip
WARM_F16 = (
    "ngramstore", "ngramstore_resident", "floor", "memmap", "memmap_numba", "dict", "nn_embedding", "fbgemm", "lmdb",
    "rocks_tuned", "rocks_default", "sqlite", "redis", "safetensors", "lance",
)  # fmt: skip
FLOORS = ("ngramstore", "ngramstore_resident", "floor", "floor_ahead")
SMALL_CACHE = ("ngramstore", "ngramstore_zstd", "rocks_zstd", "rocks_tuned", "rocks_tuned_rows")
COLD = (
    "ngramstore", "ngramstore_zstd", "flat_hint_pread", "flat_hint_pread_numba", "flat_pread", "memmap", "lmdb", "rocks_tuned",
    "rocks_zstd",
)  # fmt: skip
MATCH = ("ngramstore", "ngramstore_exact", "floor", "memmap", "lmdb")


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the source data and the files of the subjects first."""
    offers = {
        "warm": Offer(_warm, WARM, SIZES),
        "warm_f16": Offer(_warm_f16, WARM_F16, SIZES),
        "warm_floors": Offer(_warm_floors, FLOORS, SIZES),
        "traces": Offer(traces_case, TRACES, SIZES),
        "traces_small": Offer(traces_small_case, TRACES_SMALL, SIZES),
        "match": Offer(_match, MATCH, SIZES),
        "threads": Offer(threads_case, THREADS, SIZES),
        "parts": Offer(parts_case, PARTS, SIZES),
        "small_cache": Offer(_small_cache, SMALL_CACHE, SIZES),
        "cold_rows": Offer(_cold_rows, COLD, SIZES),
        "cold_all": Offer(_cold_all, COLD, SIZES),
        **SIZE_OFFERS,
        "memory": Offer(memory_case, MEMORY, SIZES),
    }
    return setup.cases(offers)


def clean(setup: Setup) -> None:
    """Remove what only a run needs; sources and built files stay for the next one."""
    shutil.rmtree(setup.scratch, ignore_errors=True)


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
    source = shared.source(setup, codec)
    arguments = {
        "source": str(source),
        "batch_sizes": [1, 64, 1024, 8192] if shared.num_keys(setup) >= 8192 else [1, 64],
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
    num = min(shared.num_keys(setup), 1_000_000)
    source = text.prepare(setup.root, num, shared.dim(setup), setup.seed, setup.pick(None, 60))
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
    budget = shared.tenth_bytes(setup)
    arguments = {
        "source": str(shared.source(setup)),
        "batch_sizes": [64, 1024],
        "lookups": setup.pick(409_600, 16_384),
        "max_calls": setup.pick(2000, 200),
        "warmup_s": setup.warmup_s / 4,
        "cache_bytes": budget,
        "settling": 2 * shared.num_keys(setup),
    }
    return Case(
        name="small_cache",
        title=f"exact look-ups, Zipf(1.0), row cache of {budget / 2**20:.0f} MiB: 10 % of the rows; page cache warm",
        function="bench.workloads.store_get:warm",
        subjects=setup.subjects(SMALL_CACHE, shared.source(setup), arguments),
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
        "source": str(shared.source(setup)),
        "batch": min(1024, shared.num_keys(setup)),
        "drops": setup.pick(7, 2),
        "drop_index": drop_index,
    }
    return Case(
        name=name,
        title=f"1,024 random present rows in one call; {title}",
        function="bench.workloads.store_get:cold",
        subjects=setup.subjects(subjects, shared.source(setup), arguments),
        baseline="flat_hint_pread_numba",
        headline=("us_per_row", "slowest_us_per_row"),
        notes=(
            "flat_* are told the row numbers; flat_hint_pread_numba hints and reads in the order of the file",
            "every drop is checked with mincore (facts: page_cache_share_after_drop, index); a host may still cache, so all files were read once before",
        ),
    )
