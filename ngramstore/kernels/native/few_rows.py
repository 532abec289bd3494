"""A handful of rows by number in one call: out of the row cache, or read where no disk is waited for.
Meaning: kernels/reference/few_rows.py.

CALL begins as kernels/native/call.py says; of the counters the fourth and the fifth are rows and bytes read. Row i is
ROW_BYTES and its checksum at ROWS_DATA_AT + i * (ROW_BYTES + 4) of ROWS_FD; ROWS_FD is -1 where rows lie otherwise, and
are not read here.

Shapes: M wanted rows, U rows read.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.cache import hold_those_here, insert, let_go
from ngramstore.kernels.native.cache_table import NUM_STATE, stop_reading
from ngramstore.kernels.native.call import COUNTS, NUM_COMMON, RESIDENT, STATE, add_call
from ngramstore.kernels.native.dequantize import OUT_BYTES, ROW_BYTES, write_row
from ngramstore.kernels.native.distinct import distinct
from ngramstore.kernels.native.hashing import checksum32
from ngramstore.kernels.native.memory import add_atomic, i64_array, load_u32
from ngramstore.kernels.native.rows import read_at_once

NUM_ROWS, FIRST_KEY, ROWS_FD, ROWS_DATA_AT = NUM_COMMON, NUM_COMMON + 1, NUM_COMMON + 2, NUM_COMMON + 3
NUM_CALL = NUM_COMMON + 4
MOST_ROWS = 64
"""In one call; as many as a block of the cache has."""
_CHECKSUM_BYTES = 4


@inline
def _read(call, keys_U, count, staging, pair):
    """Rows of keys, checked, each with its checksum behind it; False where one has to be waited for, or is not good."""
    row_bytes, first_key = call[ROW_BYTES], call[FIRST_KEY]
    size = row_bytes + _CHECKSUM_BYTES
    target = np.int64(staging.ctypes.data)
    for u in range(count):
        rank = keys_U[u] - first_key
        if not read_at_once(call[ROWS_FD], target, size, call[ROWS_DATA_AT] + rank * size, np.int64(pair.ctypes.data)):
            return False
        if checksum32(target, row_bytes, np.uint64(rank)) != load_u32(target + row_bytes):
            return False
        target += size
    return True


@kernel
def serve_numbers(call, numbers_M, out):
    """Rows by number, at most MOST_ROWS -> out (C-contiguous). Returns how many are read, each of them once and kept.

    -1: a number is out of range, or a row is neither cached nor readable at once, or fails its checksum. Nothing is
    counted then, and nothing kept; rows that are in the cache are its most recently used.
    """
    count = np.int64(numbers_M.shape[0])
    state, target = call[STATE], np.int64(out.ctypes.data)
    if call[RESIDENT] != 0:
        for m in range(count):
            if numbers_M[m] < 0 or numbers_M[m] >= call[NUM_ROWS]:
                return -1
        for m in range(count):
            write_row(call, call[RESIDENT] + numbers_M[m] * call[ROW_BYTES], target + m * call[OUT_BYTES])
        add_call(call, count, count)
        return 0
    keys_M, held_M = np.empty(count, np.int64), np.empty(count, np.int64)
    for m in range(count):
        number = numbers_M[m]
        if number < 0 or number >= call[NUM_ROWS]:
            return -1
        keys_M[m] = call[FIRST_KEY] + number
        held_M[m] = -1
    reader = np.int64(0)
    hits = np.int64(0)
    if state != 0:
        reader = hold_those_here(state, keys_M, count, held_M)
        for m in range(count):
            hits += held_M[m] >= 0
    if hits == count:
        for m in range(count):
            write_row(call, held_M[m], target + m * call[OUT_BYTES])
        if state != 0:
            let_go(state, reader, hits, 0)
        add_call(call, count, count)
        return 0
    if state != 0:
        stop_reading(state, reader)  # an allocation that fails must not leave rows held
    slot_bytes = call[ROW_BYTES] + _CHECKSUM_BYTES
    absent_M, place_M = np.empty(count, np.int64), np.empty(count, np.int32)
    keys_U, seeds_U, seeds_M = np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.uint64)
    seen, staging, pair = (
        np.zeros(2 * MOST_ROWS, np.int32),
        np.empty(count * slot_bytes, np.uint8),
        np.empty(2, np.int64),
    )
    if state != 0:
        reader = hold_those_here(state, keys_M, count, held_M)
    hits = np.int64(0)
    for m in range(count):
        hits += held_M[m] >= 0
        absent_M[m] = keys_M[m] if held_M[m] < 0 else -1
        seeds_M[m] = numbers_M[m]
    num_read = distinct(seen, absent_M, seeds_M, place_M, keys_U, seeds_U)
    if call[ROWS_FD] < 0 or not _read(call, keys_U, num_read, staging, pair):
        if state != 0:
            let_go(state, reader, 0, 0)
        return -1
    source = np.int64(staging.ctypes.data)
    for m in range(count):
        row = held_M[m] if held_M[m] >= 0 else source + place_M[m] * slot_bytes
        write_row(call, row, target + m * call[OUT_BYTES])
    if state != 0:
        let_go(state, reader, hits, count - hits)
        at_U = np.empty(num_read, np.int64)
        for u in range(num_read):
            at_U[u] = u * slot_bytes
        insert(i64_array(state, NUM_STATE), staging, at_U, keys_U[:num_read])
    add_atomic(call[COUNTS] + 24, num_read)
    add_atomic(call[COUNTS] + 32, num_read * slot_bytes)
    add_call(call, count, count)
    return num_read
