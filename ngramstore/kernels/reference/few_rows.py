"""What the kernel for a handful of rows by number means: out of the cache, the rest read, checked and kept."""

from __future__ import annotations

import os

import numpy as np

from ngramstore.kernels.native.cache_table import NUM_STATE
from ngramstore.kernels.native.call import COUNTS, RESIDENT, STATE
from ngramstore.kernels.native.few_rows import FIRST_KEY, NUM_ROWS, ROWS_DATA_AT, ROWS_FD
from ngramstore.kernels.reference.cache import hold_those_here, insert, let_go, memory
from ngramstore.kernels.reference.dequantize import OUT_BYTES, ROW_BYTES, write_row
from ngramstore.kernels.reference.hashing import xxh64

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


def serve_numbers(call: np.ndarray, numbers_M: np.ndarray, out: np.ndarray) -> int:
    """Rows by number, at most MOST_ROWS -> out (C-contiguous). Returns how many are read, each of them once and kept.

    -1: a number is out of range, or a row is neither cached nor readable at once, or fails its checksum. Nothing is
    counted then, and nothing kept; rows that are in the cache are its most recently used.
    """
    if ((numbers_M < 0) | (numbers_M >= call[NUM_ROWS])).any():
        return -1
    if call[RESIDENT]:
        for m, number in enumerate(numbers_M.tolist()):
            source = int(call[RESIDENT]) + number * int(call[ROW_BYTES])
            write_row(call, source, out.ctypes.data + m * int(call[OUT_BYTES]))
        memory(int(call[COUNTS]), 24).view(np.int64)[:] += [1, len(numbers_M), len(numbers_M)]
        return 0
    keys_M, count, state = numbers_M + call[FIRST_KEY], len(numbers_M), int(call[STATE])
    held_M = np.full(count, -1)
    reader = hold_those_here(state, keys_M, count, held_M) if state else 0
    hits = int(np.count_nonzero(held_M >= 0))
    if state and hits < count:  # native lets go before it allocates, and looks again
        reader = hold_those_here(state, keys_M, count, held_M)
    absent = list(dict.fromkeys(numbers_M[held_M < 0].tolist()))
    stored = [row for number in absent if (row := _read(call, number)) is not None]
    if len(stored) < len(absent):
        return -1
    staging = np.concatenate([*stored, np.empty(0, np.uint8)])
    slot_bytes = int(call[ROW_BYTES]) + 4
    for m, (number, held) in enumerate(zip(numbers_M.tolist(), held_M.tolist(), strict=True)):
        source = held if held >= 0 else staging.ctypes.data + absent.index(number) * slot_bytes
        write_row(call, source, out.ctypes.data + m * int(call[OUT_BYTES]))
    if state:
        let_go(state, reader, hits, count - hits)
        keys_U, at_U = np.array(absent, np.int64) + call[FIRST_KEY], np.arange(len(absent)) * slot_bytes
        insert(memory(state, 8 * NUM_STATE).view(np.int64), staging, at_U, keys_U)
    memory(int(call[COUNTS]), 40).view(np.int64)[:] += [1, count, count, len(absent), len(absent) * slot_bytes]
    return len(absent)


def _read(call: np.ndarray, number: int) -> np.ndarray | None:
    """A row and its checksum; None where it has to be waited for, or is not good."""
    row_bytes, fd = int(call[ROW_BYTES]), int(call[ROWS_FD])
    if fd < 0:
        return None
    stored = np.empty(row_bytes + 4, np.uint8)
    place = int(call[ROWS_DATA_AT]) + number * len(stored)
    try:
        size = os.preadv(fd, [stored.data], place, _NOWAIT)
    except OSError:
        return None
    wanted = int.from_bytes(stored[row_bytes:].tobytes(), "little")
    is_good = size == len(stored) and xxh64(stored, 0, row_bytes, number) & 0xFFFFFFFF == wanted
    return stored if is_good else None
