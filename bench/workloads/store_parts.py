"""What the parts of a look-up cost, each by itself in a loop: the numbers that docs/design.md argues with. Worker function and case."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import ngramstore as ngs
from bench import data, peers, rows
from bench.harness import Case
from bench.setup import Setup
from ngramstore.hashing import checksums, ngram_ids
from ngramstore.store.layers.index import Index

PARTS = ("hash", "probe", "probe_one", "searchsorted", "cached_rows", "gather", "get_one", "tail_one", "checksum")
_BATCH = 1024


def parts_case(setup: Setup) -> Case:
    """Each part as a subject: nanoseconds a key, a call or a KiB."""
    num = setup.num_keys or setup.pick(1_000_000, 40_000)
    source = data.prepare(setup.root, num, setup.dim or 1024, setup.seed)
    setup.build(["ngramstore"], source)
    return Case(
        name="parts",
        title=f"parts of a look-up by themselves, {num:,} keys, batches of {min(_BATCH, num):,}, Zipf(1.0), 20 % absent, one thread",
        function="bench.workloads.store_parts:part",
        subjects={
            name: {"name": name, "source": str(source), "repeats": setup.pick(400, 60)}
            for name in PARTS
            if not setup.only_subjects or name in setup.only_subjects
        },
        baseline="probe",
        headline=("ns", "p90_ns"),
        notes=(
            "hash, probe, searchsorted, cached_rows (found in the row cache and dequantized), gather (row numbers known): ns a key",
            "probe_one, get_one, tail_one (longest match of one token): ns a call from Python with one key; checksum: ns a KiB of rows",
        ),
    )


def part(*, name: str, source: str, repeats: int, seed: int) -> dict:
    """Median and 90th percentile of `repeats` timings of one part."""
    origin = data.load(source)
    size = min(_BATCH, origin.num_keys)
    batches = data.split(data.queries(origin, 20 * size, seed), size)
    run, units = _makers()[name](origin, batches)
    for number in range(20):
        run(number)
    times = np.empty(repeats, np.int64)
    for i in range(repeats):
        start = time.perf_counter_ns()
        run(i % 20)
        times[i] = time.perf_counter_ns() - start
    per_unit = times / units
    return {"metrics": {"ns": float(np.median(per_unit)), "p90_ns": float(np.percentile(per_unit, 90))}, "facts": {}}


def _makers() -> dict[str, Callable]:
    """Part -> (source, batches) -> (what is timed, given a number 0..19; how many units that is)."""
    return {
        "hash": lambda origin, batches: (lambda i: ngram_ids(batches[i].ngrams_BK), len(batches[0])),
        "probe": _probe,
        "probe_one": _probe_one,
        "searchsorted": _searchsorted,
        "cached_rows": _cached_rows,
        "gather": _gather,
        "get_one": _get_one,
        "tail_one": _tail_one,
        "checksum": _checksum,
    }


def _finder(origin: data.Dataset) -> Callable[[np.ndarray, np.ndarray], int]:
    from ngramstore.kernels.native.probe import find

    index = Index.from_ids(np.sort(origin.ids_N))
    layers = index.layer[None].copy()
    return lambda ids, keys, index=index: find(layers, ids, keys)  # the layers point into the index


def _probe(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    find, keys = _finder(origin), np.empty(len(batches[0]), np.int64)
    return lambda i: find(batches[i].ids_B, keys), len(keys)


def _probe_one(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    find, key = _finder(origin), np.empty(1, np.int64)
    ones = [batch.ids_B[:1] for batch in batches]
    return lambda i: find(ones[i], key), 1


def _searchsorted(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    sorted_ids = np.sort(origin.ids_N)
    return lambda i: np.searchsorted(sorted_ids, batches[i].ids_B), len(batches[0])


def _opened(origin: data.Dataset, batches: list[data.Batch]) -> ngs.Store:
    store = peers.opened("ngramstore", origin)._store  # type: ignore[attr-defined]
    for batch in batches:
        store.get(batch.ngrams_BK)
    return store


def _cached_rows(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    store = _opened(origin, batches)
    out = np.zeros((len(batches[0]), origin.dim), np.float32)
    cache, plan, keys = store._cache, store.spec.codec.plan("f"), [store._view.find(batch.ids_B) for batch in batches]
    return lambda i: cache.serve(plan, keys[i], out.view(np.uint8)), len(out)


def _gather(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    stored = np.array(origin.stored_NR)
    out = np.zeros((len(batches[0]), origin.dim), np.float32)
    return lambda i: rows.gather_rows(stored, batches[i].numbers_B, out), len(out)


def _ones(origin: data.Dataset, batches: list[data.Batch]) -> tuple[ngs.Store, list[np.ndarray]]:
    ones = [batch.ngrams_BK[batch.numbers_B >= 0][:1] for batch in batches]
    store = _opened(origin, batches)
    return store, [np.ascontiguousarray(one) for one in ones]


def _get_one(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    store, ones = _ones(origin, batches)
    out = np.zeros((1, origin.dim), np.float32)
    return lambda i: store.get(ones[i], out=out), 1


def _tail_one(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    store, ones = _ones(origin, batches)
    out, room = np.zeros((1, 1, origin.dim), np.float32), np.full((1, 1), ones[0].shape[1], np.uint8)
    return lambda i: store.lookup_tail(ones[i], room, out=out), 1


def _checksum(origin: data.Dataset, batches: list[data.Batch]) -> tuple[Callable, int]:
    stored = np.ascontiguousarray(origin.stored_NR[:_BATCH])
    count, width = stored.shape
    starts, sizes, seeds = np.arange(count) * width, np.full(count, width), np.arange(count).astype(np.uint64)
    flat = stored.reshape(-1)
    return lambda i: checksums(flat, starts, sizes, seeds), count * width / 1024  # type: ignore[return-value]
