"""What the kernel for many n-grams means: hash, find, serve, one after the other for all of them."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native.cache_table import NUM_STATE
from ngramstore.kernels.native.call import COUNTS, RESIDENT, STATE
from ngramstore.kernels.reference.cache import memory, serve
from ngramstore.kernels.reference.few import layers_of, seed_of, serve_resident
from ngramstore.kernels.reference.hashing import ngram_ids_of_width
from ngramstore.kernels.reference.probe import find


def serve_ngrams(
    call: np.ndarray,
    tokens_MN: np.ndarray,
    out: np.ndarray,
    ids_M: np.ndarray,
    keys_M: np.ndarray,
    miss_M: np.ndarray,
    found_M: np.ndarray,
) -> int:
    """IDs, row keys (-1: not stored) and rows of M n-grams of N tokens, which are found; returns how many rows have
    still to be read.

    Those are at miss[:absent], and their rows of `out` (C-contiguous) are left as they are; elsewhere zeros where there
    is no key. A call that leaves none is counted. -1: a page of the index is bad; some rows may have been written, and
    counted as hits.
    """
    ngram_ids_of_width(tokens_MN, seed_of(call), ids_M)
    if find(layers_of(call), ids_M, keys_M) < len(tokens_MN):
        return -1
    found_M[:] = keys_M >= 0
    absent = 0
    if call[RESIDENT]:
        serve_resident(call, keys_M, out.ctypes.data)
    else:
        state = memory(int(call[STATE]), 8 * NUM_STATE).view(np.int64)
        absent = serve(state, call, keys_M, out.view(np.uint8), miss_M)
    if absent == 0:
        memory(int(call[COUNTS]), 24).view(np.int64)[:] += [1, len(keys_M), int(found_M.sum())]
    return absent
