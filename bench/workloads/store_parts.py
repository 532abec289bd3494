"""What the parts of a look-up cost, each by itself in a loop: the numbers that docs/design.md argues with. Worker
function and case."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import ngramstore as ngs
from bench import check, data, peers, rows
from bench.harness import Case
from bench.setup import Setup
from bench.workloads import store_source as shared
from ngramstore.hashing import checksums, ngram_ids
from ngramstore.kernels.reference.hashing import checksum_pieces
from ngramstore.store.layers.index import Index

PARTS = ("hash", "probe", "probe_one", "searchsorted", "cached_rows", "gather", "get_one", "tail_one", "checksum")
_BATCH = 1024


def parts_case(setup: Setup) -> Case:
    """Each part as a subject: nanoseconds a key, a call or a KiB."""
    num, source = shared.num_keys(setup), shared.source(setup)
    setup.build_unasked(["ngramstore"], source)  # --subject names parts here, of which several ask a store
    return Case(
        name="parts",
        title=f"parts of a look-up by themselves, {num:,} keys, batches of {min(_BATCH, num):,}, Zipf(1.0), 20 % absent, one thread",
        function="bench.workloads.store_parts:part",
        subjects={
            name: {"name": name, "source": str(source), "repeats": setup.pick(400, 60)} for name in setup.asked(PARTS)
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
    run, units, verify = _makers()[name](origin, batches)
    for number in range(20):
        verify(number, run(number))
    times = np.empty(repeats, np.int64)
    for i in range(repeats):
        start = time.perf_counter_ns()
        run(i % 20)
        times[i] = time.perf_counter_ns() - start
    per_unit = times / units
    return {
        "metrics": {"ns": float(np.median(per_unit)), "p90_ns": float(np.percentile(per_unit, 90))},
        "facts": {"units_checked": 20 * units},
    }


Part = tuple[Callable, int, Callable]
"""What is timed, given a number 0..19; how many units that is; what raises WrongAnswer given the number and what came back."""


def _makers() -> dict[str, Callable[[data.Dataset, list[data.Batch]], Part]]:
    return {
        "hash": _hash,
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
    layers = index.line[None].copy()
    return lambda ids, keys, index=index: find(layers, ids, keys)  # the layers point into the index


def _must_be(name: str, got: np.ndarray, want: np.ndarray) -> None:
    if not np.array_equal(got, want):
        raise check.WrongAnswer(f"{name}: {got} instead of {want}")


def _hash(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    del origin
    return (
        lambda i: ngram_ids(batches[i].ngrams_BK),
        len(batches[0]),
        lambda i, ids_B: _must_be("hash", ids_B, batches[i].ids_B),
    )


def _places(origin: data.Dataset, batches: list[data.Batch]) -> list[np.ndarray]:
    """Of each batch's IDs among the sorted ones, -1 where absent."""
    rank_N = np.argsort(np.argsort(origin.ids_N))
    return [np.where(batch.numbers_B >= 0, rank_N[batch.numbers_B], -1) for batch in batches]


def _probe(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    find, keys, places = _finder(origin), np.empty(len(batches[0]), np.int64), _places(origin, batches)
    return lambda i: find(batches[i].ids_B, keys), len(keys), lambda i, _: _must_be("probe", keys, places[i])


def _probe_one(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    find, key, places = _finder(origin), np.empty(1, np.int64), _places(origin, batches)
    ones = [batch.ids_B[:1] for batch in batches]
    return lambda i: find(ones[i], key), 1, lambda i, _: _must_be("probe_one", key, places[i][:1])


def _searchsorted(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    sorted_ids, places = np.sort(origin.ids_N), _places(origin, batches)

    def verify(i: int, found_B: np.ndarray) -> None:
        _must_be("searchsorted", found_B[places[i] >= 0], places[i][places[i] >= 0])

    return lambda i: np.searchsorted(sorted_ids, batches[i].ids_B), len(batches[0]), verify


def _opened(origin: data.Dataset, batches: list[data.Batch]) -> ngs.Store:
    store = peers.opened("ngramstore", origin)._store  # type: ignore[attr-defined]
    for batch in batches:
        store.get(batch.ngrams_BK)
    return store


def _verify_rows(name: str, origin: data.Dataset, asked: list[data.Batch], out_BD: np.ndarray) -> Callable:
    """The rows in `out_BD` are the source's, zeros where absent; they are spoilt then, so that the next ones must be written."""

    def verify(i: int, _: object) -> None:
        want_BD, found_B = asked[i].expected(origin)
        check.must_match(name, out_BD, found_B, want_BD, found_B)
        out_BD[:] = np.nan

    out_BD[:] = np.nan
    return verify


def _cached_rows(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    store = _opened(origin, batches)
    out = np.zeros((len(batches[0]), origin.dim), np.float32)
    cache, plan, keys = (
        store._source.cache,
        store.spec.codec.plan("f"),
        [store._view.find(batch.ids_B) for batch in batches],
    )
    verify = _verify_rows("cached_rows", origin, batches, out)
    return lambda i: cache.serve(plan, keys[i], out.view(np.uint8)), len(out), verify


def _gather(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    stored = np.array(origin.stored_NR)
    out = np.zeros((len(batches[0]), origin.dim), np.float32)
    verify = _verify_rows("gather", origin, batches, out)
    return lambda i: rows.gather_rows(stored, batches[i].numbers_B, out), len(out), verify


def _ones(batches: list[data.Batch]) -> list[data.Batch]:
    """The first present key of each batch."""
    places = [int((batch.numbers_B >= 0).argmax()) for batch in batches]
    return [data.split(batch, 1)[place] for batch, place in zip(batches, places, strict=True)]


def _get_one(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    store, ones = _opened(origin, batches), _ones(batches)
    ngrams, out = [np.ascontiguousarray(one.ngrams_BK) for one in ones], np.zeros((1, origin.dim), np.float32)
    return lambda i: store.get(ngrams[i], out=out), 1, _verify_rows("get_one", origin, ones, out)


def _tail_one(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    store, ones = _opened(origin, batches), _ones(batches)
    ngrams, out = [np.ascontiguousarray(one.ngrams_BK) for one in ones], np.zeros((1, 1, origin.dim), np.float32)
    room = np.full((1, 1), ngrams[0].shape[1], np.uint8)
    return lambda i: store.lookup_tail(ngrams[i], room, out=out), 1, _verify_rows("tail_one", origin, ones, out[0])


def _checksum(origin: data.Dataset, batches: list[data.Batch]) -> Part:
    stored = np.ascontiguousarray(origin.stored_NR[:_BATCH])
    count, width = stored.shape
    starts, sizes, seeds = np.arange(count) * width, np.full(count, width), np.arange(count).astype(np.uint64)
    flat = stored.reshape(-1)
    want = np.empty(min(count, 16), np.uint32)  # the reference is slow
    checksum_pieces(flat, starts[:16], sizes[:16], seeds[:16], want)

    def verify(_: int, sums: np.ndarray) -> None:
        _must_be("checksum", sums[: len(want)], want)

    return lambda i: checksums(flat, starts, sizes, seeds), count * width / 1024, verify  # type: ignore[return-value]
