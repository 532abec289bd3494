"""A handful of n-grams that are all in the row cache: hash, probe and touch in one call. Meaning: kernels/reference/few.py.

A call from Python costs more than its work here: one kernel instead of three is 2 us of the 6 that a single look-up takes.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.cache import touch
from ngramstore.kernels.native.hashing import extend_state, seed_state
from ngramstore.kernels.native.index import find


@kernel
def touch_ngrams(layers, tokens_MN, seed, table, slot_keys, links, counters, row_bytes, offsets_M, found_M):
    """Rows of M n-grams of N tokens in the cache: their byte offsets (-1: not stored) and found; returns how many.

    -1: one of them is not in the cache, or a page of the index is bad; nothing has changed.
    """
    ids_M = np.empty(tokens_MN.shape[0], np.uint64)
    keys_M = np.empty(tokens_MN.shape[0], np.int64)
    start = seed_state(seed)
    for m in range(tokens_MN.shape[0]):
        state = start
        for n in range(tokens_MN.shape[1] - 1, -1, -1):
            state = extend_state(state, tokens_MN[m, n])
        ids_M[m] = state
    if find(layers, ids_M, keys_M) < keys_M.shape[0]:
        return -1
    if not touch(table, slot_keys, links, counters, row_bytes, keys_M, offsets_M):
        return -1
    num_found = 0
    for m in range(keys_M.shape[0]):
        found_M[m] = keys_M[m] >= 0
        num_found += found_M[m]
    return num_found
