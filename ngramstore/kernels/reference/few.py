"""What the kernel for a handful of cached n-grams means: hash, find, touch, one after the other."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.reference.cache import touch
from ngramstore.kernels.reference.hashing import ngram_ids_of_width
from ngramstore.kernels.reference.index import find


def touch_ngrams(
    layers: np.ndarray,
    tokens_MN: np.ndarray,
    seed: int,
    table: np.ndarray,
    slot_keys: np.ndarray,
    links: np.ndarray,
    counters: np.ndarray,
    row_bytes: int,
    offsets_M: np.ndarray,
    found_M: np.ndarray,
) -> int:
    """Rows of M n-grams of N tokens in the cache: their byte offsets (-1: not stored) and found; returns how many.

    -1: one of them is not in the cache, or a page of the index is bad; nothing has changed.
    """
    ids_M, keys_M = np.empty(len(tokens_MN), np.uint64), np.empty(len(tokens_MN), np.int64)
    ngram_ids_of_width(tokens_MN, seed, ids_M)
    if find(layers, ids_M, keys_M) < len(keys_M):
        return -1
    if not touch(table, slot_keys, links, counters, row_bytes, keys_M, offsets_M):
        return -1
    found_M[:] = keys_M >= 0
    return int(found_M.sum())
