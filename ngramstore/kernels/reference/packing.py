"""What packing means: rows given by their addresses, written as a rows file stores them.

Whoever passes addresses keeps the memory alive and has checked its bounds.

Shapes: M rows.
"""

from __future__ import annotations

import ctypes

import numpy as np

from ngramstore.kernels.reference.hashing import xxh64


def gather_rows(addresses_M: np.ndarray, row_bytes: int, out: np.ndarray) -> None:
    """Rows end to end: out[m * row_bytes :] = row_bytes bytes at addresses[m]."""
    for m, address in enumerate(addresses_M.tolist()):
        out[m * row_bytes : (m + 1) * row_bytes] = np.frombuffer(ctypes.string_at(address, row_bytes), np.uint8)


def store_rows(
    addresses_M: np.ndarray, row_bytes: int, seeds_M: np.ndarray, out: np.ndarray, sums_M: np.ndarray
) -> None:
    """Rows as an uncompressed layer stores them: each one's bytes and its checksum, which is also sums[m]."""
    for m, address in enumerate(addresses_M.tolist()):
        stored = out[m * (row_bytes + 4) :]
        stored[:row_bytes] = np.frombuffer(ctypes.string_at(address, row_bytes), np.uint8)
        sums_M[m] = xxh64(stored, 0, row_bytes, int(seeds_M[m])) & 0xFFFFFFFF
        stored[row_bytes : row_bytes + 4] = sums_M[m : m + 1].astype("<u4").view(np.uint8)


def store_frames(
    frames: np.ndarray,
    sizes_M: np.ndarray,
    rows: np.ndarray,
    row_bytes: int,
    seeds_M: np.ndarray,
    out: np.ndarray,
    lengths_M: np.ndarray,
    sums_M: np.ndarray,
) -> int:
    """Rows as a compressed layer stores them: the frame, or the row where that is not larger, and the checksum of it.

    frames: all frames end to end, sizes[m] bytes each. rows: all rows end to end. lengths[m] = stored bytes. Returns the
    bytes written to `out`.
    """
    starts = np.cumsum(sizes_M) - sizes_M
    at = 0
    for m, size in enumerate(sizes_M.tolist()):
        frame, row = frames[starts[m] : starts[m] + size], rows[m * row_bytes : (m + 1) * row_bytes]
        stored = frame if size < row_bytes else row
        lengths_M[m] = len(stored)
        sums_M[m] = xxh64(stored, 0, len(stored), int(seeds_M[m])) & 0xFFFFFFFF
        piece = np.concatenate([stored, sums_M[m : m + 1].astype("<u4").view(np.uint8)])
        out[at : at + len(piece)] = piece
        at += len(piece)
    return at
