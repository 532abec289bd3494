"""Longest match against a naive dict, for any tokens, starts, n-gram lengths, buffers and batch shapes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import build_ngrams, cache_of, flip, longest_match, rows_of, stamps_of, temporary_directory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ngramstore as ngs
from ngramstore.errors import UsageError

FAST = settings(deadline=None, suppress_health_check=list(HealthCheck))
TOKEN = st.sampled_from([0, 1, 2**31, 2**32 - 1])


@st.composite
def questions(draw):
    """(stored n-grams, max_n, tokens (B, T), starts or None): lines are made of stored n-grams, so that long ones match."""
    max_n = draw(st.sampled_from([1, 2, 3, 5, 16]))
    ngrams = draw(
        st.lists(st.lists(TOKEN, min_size=1, max_size=max_n).map(tuple), min_size=1, max_size=12, unique=True)
    )
    if draw(st.booleans()):  # suffix-closed: the match may stop at the first miss
        ngrams = sorted({ngram[i:] for ngram in ngrams for i in range(len(ngram))})
    shape = draw(st.integers(0, 3)), draw(st.integers(0, 24))
    wanted = shape[0] * shape[1]
    flat: list[int] = []
    while len(flat) < wanted:
        flat += draw(st.one_of(st.sampled_from(ngrams), st.lists(TOKEN, min_size=1, max_size=2)))
    tokens = np.array(flat[:wanted], np.uint32).reshape(shape)
    starts = None
    if draw(st.booleans()):
        marks = draw(st.lists(st.integers(0, 5), min_size=wanted, max_size=wanted))
        starts = (np.array(marks, np.int64) == 0).reshape(shape)
    return ngrams, max_n, tokens, starts


@settings(FAST, max_examples=60)
@given(questions(), st.sampled_from([0, 3, 1000]), st.booleans())
def test_look_ups_find_the_longest_match(question, num_cached, tiny_chunks):
    ngrams, max_n, tokens, starts = question
    model = {ngram: i + 1 for i, ngram in enumerate(ngrams)}
    wanted = longest_match(model, tokens, starts)
    with temporary_directory() as room:
        build_ngrams(Path(room, "s"), model, dim=3, max_n=max_n)
        with ngs.open(Path(room, "s"), cache_bytes=cache_of(num_cached, 12)) as store:
            if tiny_chunks:
                store._source._chunk = 5
            before = store.stats()
            for _ in range(2):
                hit = store.lookup(tokens, starts=starts)
                np.testing.assert_array_equal(hit.length, wanted)
                np.testing.assert_array_equal(hit.found, wanted > 0)
                assert hit.rows.shape == (*tokens.shape, 3)
                for b, t in np.ndindex(*tokens.shape):
                    ngram = tuple(tokens[b, t + 1 - wanted[b, t] : t + 1].tolist())
                    assert stamps_of(hit.rows[b, t][None]) == [model[ngram]] if ngram else not hit.rows[b, t].any()
            np.testing.assert_array_equal(store.match(tokens, starts=starts), wanted)
            after = store.stats()
            assert after["found"] - before["found"] == 2 * np.count_nonzero(wanted)
            if num_cached:
                assert after["cache_hits"] + after["cache_misses"] == 2 * np.count_nonzero(wanted)
            if len(tokens) and starts is None:  # one line alone, without its axis
                alone = store.lookup(tokens[0])
                np.testing.assert_array_equal(alone.length, wanted[0])
                assert alone.rows.shape == (tokens.shape[1], 3)


@settings(FAST, max_examples=25)
@given(questions(), st.data())
def test_a_later_token_never_changes_an_earlier_answer(question, data):
    ngrams, max_n, tokens, starts = question
    if tokens.size == 0:
        return
    at = data.draw(st.integers(0, tokens.shape[1] - 1))
    changed = tokens.copy()
    changed[:, at:] = data.draw(st.sampled_from([7, 1, 2**32 - 1]))
    with temporary_directory() as room:
        build_ngrams(Path(room, "s"), {ngram: i for i, ngram in enumerate(ngrams)}, dim=3, max_n=max_n)
        with ngs.open(Path(room, "s")) as store:
            first, second = (store.lookup(lines, starts=starts) for lines in (tokens, changed))
            cut = store.lookup(tokens[:, :at], starts=None if starts is None else starts[:, :at])
    np.testing.assert_array_equal(first.length[:, :at], second.length[:, :at])
    np.testing.assert_array_equal(first.rows[:, :at], second.rows[:, :at])
    np.testing.assert_array_equal(first.length[:, :at], cut.length)
    np.testing.assert_array_equal(first.rows[:, :at], cut.rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lookup") / "store"
    build_ngrams(path, {(i,): i for i in range(50)} | {(i, i + 1): 100 + i for i in range(50)}, dim=4, max_n=2)
    return path


LINES = np.array([[0, 1, 2, 99, 3, 4, 4], [5, 6, 7, 8, 9, 10, 11]])
STAMPS = np.array([[0, 100, 101, -1, 3, 103, 4], [5, 105, 106, 107, 108, 109, 110]])


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": cache_of(3, 16)}, {"resident": True}, {}])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, ml_dtypes.bfloat16])
def test_rows_go_into_the_callers_buffer_of_any_type(path, options, dtype):
    wanted = rows_of(np.maximum(STAMPS, 0), 4).reshape(2, 7, 4) * (STAMPS >= 0)[..., None]
    with ngs.open(path, **options) as store:
        for _ in range(2):
            out = np.full((2, 7, 4), 77, dtype)
            hit = store.lookup(LINES, out=out)
            assert np.shares_memory(hit.rows, out)
            shown = out.view(ml_dtypes.bfloat16) if dtype == np.uint16 else out
            expected = wanted.astype(shown.dtype)
            np.testing.assert_array_equal(shown.astype(np.float32), expected.astype(np.float32))
            one = np.full((3, 4), 77, dtype)
            rows, found = store.get([(5,), (98, 97), (6, 7)], out=one)
            assert np.shares_memory(rows, one)
            assert found.tolist() == [True, False, True]
            assert not one.view(np.uint8)[1].any()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_the_asked_type_is_allocated(path, dtype):
    with ngs.open(path) as store:
        rows = store.lookup(LINES, dtype=dtype).rows
        assert rows.dtype == {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype]
        with pytest.raises(UsageError, match="f64"):
            store.lookup(LINES, dtype="f64")


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 7, 5), np.float32),
        np.zeros((14, 4), np.float32),
        np.zeros((2, 7, 4), np.float64),
        np.zeros((2, 7, 4), np.int32),
        np.zeros((2, 7, 4), ">f4"),
        np.zeros((2, 7, 8), np.float32)[:, :, ::2],
        np.zeros((2, 4, 7), np.float32).transpose(0, 2, 1),
        [[0.0] * 4],
    ],
    ids=["width", "shape", "f64", "int", "big-endian", "strided", "transposed", "list"],
)
def test_an_unfit_buffer_is_refused(path, out):
    with ngs.open(path) as store, pytest.raises(UsageError, match="out"):
        store.lookup(LINES, out=out)


def test_a_read_only_buffer_is_refused(path):
    out = np.zeros((2, 7, 4), np.float32)
    out.flags.writeable = False
    with ngs.open(path) as store, pytest.raises(UsageError, match="writeable"):
        store.lookup(LINES, out=out)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i8"]
)
def test_any_integer_type_of_tokens_is_the_same(path, dtype):
    with ngs.open(path) as store:
        np.testing.assert_array_equal(store.lookup(LINES.astype(dtype)).length, store.lookup(LINES).length)
        np.testing.assert_array_equal(
            store.lookup(LINES.astype(dtype)[:, ::-1]).length, store.lookup(LINES[:, ::-1].copy()).length
        )


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2), bool), "bool"),
        (np.array([[1, -1]]), "-1"),
        (np.array([[1, 2**32]]), "4294967296"),
        (np.array([[2**64 - 1]], np.uint64), "18446744073709551615"),
        ([["a"]], "tokens"),
        ([[2**70]], "object"),
        (np.zeros((1, 2, 3), np.int64), r"\(1, 2, 3\)"),
        (np.int64(3), r"\(\)"),
    ],
)
def test_what_is_no_token_is_refused_and_shown(path, tokens, said):
    with ngs.open(path) as store:
        for ask in (store.lookup, store.match):
            with pytest.raises(UsageError, match=said):
                ask(tokens)


@pytest.mark.parametrize("starts", [np.zeros((7, 2), bool), np.zeros(14, bool), np.zeros((2, 7), np.int64), [True]])
def test_starts_of_another_shape_or_type_are_refused(path, starts):
    with ngs.open(path) as store:
        for ask in (store.lookup, store.match):
            with pytest.raises(UsageError, match="starts"):
                ask(LINES, starts=starts)


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": cache_of(3, 16)}, {"resident": True}])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0), (0,), (1, 1), (1,), (4, 1)])
def test_empty_and_single_batches(path, options, shape):
    with ngs.open(path, **options) as store:
        hit = store.lookup(np.full(shape, 7, np.int64))
        assert hit.rows.shape == (*shape, 4)
        assert hit.length.shape == hit.found.shape == shape
        assert (hit.length == 1).all() or len(shape) == 1
        rows, found = store.get(np.zeros((0, 2), np.int64))
        assert rows.shape == (0, 4)
        assert found.shape == (0,)
        for nothing in ([], np.zeros((0, 1), np.uint32), (np.zeros((0, 2), np.int64), np.zeros(0, np.int64))):
            assert store.get(nothing)[0].shape == (0, 4)
            assert store.get_encoded(nothing)[0].shape == (0, 16)
            assert store.contains(nothing).shape == (0,)


@pytest.mark.parametrize("chunk", [1, 2, 3, 13, 14, 15])
@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {"cache_bytes": cache_of(3, 16)}, {"resident": True}])
def test_batches_are_cut_anywhere(path, monkeypatch, chunk, options):
    with ngs.open(path) as store:
        assert store._source._chunk >= LINES.size  # in one piece
        wanted = store.lookup(LINES)
    with ngs.open(path, **options) as store:
        monkeypatch.setattr(store._source, "_chunk", chunk)
        hit = store.lookup(LINES)
        np.testing.assert_array_equal(hit.rows, wanted.rows)
        np.testing.assert_array_equal(hit.length, wanted.length)


def test_damage_is_placed_right_in_a_batch_of_many_chunks(tmp_path, monkeypatch):
    path = tmp_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)}, dim=4)
    flip(path / "base-000001.rows", 4096 + 20 * 41)
    for options in ({"cache_bytes": 0}, {"cache_bytes": cache_of(3, 16)}):
        with ngs.open(path, on_damage="missing", **options) as store:
            monkeypatch.setattr(store._source, "_chunk", 7)
            hit = store.lookup(np.tile(np.arange(100), (2, 1)))
            assert (np.flatnonzero(hit.length == 0) % 100).size == 2
            lost = int(np.flatnonzero(hit.length[0] == 0)[0])
            assert hit.length[1, lost] == 0
            good = np.arange(100) != lost
            np.testing.assert_array_equal(hit.rows[0][good], rows_of(np.arange(100), 4)[good])
            assert not hit.rows[:, lost].any()


def test_ngrams_come_in_three_forms_and_are_the_same(path):
    with ngs.open(path) as store:
        pairs = [(1, 2), (98, 1), (3, 4), (1, 2)]
        wanted = store.get(pairs)
        padded = np.array([[*pair, 7, 7] for pair in pairs])
        for form in (
            np.array(pairs),
            np.array(pairs, np.uint32),
            [list(pair) for pair in pairs],
            (padded, np.full(4, 2)),
        ):
            if isinstance(form, tuple):
                form = (form[0][:, :2], form[1])
            for got, want in zip(store.get(form), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
        mixed = (np.array([[1, 99], [1, 2]]), np.array([1, 2]))  # what stands behind an n-gram's end does not matter
        np.testing.assert_array_equal(store.get(mixed)[0], store.get([(1,), (1, 2)])[0])


@pytest.mark.parametrize(
    "ngrams",
    [[()], [(1, 2, 3)], [(-1,)], [(2**32,)], [(1.5,)], [1, 2], np.array(5), np.zeros(3, np.int64), np.zeros((2, 0), np.int64),
     np.zeros((2, 3), np.int64), np.zeros((2, 2)), (np.zeros((2, 2), np.int64), np.array([1])),
     (np.zeros((2, 2), np.int64), np.array([0, 1])), (np.zeros((2, 2), np.int64), np.array([3, 1])),
     (np.zeros((2, 2), np.int64), np.array([1.0, 1.0]))],
)  # fmt: skip
def test_what_is_no_ngram_is_refused(path, ngrams):
    with ngs.open(path) as store:
        for ask in (store.get, store.contains, store.get_encoded, store.warm):
            with pytest.raises(UsageError):
                ask(ngrams)


def test_rows_by_number_take_any_shape_and_refuse_what_is_not_there(tmp_path):
    with ngs.build(tmp_path / "s", dim=4, addressing="row", codec="f32") as builder:
        builder.add_rows(rows_of(np.arange(70), 4))
    for options in ({"cache_bytes": 0}, {"cache_bytes": cache_of(3, 16)}, {"resident": True}):
        with ngs.open(tmp_path / "s", **options) as store:
            numbers = np.array([[5, 5, 69], [0, 1, 2]])
            np.testing.assert_array_equal(store.rows(numbers), rows_of(numbers, 4).reshape(2, 3, 4))
            assert store.rows_encoded(numbers).shape == (2, 3, 16)
            assert store.rows(7).shape == (4,)
            for empty in ([], np.zeros((0, 3), np.int64), np.zeros((2, 0), np.uint64)):
                assert store.rows(empty).shape == (*np.shape(empty), 4)
                assert store.rows_encoded(empty).shape == (*np.shape(empty), 16)
            store.warm(np.arange(70))
            for wrong in ([70], [-1], np.array([2**63], np.uint64), [1.0], [True], [2**70]):
                with pytest.raises(UsageError):
                    store.rows(wrong)
            with pytest.raises(UsageError, match="rows"):
                store.get([(1,)])
            with pytest.raises(UsageError, match="rows"):
                store.lookup([1])
