"""Many n-grams in one call: hashed, found and served block by block. Meaning: kernels/reference/many.py.

While the rows of one block are written, the next block has been found, and what the cache says of it is on its way.
CALL is that of
`few`.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.cache import BLOCK, serve_block
from ngramstore.kernels.native.cache_table import NUM_PLACES, TABLE_ADDRESS, ask_for
from ngramstore.kernels.native.call import RESIDENT, STATE, add_call
from ngramstore.kernels.native.dequantize import OUT_BYTES, ROW_BYTES, prefetch_row, write_row
from ngramstore.kernels.native.few import SEED, layers_of
from ngramstore.kernels.native.hashing import extend_state, seed_state
from ngramstore.kernels.native.index import RANK_MASK
from ngramstore.kernels.native.memory import load_i64, zero_bytes
from ngramstore.kernels.native.probe import probe_block, room_for_ring

_FOUND_AT_ONCE = 4 * BLOCK
_ROWS_AHEAD = 4


@inline
def _find(call, layers, tokens_MN, begin, ids_M, keys_M, found_M, ring):
    """IDs and row keys from `begin` on, and which are stored; how many that are, -1 where a page of the index is bad."""
    end = min(begin + _FOUND_AT_ONCE, tokens_MN.shape[0])
    start = seed_state(np.uint64(call[SEED]))
    for m in range(begin, end):
        state = start
        for n in range(tokens_MN.shape[1] - 1, -1, -1):
            state = extend_state(state, tokens_MN[m, n])
        ids_M[m] = state
    probe_block(layers, ids_M[begin:end], keys_M[begin:end], ring)
    is_cached = call[RESIDENT] == 0
    table, places = np.int64(0), np.int64(1)
    if is_cached:
        table, places = load_i64(call[STATE] + 8 * TABLE_ADDRESS), load_i64(call[STATE] + 8 * NUM_PLACES)
    for m in range(begin, end):
        if keys_M[m] < -1:
            return np.int64(-1)
        found_M[m] = keys_M[m] >= 0
        if is_cached:
            ask_for(table, places, keys_M[m])
    return end


@inline
def _write(call, keys_M, begin, end, found, target):
    """Rows in memory, from `begin` to `end`; keys are known up to `found`."""
    rows, row_bytes, out_bytes = call[RESIDENT], call[ROW_BYTES], call[OUT_BYTES]
    for m in range(begin, end):
        ahead = m + _ROWS_AHEAD
        if ahead < found and keys_M[ahead] >= 0:
            prefetch_row(rows + (keys_M[ahead] & RANK_MASK) * row_bytes, row_bytes)
        if keys_M[m] >= 0:
            write_row(call, rows + (keys_M[m] & RANK_MASK) * row_bytes, target + m * out_bytes)
        else:
            zero_bytes(target + m * out_bytes, out_bytes)


@kernel
def serve_ngrams(call, tokens_MN, out, ids_M, keys_M, miss_M, found_M):
    """IDs, row keys (-1: not stored) and rows of M n-grams of N tokens, which are found; returns how many rows have
    still to be read.

    Those are at miss[:absent], and their rows of `out` (C-contiguous) are left as they are; elsewhere zeros where there
    is no key. A call that leaves none is counted. -1: a page of the index is bad; some rows may have been written, and
    counted as hits.
    """
    count = tokens_MN.shape[0]
    layers, ring, held = layers_of(call), room_for_ring(), np.empty(BLOCK, np.int64)
    target = np.int64(out.ctypes.data)
    absent = np.int64(0)
    found = _find(call, layers, tokens_MN, np.int64(0), ids_M, keys_M, found_M, ring)
    begin = np.int64(0)
    while begin < count:
        if found < 0:
            return np.int64(-1)
        end = found
        if found < count:
            found = _find(call, layers, tokens_MN, found, ids_M, keys_M, found_M, ring)
        if call[RESIDENT] != 0:
            _write(call, keys_M, begin, end, max(found, end), target)
        else:
            for block in range(begin, end, BLOCK):
                absent = serve_block(call[STATE], call, keys_M[:end], block, target, miss_M, absent, held)
        begin = end
    if absent == 0:
        num_found = 0
        for m in range(count):
            num_found += found_M[m]
        add_call(call, count, num_found)
    return absent
