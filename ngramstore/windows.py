"""Token ids as users give them -> the arrays the engine works on, and how far back an n-gram may reach.

Shapes: B batch, T position, M n-grams, N tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.options import is_whole

Ngrams: TypeAlias = Sequence[Sequence[int]] | np.ndarray | tuple[ArrayLike, ArrayLike]
"""A list of tuples of token ids; an integer array (M, n); or (array (M, max_n) left-aligned, lengths (M,))."""
NgramArrays: TypeAlias = tuple[np.ndarray, np.ndarray]
"""The same as the engine has them: tokens (M, N) u32 left-aligned, and lengths (M,)."""
PADDED = "pad lines on the right with any token id: a row depends on earlier tokens only"
"""What to do with lines of several lengths, wherever token ids are taken."""
_OF_LINES = f"{PADDED}; or join them and mark where each begins (`starts`); modules take an `attention_mask` as well"
_OF_NGRAMS = (
    "of n-grams of several lengths give a list of tuples, "
    "or a pair: array (M, N), padded on the right with any token id, and lengths (M,)"
)
_OF_TUPLES = "write each n-gram as one tuple of its token ids, such as (3, 14), without padding"
_TOKEN_IDS = "token ids are integers 0 .. 2**32 - 1"


def plain(array: np.ndarray) -> np.ndarray:
    """The same numbers one after the other, aligned and writeable: the one layout kernels are compiled for; a copy only
    where need be.

    A read-only or strided array is another type, for which numba would compile a kernel anew: seconds, in the middle of serving.
    """
    return array if array.flags.carray else array.copy()


def as_array(values: ArrayLike, what: str, hint: str | None = None) -> np.ndarray:
    """What `values` hold, whatever their type; UsageError for lists of different lengths, and where something is masked out.

    hint: what to give in place of those two.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise UsageError(f"{what} have masked values", hint=hint or "fill them (`.filled(...)`), or leave them out")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UsageError(f"{what} are not an array: {error}", hint=hint or "lists in a list have one length") from None
    except (TypeError, RuntimeError) as error:  # what PyTorch says of bf16, of gradients, and of other devices
        raise UsageError(f"{what} are not an array: {error}", hint=_as_numpy(values)) from None


def _as_numpy(tensor: Any) -> str:
    """How to make an array of a tensor that is on another device, of a type that numpy has not, or has a gradient."""
    is_float = getattr(tensor, "is_floating_point", None)
    how = "t.detach().cpu().float().numpy()" if is_float is not None and is_float() else "t.cpu().numpy()"
    return f"of a PyTorch tensor, give `{how}`"


def as_integers(values: ArrayLike, what: str, hint: str | None = None) -> np.ndarray:
    """`as_array` of integers; UsageError for others. u64 among others in a list, which numpy makes f64 for want of a
    common type, stay such.

    No values are integers, whatever their type. hint: as for `as_array`.
    """
    array = as_array(values, what, hint)
    if array.dtype.kind in "iu":
        return array
    if array.size == 0:  # np.asarray([]) is float64
        return array.astype(np.int64)
    if array.dtype == np.float64 and not isinstance(values, np.ndarray):
        given = np.array(values, dtype=object).ravel().tolist()
        if all(map(is_whole, given)):
            kind = np.int64 if min(given) < 0 else np.uint64
            if max(given) <= np.iinfo(kind).max:
                return np.array([int(value) for value in given], kind).reshape(array.shape)
    raise UsageError(
        f"{what} must be integers, got dtype {array.dtype}", hint="give numbers of an integer type, such as int64"
    )


def as_tokens(values: ArrayLike, what: str = "tokens", hint: str = _OF_LINES) -> np.ndarray:
    """Any integers that fit -> u32 of the same shape; UsageError shows the first value that does not.

    hint: what to give in place of lines of several lengths, or padded with what is no token.
    """
    array = as_integers(values, what, hint)
    if array.dtype == np.uint32:
        return array
    wide = array.dtype.itemsize > 4 or array.dtype.kind == "i"
    if wide and array.size:
        low, high = array.min(), array.max()
        if low < 0:
            raise UsageError(f"{what} hold {low}", hint=f"{_TOKEN_IDS}; {hint}")
        if high > 0xFFFFFFFF:
            raise UsageError(f"{what} hold {high}", hint=_TOKEN_IDS)
    return array.astype(np.uint32)


def as_ngrams(ngrams: Ngrams, max_n: int) -> NgramArrays:
    """N-grams in any of the three forms -> tokens (M, N) u32 left-aligned and lengths (M,) u8, N <= max_n.

    UsageError for an empty n-gram, one longer than max_n, or tokens that are not u32.
    """
    if isinstance(ngrams, tuple) and len(ngrams) == 2 and _is_array(ngrams[0]):
        tokens, lengths = as_array(ngrams[0], "n-grams", _OF_NGRAMS), as_integers(ngrams[1], "lengths of n-grams")
        return _from_pair(tokens, lengths, max_n)
    array = as_array(ngrams, "n-grams", _OF_NGRAMS) if _is_array(ngrams) else None  # type: ignore[arg-type]
    if array is not None and (
        array.dtype != object or isinstance(ngrams, np.ndarray)
    ):  # a column of tuples is a list of them
        if array.ndim != 2:
            raise UsageError(f"an array of n-grams has shape (M, n), got {array.shape}")
        return _from_pair(array, np.full(len(array), array.shape[1]), max_n)
    listed: Sequence[Sequence[int]] = ngrams  # type: ignore[assignment]  # told apart above
    try:
        lengths_M = np.fromiter((len(ngram) for ngram in listed), np.int64, len(listed))
    except TypeError:
        raise UsageError(
            f"n-grams must be a list of tuples of token ids, got {ngrams!r:.200}",
            hint="for one n-gram write [(3, 14)]",
        ) from None
    width = int(lengths_M.max(initial=1))
    _check_lengths(lengths_M, max_n)
    flat = as_tokens([token for ngram in listed for token in ngram], "n-grams", _OF_TUPLES)
    if flat.ndim != 1:
        raise UsageError(
            f"n-grams must be a list of tuples of token ids, got {ngrams!r:.200}", hint="there is a bracket too many"
        )
    tokens_MN = np.zeros((len(lengths_M), width), np.uint32)
    tokens_MN[np.arange(width) < lengths_M[:, None]] = flat
    return tokens_MN, lengths_M.astype(np.uint8)


def _is_array(values: Any) -> bool:
    """An array of any library; numpy's numbers, which can be arrays too, are none."""
    return hasattr(values, "__array__") and not isinstance(values, np.generic)


def _from_pair(tokens: np.ndarray, lengths: np.ndarray, max_n: int) -> tuple[np.ndarray, np.ndarray]:
    if tokens.ndim != 2 or lengths.shape != (len(tokens),):
        raise UsageError(
            f"n-grams as a pair are tokens (M, N) and lengths (M,), got shapes {tokens.shape} and {lengths.shape}"
        )
    _check_lengths(lengths, max_n)
    too_long = np.flatnonzero(lengths > tokens.shape[1])
    if len(too_long):
        raise UsageError(f"n-gram {too_long[0]} has {lengths[too_long[0]]} tokens, its line {tokens.shape[1]}")
    return plain(as_tokens(tokens[:, :max_n], "n-grams", _OF_NGRAMS)), lengths.astype(np.uint8)


def _check_lengths(lengths_M: np.ndarray, max_n: int) -> None:
    bad = np.flatnonzero((lengths_M < 1) | (lengths_M > max_n))
    if len(bad):
        raise UsageError(
            f"n-gram {bad[0]} has {lengths_M[bad[0]]} tokens; this store takes 1 to {max_n}",
            hint="an n-gram has at least one token; build with a larger max_n (at most 16) for longer ones",
        )


def blank_from(tokens_MN: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
    """A copy with zeros behind each n-gram's end, so that equal n-grams are equal rows."""
    return np.where(np.arange(tokens_MN.shape[1]) < lengths_M[:, None], tokens_MN, np.uint32(0))


def room(shape: tuple[int, int], max_n: int, starts: np.ndarray | None = None) -> np.ndarray:
    """How many tokens an n-gram ending at each position may have: (B, T) u8, 1 .. max_n.

    No n-gram reaches before the beginning of its line, nor before the last position marked in starts (B, T) bool.
    """
    assert 1 <= max_n <= MAX_N
    position_T = np.arange(shape[1])
    if starts is None:
        row = np.minimum(position_T + 1, max_n).astype(np.uint8)
        return np.repeat(row[None], shape[0], axis=0)
    starts = as_array(starts, "starts")
    if starts.shape != shape or starts.dtype != bool:
        raise UsageError(f"starts must be bool of shape {shape}, got {starts.dtype} {starts.shape}")
    last_start = np.maximum.accumulate(np.where(starts, position_T, 0), axis=1)
    return np.minimum(position_T - last_start + 1, max_n).astype(np.uint8)


def require_rows(numbers: np.ndarray, num_rows: int) -> None:
    """UsageError for a row number outside 0 .. num_rows - 1."""
    if numbers.size and (numbers.min() < 0 or numbers.max() >= num_rows):
        wrong = numbers[(numbers < 0) | (numbers >= num_rows)].flat[0]
        raise UsageError(
            f"row {wrong} does not exist; this store has rows 0 to {num_rows - 1:,}",
            hint="a hash that gives row numbers must be made for a table of this size",
        )
