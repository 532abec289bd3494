"""What users may give as tokens and n-grams, and how far back an n-gram may reach."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.errors import UsageError
from ngramstore.windows import as_array, as_integers, as_ngrams, as_tokens, blank_from, room


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">u4", ">i8"])
def test_any_integers_that_fit_are_tokens(dtype):
    got = as_tokens(np.array([[0, 1], [2, 100]], dtype))
    assert got.dtype == np.uint32
    assert got.tolist() == [[0, 1], [2, 100]]


def test_the_largest_token_fits_and_the_next_does_not():
    assert as_tokens([2**32 - 1]).tolist() == [2**32 - 1]
    with pytest.raises(UsageError, match="4294967296"):
        as_tokens([1, 2**32])


def test_padding_is_refused_with_its_value():
    with pytest.raises(UsageError, match="-100"):
        as_tokens(np.array([5, -100, 7]))


@pytest.mark.parametrize("wrong", [[1.0], [True], ["a"], [None], np.array([1 + 2j])])
def test_what_is_no_integer_is_refused(wrong):
    with pytest.raises(UsageError, match="integers"):
        as_tokens(wrong)


@pytest.mark.parametrize("wrong", [[1.0], 2.0, [True], ["a"], [None], np.array([1 + 2j]), np.array([1], object)])
def test_numbers_that_are_no_integers_are_refused_by_their_name(wrong):
    with pytest.raises(UsageError, match=r"row numbers must be integers, got dtype .*\n  hint: .*int64"):
        as_integers(wrong, "row numbers")


@pytest.mark.parametrize("nothing", [[], [[]], np.empty(0, bool), np.empty((0, 3))], ids=str)
def test_no_numbers_are_integers(nothing):
    assert as_integers(nothing, "row numbers").dtype == np.int64
    assert as_integers(nothing, "row numbers").shape == np.shape(nothing)


def test_nothing_is_an_array_of_no_tokens():
    assert as_tokens([]).dtype == np.uint32
    assert as_tokens(np.empty((2, 0), np.int64)).shape == (2, 0)


ngrams = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple), max_size=8)


@settings(deadline=None)
@given(ngrams)
def test_the_three_forms_mean_the_same(listed):
    tokens, lengths = as_ngrams(listed, 4)
    wide = np.zeros((len(listed), 4), np.int64)
    for i, ngram in enumerate(listed):
        wide[i, : len(ngram)] = ngram
    assert lengths.tolist() == [len(ngram) for ngram in listed]
    assert (tokens == wide[:, : tokens.shape[1]]).all()
    assert not wide[:, tokens.shape[1] :].any()
    pair_tokens, pair_lengths = as_ngrams((wide, lengths), 4)
    assert (pair_tokens == wide).all()
    assert (pair_lengths == lengths).all()
    if len(set(lengths.tolist())) == 1:
        array_tokens, array_lengths = as_ngrams(wide[:, : lengths[0]], 4)
        assert (array_tokens == tokens).all()
        assert (array_lengths == lengths).all()


def test_a_pair_of_lists_of_two_tokens_is_two_ngrams():
    tokens, lengths = as_ngrams(((1, 2), (3, 4)), 2)
    assert tokens.tolist() == [[1, 2], [3, 4]]
    assert lengths.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([()], "n-gram 0 has 0 tokens"),
        ([(1,), (1, 2, 3, 4)], "n-gram 1 has 4 tokens"),
        (np.ones((2, 4), int), "n-gram 0 has 4 tokens"),
        (np.ones(3, int), r"got \(3,\)"),
        ((np.ones((2, 3), int), np.array([1, 0])), "n-gram 1 has 0 tokens"),
        ((np.ones((2, 2), int), np.array([1, 3])), "n-gram 1 has 3 tokens, its line 2"),
        ((np.ones((2, 3), int), np.array([1])), "shapes"),
        ((np.ones((2, 3), int), np.array([1.0, 2.0])), "lengths of n-grams must be integers"),
        ([1, 2], "list of tuples"),
        ([(1.5,)], "integers"),
        ([(-1,)], "-1"),
        (7, "list of tuples"),
    ],
)
def test_wrong_ngrams_are_named(wrong, says):
    with pytest.raises(UsageError, match=says):
        as_ngrams(wrong, 3)


def test_an_array_wider_than_the_longest_ngram_is_cut_to_it():
    tokens, lengths = as_ngrams((np.array([[1, 2, -1, -1], [3, 4, 5, -1]]) + 1, [2, 3]), 3)
    assert tokens.tolist() == [[2, 3, 0], [4, 5, 6]]
    assert lengths.tolist() == [2, 3]
    tokens, _ = as_ngrams((np.array([[1, 2, 3, -1]]), [2]), 3)  # what is cut off need not be a token
    assert tokens.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ([[1, 2], [3]], "tokens are not an array"),
        ([[1, 2], [3, -1]], "tokens hold -1"),
        (np.ma.masked_equal([[1, 2], [3, 0]], 0), "tokens have masked values"),
    ],
    ids=["as they are", "padded with -1", "masked"],
)
def test_lines_of_different_lengths_are_refused_with_what_to_give_instead(wrong, says):
    """Whichever of the three is tried: none of them is what another's hint says."""
    with pytest.raises(UsageError, match=says) as raised:
        as_tokens(wrong)
    assert "pad lines on the right with any token id" in raised.value.hint
    assert "`starts`" in raised.value.hint and "`attention_mask`" in raised.value.hint


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (np.array([[1, 2], [3, -1]]), "lengths"),
        (np.ma.masked_equal([[1, 2], [3, 0]], 0), "lengths"),
        ((np.array([[1, 2], [3, -1]]), [2, 1]), "padded on the right with any token id"),
        ([(1, 2), (3, -1)], "without padding"),
    ],
)
def test_padded_ngrams_are_refused_with_what_to_give_instead(wrong, hint):
    with pytest.raises(UsageError) as raised:
        as_ngrams(wrong, 2)
    assert hint in raised.value.hint


class OnADevice:
    """A tensor that numpy cannot read."""

    def __init__(self, is_float: bool) -> None:
        self.is_float = is_float

    def is_floating_point(self) -> bool:
        return self.is_float

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert this device's tensor to numpy")


@pytest.mark.parametrize(
    "take", [as_tokens, lambda ids: as_ngrams(ids, 2), lambda ids: as_integers(ids, "row numbers")]
)
def test_ids_on_another_device_are_refused_with_what_keeps_them_integers(take):
    with pytest.raises(UsageError, match="not an array") as raised:
        take(OnADevice(is_float=False))
    assert raised.value.hint == "of a PyTorch tensor, give `t.cpu().numpy()`"


def test_rows_on_another_device_are_refused_with_what_makes_floats_of_them():
    with pytest.raises(UsageError, match="not an array") as raised:
        as_array(OnADevice(is_float=True), "rows")
    assert raised.value.hint == "of a PyTorch tensor, give `t.detach().cpu().float().numpy()`"


def test_equal_ngrams_are_equal_rows_after_blanking():
    tokens = np.array([[1, 2, 9], [1, 2, 8]], np.uint32)
    assert blank_from(tokens, np.array([2, 2])).tolist() == [[1, 2, 0], [1, 2, 0]]
    assert tokens[0, 2] == 9  # a copy


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 12), st.integers(1, 16), st.data())
def test_room_never_reaches_before_a_start(B, T, max_n, data):
    starts = np.array(data.draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T)), bool).reshape(B, T)
    got = room((B, T), max_n, starts)
    for b in range(B):
        for t in range(T):
            begin = max([s for s in range(t + 1) if starts[b, s]], default=0)
            assert got[b, t] == min(t - begin + 1, max_n)
    assert (room((B, T), max_n) == room((B, T), max_n, np.zeros((B, T), bool))).all()


@pytest.mark.parametrize("wrong", [np.zeros((2, 4), bool), np.zeros((2, 3), int)])
def test_starts_are_bools_of_the_shape_of_the_tokens(wrong):
    with pytest.raises(UsageError, match="starts must be bool"):
        room((2, 3), 2, wrong)


@pytest.mark.parametrize(
    "values", [[np.uint64(1), 2], [[1, np.uint64(2)], [3, 4]], [np.array([1, 2], np.uint64), (2, 3)]]
)
def test_integers_of_types_that_numpy_joins_to_floats_are_integers(values):
    assert np.asarray(values).dtype == np.float64
    assert as_tokens(values).tolist() == [
        [int(value) for value in line] if np.ndim(line) else int(line) for line in values
    ]
    with pytest.raises(UsageError, match="-1"):
        as_tokens([np.uint64(1), -1])
    with pytest.raises(UsageError, match="integers"):
        as_tokens([np.uint64(1), 2.0])
    with pytest.raises(UsageError, match="integers"):
        as_tokens([np.uint64(2**64 - 1), -1])


def test_ngrams_may_mix_types_of_integers():
    tokens, lengths = as_ngrams([(np.uint64(1), 2), (3,)], 5)
    assert tokens.tolist() == [[1, 2], [3, 0]] and lengths.tolist() == [2, 1]


class Foreign:
    """An array of another library: it can become one of ours, and is slow to go through."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        raise AssertionError("gone through in Python")


def test_arrays_of_other_libraries_are_arrays():
    tokens, lengths = as_ngrams(Foreign([[1, 2], [3, 4]]), 2)
    assert tokens.tolist() == [[1, 2], [3, 4]] and lengths.tolist() == [2, 2]
    tokens, lengths = as_ngrams((Foreign([[1, 2], [3, 4]]), Foreign([2, 1])), 2)
    assert tokens.tolist() == [[1, 2], [3, 4]] and lengths.tolist() == [2, 1]
    with pytest.raises(UsageError, match=r"\(3, 14\)"):
        as_ngrams((np.int64(3), np.int64(14)), 2)


def test_a_column_of_tuples_is_a_list_of_them():
    """As pandas has them."""

    class Column(list):
        def __array__(self, dtype=None, copy=None):
            array = np.empty(len(self), object)
            array[:] = list(self)
            return array

    tokens, lengths = as_ngrams(Column([(1, 2), (3,)]), 2)
    assert tokens.tolist() == [[1, 2], [3, 0]] and lengths.tolist() == [2, 1]


@pytest.mark.parametrize(
    "take", [as_tokens, lambda values: as_ngrams(values, 3), lambda values: as_ngrams((values, [1, 1]), 3)]
)
def test_what_is_masked_out_is_refused(take):
    """Whoever masks padding means that it is not there; an array cannot say so."""
    values = np.array([[1, 2, 0], [3, 0, 0]])
    with pytest.raises(UsageError, match="masked"):
        take(np.ma.masked_equal(values, 0))
    take(np.ma.masked_equal(values, 9))
