"""N-gram -> 64-bit ID. This is part of the on-disk format (docs/format.md, section IDs).

A look-up compares IDs, not tokens; builds and puts compare tokens and refuse two n-grams with one ID.
Expected colliding pairs among n stored n-grams: n**2 / 2**65 (0.03 at n = 1e9). A probe for an absent
n-gram meets a stored ID by chance with probability n / 2**64.

Shapes: W n-grams, N tokens of the longest, left-aligned.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native import hashing as native

MAX_N = 16
"""Longest n-gram a store can hold (K)."""
HASH_NAME = "mix13-suffix-1"
DEFAULT_SEED = 0
_M1_INVERSE = np.uint64(pow(0xBF58476D1CE4E5B9, -1, 1 << 64))
_M2_INVERSE = np.uint64(pow(0x94D049BB133111EB, -1, 1 << 64))


def ngram_ids(tokens_WN: np.ndarray, lengths_W: np.ndarray | None = None, seed: int = DEFAULT_SEED) -> np.ndarray:
    """IDs of W n-grams: (W, N) u32 left-aligned, lengths (W,) (None: all N) -> (W,) u64.

    The last token goes in first, so the ID of a longer suffix is one more mix of the shorter one's.
    """
    tokens_WN = np.ascontiguousarray(tokens_WN, np.uint32)
    out_W = np.empty(len(tokens_WN), np.uint64)
    if lengths_W is None:
        native.ngram_ids_of_width(tokens_WN, np.uint64(seed), out_W)
        return out_W
    native.ngram_ids(tokens_WN, np.ascontiguousarray(lengths_W, np.uint8), np.uint64(seed), out_W)
    return out_W


def row_ids(rows_W: np.ndarray) -> np.ndarray:
    """IDs of row numbers, for changed rows of a row-addressed store: (W,) u64 -> (W,) u64.

    mix64 is a bijection, so two rows never share an ID.
    """
    out_W = np.empty(len(rows_W), np.uint64)
    native.mix_each(np.ascontiguousarray(rows_W, np.uint64), out_W)
    return out_W


def row_numbers(ids_W: np.ndarray) -> np.ndarray:
    """`row_ids` the other way round, to say which rows are meant: (W,) u64 -> (W,) u64."""
    z_W = _unshifted(ids_W.astype(np.uint64), 31) * _M2_INVERSE
    z_W = _unshifted(z_W, 27) * _M1_INVERSE
    return _unshifted(z_W, 30)


def _unshifted(mixed_W: np.ndarray, shift: int) -> np.ndarray:
    """What `mixed` was before it became z ^ (z >> shift); for shifts of 22 to 63."""
    return mixed_W ^ (mixed_W >> np.uint64(shift)) ^ (mixed_W >> np.uint64(2 * shift))


def checksum(data: bytes | bytearray | memoryview | np.ndarray, seed: int = 0) -> int:
    """Low 32 bits of XXH64 of one piece of bytes."""
    view = np.frombuffer(data, np.uint8)
    return int(checksums(view, np.zeros(1, np.int64), np.array([view.size], np.int64), np.array([seed], np.uint64))[0])


def checksums(data: np.ndarray, starts_W: np.ndarray, sizes_W: np.ndarray, seeds_W: np.ndarray) -> np.ndarray:
    """Low 32 bits of XXH64 of W pieces of a u8 buffer -> (W,) u32. Pieces must lie inside the buffer."""
    assert len(starts_W) == 0 or (starts_W.min() >= 0 and (starts_W + sizes_W).max() <= data.size)
    out_W = np.empty(len(starts_W), np.uint32)
    native.checksum_pieces(data, starts_W, sizes_W, seeds_W, out_W)
    return out_W
