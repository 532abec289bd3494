"""Rows from anywhere in memory into their stored layout, without the GIL. Meaning: kernels/reference/packing.py.

Sorted rows lie all over memory, so each one is a few cache misses: its first lines are asked for some rows ahead.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import checksum32
from ngramstore.kernels.native.memory import copy_bytes, prefetch

_AHEAD = 8  # rows
_LINES = 4  # the processor goes on by itself from there


@inline
def _ask(addresses_M, m, row_bytes):
    if m < addresses_M.shape[0]:
        for line in range(min(_LINES, (row_bytes + 63) // 64)):
            prefetch(addresses_M[m] + 64 * line)


@inline
def _put_checksum(out, at, value):
    for byte in range(4):
        out[at + byte] = np.uint8((value >> np.uint32(8 * byte)) & np.uint32(255))


@kernel
def gather_rows(addresses_M, row_bytes, out):
    """Rows end to end: out[m * row_bytes :] = row_bytes bytes at addresses[m]."""
    base = np.int64(out.ctypes.data)
    for m in range(addresses_M.shape[0]):
        _ask(addresses_M, m + _AHEAD, row_bytes)
        copy_bytes(base + m * row_bytes, addresses_M[m], row_bytes)


@kernel
def store_rows(addresses_M, row_bytes, seeds_M, out, sums_M):
    """Rows as an uncompressed layer stores them: each one's bytes and its checksum, which is also sums[m]."""
    base = np.int64(out.ctypes.data)
    size = row_bytes + 4
    for m in range(addresses_M.shape[0]):
        _ask(addresses_M, m + _AHEAD, row_bytes)
        copy_bytes(base + m * size, addresses_M[m], row_bytes)
        sums_M[m] = checksum32(base + m * size, row_bytes, seeds_M[m])
        _put_checksum(out, m * size + row_bytes, sums_M[m])


@kernel
def store_frames(frames, sizes_M, rows, row_bytes, seeds_M, out, lengths_M, sums_M):
    """Rows as a compressed layer stores them: the frame, or the row where that is not larger, and the checksum of it.

    frames: all frames end to end, sizes[m] bytes each. rows: all rows end to end. lengths[m] = stored bytes. Returns the
    bytes written to `out`.
    """
    base = np.int64(out.ctypes.data)
    frame_at = np.int64(frames.ctypes.data)
    row_at = np.int64(rows.ctypes.data)
    at = np.int64(0)
    for m in range(sizes_M.shape[0]):
        if sizes_M[m] < row_bytes:
            lengths_M[m] = sizes_M[m]
            copy_bytes(base + at, frame_at, sizes_M[m])
        else:
            lengths_M[m] = row_bytes
            copy_bytes(base + at, row_at + m * row_bytes, row_bytes)
        frame_at += sizes_M[m]
        sums_M[m] = checksum32(base + at, lengths_M[m], seeds_M[m])
        _put_checksum(out, at + lengths_M[m], sums_M[m])
        at += lengths_M[m] + 4
    return at
