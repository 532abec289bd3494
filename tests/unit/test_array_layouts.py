"""Arrays of every layout are served by the kernels that are there: another type would be compiled anew, seconds in the
middle of serving."""

from __future__ import annotations

import pkgutil
import tracemalloc
from importlib import import_module

import numpy as np
import pytest
from helpers import rows_of

import ngramstore as ngs
from ngramstore.errors import UsageError
from ngramstore.kernels import native
from ngramstore.store.trace import Trace
from ngramstore.windows import plain

NUM_ROWS, DIM = 40, 4
NGRAMS = np.stack([np.arange(NUM_ROWS), np.arange(NUM_ROWS) % 7], axis=1).astype(np.uint32)
LINES = NGRAMS[:8].reshape(2, 8)
ROOM = np.full((2, 3), 2, np.uint8)


def num_compiled() -> dict[str, int]:
    """Signatures by kernel, of all kernels."""
    modules = [import_module(f"{native.__name__}.{module.name}") for module in pkgutil.iter_modules(native.__path__)]
    return {
        f"{module.__name__}.{name}": len(kernel.signatures)
        for module in modules
        for name, kernel in vars(module).items()
        if hasattr(kernel, "signatures")
    }


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers as they come from mapped files, windows over lines, foreign buffers, and other code."""
    read_only = array.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytearray(b"." + array.tobytes()), array.dtype, offset=1).reshape(array.shape)
    every_second = np.repeat(array, 2, axis=-1)[..., ::2]
    return {
        "read-only": read_only,
        "every second": every_second,
        "unaligned": unaligned,
        "by column": np.asfortranarray(array),
        "backwards": np.ascontiguousarray(array[::-1])[::-1],
    }


NAMES = list(layouts(NGRAMS))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("layouts") / "store"
    with ngs.build(path, dim=DIM, max_n=2, codec="f32", compression="none") as builder:
        builder.add(NGRAMS, rows_of(range(NUM_ROWS), DIM))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("layouts") / "table"
    with ngs.build(path, dim=DIM, codec="f32", addressing="row", compression="none") as builder:
        builder.add_rows(rows_of(range(NUM_ROWS), DIM))
    return path


def looked_up(store, lay) -> list[np.ndarray]:
    """What look-ups by n-gram answer where `lay` lays out the arrays they are given; the second time rows are cached."""
    answers: list = []
    for _ in range(2):
        out, one = np.zeros((2, 3, DIM), np.float32), np.zeros(DIM, np.float32)
        lengths = store.lookup_tail(lay(LINES), lay(ROOM), out=out)
        length = store.lookup_one(lay(LINES[0]), 4, 2, out=one)
        hit = store.lookup(lay(LINES))
        pair = (lay(NGRAMS), lay(np.full(NUM_ROWS, 2, np.uint8)))
        answers += [
            lengths,
            out,
            length,
            one,
            hit.rows,
            hit.length,
            store.match(lay(LINES)),
            *store.match_ids(lay(LINES[0])),
        ]
        answers += [
            store.contains(lay(NGRAMS)),
            *store.get(lay(NGRAMS)),
            *store.get(pair),
            *store.get_encoded(lay(NGRAMS)),
        ]
        answers += [store.contains(pair), store.contains(lay(NGRAMS[:1]))]
        answers.append(store.warm(lay(NGRAMS)))
    return answers


def rows_read(store, lay) -> list[np.ndarray]:
    numbers = np.arange(6).reshape(2, 3)
    answers = [store.rows(lay(numbers)), store.rows_encoded(lay(numbers)), store.rows(lay(numbers[0]))]
    many = np.arange(NUM_ROWS).repeat(50)  # more than the short way takes
    return [*answers, store.rows(lay(many)), store.rows_encoded(lay(many)), store.warm(lay(many))]


@pytest.mark.parametrize("options", [{}, {"resident": True}, {"cache_bytes": 0}], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stored", "answers"), [("path", looked_up), ("table", rows_read)], ids=["n-grams", "numbers"])
def test_look_ups_compile_nothing_anew(request, stored, answers, name, options):
    with ngs.open(request.getfixturevalue(stored), **options) as store:
        want = answers(store, np.copy)
        compiled = num_compiled()
        got = answers(store, lambda array: layouts(array)[name])
        assert num_compiled() == compiled
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_trace_over_foreign_memory_compiles_nothing_anew(path):
    with ngs.open(path) as store:
        keys = store.match_ids(NGRAMS[0])[0][-1:]
        trace = Trace.of("ngram", store.spec.seed, 1, keys, np.ones(1))
        store.warm(trace)
        compiled = num_compiled()
        store.warm(Trace("ngram", store.spec.seed, 1, layouts(trace.keys)["read-only"], trace.counts))
        assert num_compiled() == compiled


@pytest.mark.parametrize("name", ["read-only", "every second"])
def test_one_position_of_a_long_line_copies_no_more_than_its_n_gram(path, name):
    line = layouts(np.tile(NGRAMS[0], 1 << 18))[name]
    with ngs.open(path) as store:
        out = np.zeros(DIM, np.float32)
        store.lookup_one(line, 4, 2, out=out)
        tracemalloc.start()
        try:
            assert store.lookup_one(line, 4, 2, out=out) == 2
            assert tracemalloc.get_traced_memory()[1] < line.nbytes // 8
        finally:
            tracemalloc.stop()
    np.testing.assert_array_equal(out, rows_of([0], DIM)[0])


def test_plain_arrays_are_not_copied():
    assert plain(NGRAMS) is NGRAMS
    assert plain(NGRAMS[:0]).shape == (0, 2)


def test_a_masked_ngram_is_not_looked_up(tmp_path):
    with ngs.build(tmp_path / "s", dim=DIM, max_n=2, codec="f32") as builder:
        builder.add(NGRAMS, rows_of(range(NUM_ROWS), DIM))
    with ngs.open(tmp_path / "s") as store:
        masked = np.ma.masked_equal(NGRAMS, 3)
        for call in (store.get, store.contains, store.get_encoded, store.lookup):
            with pytest.raises(UsageError, match="masked"):
                call(masked)
        assert store.get(np.ma.masked_equal(NGRAMS, 10**6))[1].all()
