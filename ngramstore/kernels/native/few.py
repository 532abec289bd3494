"""A handful of look-ups whose rows are all in memory, in one call. Meaning: kernels/reference/few.py.

A call from Python costs more than its work here. CALL begins as kernels/native/call.py says; then come the address of
LAYERS, and what a search has to know.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.cache import serve_if_all_are_here
from ngramstore.kernels.native.call import NUM_COMMON, RESIDENT, STATE, add_call
from ngramstore.kernels.native.dequantize import OUT_BYTES, ROW_BYTES, write_row
from ngramstore.kernels.native.hashing import extend_state, seed_state
from ngramstore.kernels.native.index import NUM_COLUMNS, RANK_MASK
from ngramstore.kernels.native.memory import i64_array, zero_bytes
from ngramstore.kernels.native.probe import find, match, match_one

LAYERS, NUM_LAYERS = NUM_COMMON, NUM_COMMON + 1
SEED, MAX_N, LENGTHS_MASK, STOP_AT_MISS = NUM_COMMON + 2, NUM_COMMON + 3, NUM_COMMON + 4, NUM_COMMON + 5
NUM_CALL = NUM_COMMON + 6


@inline
def layers_of(call):
    """LAYERS, a line each."""
    return i64_array(call[LAYERS], call[NUM_LAYERS] * NUM_COLUMNS).reshape((call[NUM_LAYERS], NUM_COLUMNS))


@inline
def _serve(call, keys_M, count, target):
    """Rows of `count` keys -> target, zeros for keys below 0; False, and nothing has changed, where one is not in the cache."""
    if call[RESIDENT] == 0:
        return serve_if_all_are_here(call[STATE], call, keys_M, count, target)
    for m in range(count):
        row = target + m * call[OUT_BYTES]
        if keys_M[m] >= 0:
            write_row(call, call[RESIDENT] + (keys_M[m] & RANK_MASK) * call[ROW_BYTES], row)
        else:
            zero_bytes(row, call[OUT_BYTES])
    return True


@kernel
def serve_ngrams(call, tokens_MN, out, found_M):
    """Rows of M n-grams of N tokens -> out (C-contiguous, zeros where not stored) and found; returns how many.

    -1: one of them is not in the cache, or a page of the index is bad; nothing has changed.
    """
    count = tokens_MN.shape[0]
    ids_M = np.empty(count, np.uint64)
    keys_M = np.empty(count, np.int64)
    start = seed_state(np.uint64(call[SEED]))
    for m in range(count):
        state = start
        for n in range(tokens_MN.shape[1] - 1, -1, -1):
            state = extend_state(state, tokens_MN[m, n])
        ids_M[m] = state
    if find(layers_of(call), ids_M, keys_M) < count:
        return -1
    if not _serve(call, keys_M, count, np.int64(out.ctypes.data)):
        return -1
    num_found = 0
    for m in range(count):
        found_M[m] = keys_M[m] >= 0
        num_found += found_M[m]
    add_call(call, count, num_found)
    return num_found


@kernel
def serve_tail(call, tokens_BS, room_BT, out, lengths_BT):
    """Longest match at the last T of S tokens of B lines -> rows in out (C-contiguous) and lengths; returns how many matched.

    room: as in `match`; it does not reach before a line. -1: as in `serve_ngrams`; -2: room reaches before a line.
    """
    num_lines, width = tokens_BS.shape
    last = room_BT.shape[1]
    first = width - last
    max_n = call[MAX_N]
    count = num_lines * last
    # Positions that are not asked for have no room: `match` passes them by.
    tokens_W, room_W = np.empty(num_lines * width, np.uint32), np.zeros(num_lines * width, np.uint8)
    for b in range(num_lines):
        for s in range(width):
            tokens_W[b * width + s] = tokens_BS[b, s]
        for t in range(last):
            room = min(np.int64(room_BT[b, t]), max_n)
            if room > first + t + 1:
                return -2
            room_W[b * width + first + t] = room
    keys_W, ids_W = np.empty(num_lines * width, np.int64), np.empty(num_lines * width, np.uint64)
    lengths_W = np.empty(num_lines * width, np.uint8)
    done = match(
        layers_of(call), tokens_W, room_W, np.uint64(call[SEED]), call[LENGTHS_MASK], call[STOP_AT_MISS] != 0,
        keys_W, ids_W, lengths_W,
    )  # fmt: skip
    if done < num_lines * width:
        return -1
    keys_M = np.empty(count, np.int64)
    for b in range(num_lines):
        for t in range(last):
            keys_M[b * last + t] = keys_W[b * width + first + t]
    if not _serve(call, keys_M, count, np.int64(out.ctypes.data)):
        return -1
    num_found = 0
    for b in range(num_lines):
        for t in range(last):
            length = lengths_W[b * width + first + t]
            lengths_BT[b, t] = length
            num_found += length > 0
    add_call(call, count, num_found)
    return num_found


@kernel
def serve_one(call, tokens_S, end, room, out):
    """Longest match that ends at tokens[end - 1], of `room` tokens at most, room <= end <= S -> its row in out; returns
    its length.

    -1: as in `serve_ngrams`.
    """
    key, length = match_one(
        layers_of(call), tokens_S, end, min(room, call[MAX_N]), np.uint64(call[SEED]), call[LENGTHS_MASK], call[STOP_AT_MISS] != 0
    )  # fmt: skip
    if key < -1:
        return -1
    keys_M = np.empty(1, np.int64)
    keys_M[0] = key
    if not _serve(call, keys_M, 1, np.int64(out.ctypes.data)):
        return -1
    add_call(call, 1, length > 0)
    return length
