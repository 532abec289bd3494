"""What reading stored rows means: find each row's place, read it, compare the checksum behind it.

Shapes: U rows to read.
"""

from __future__ import annotations

import os

import numpy as np

from ngramstore.kernels.native.index import (
    FIRST_BYTES,
    FIRST_RANK,
    NUM_ROWS,
    RANK_BITS,
    RANK_MASK,
    ROW_BYTES,
    ROWS_DATA_AT,
    ROWS_FD,
    SECOND_AT,
    SECOND_FD,
    SERIAL,
    SUMS_AT,
    SUMS_FD,
)
from ngramstore.kernels.reference.hashing import xxh64
from ngramstore.kernels.reference.index import row_place

GOOD, CUT_SHORT, BAD_CHECKSUM, BAD_INDEX_PAGE = 0, 1, 2, 3


def read_rows(
    layers: np.ndarray,
    keys_U: np.ndarray,
    seeds_U: np.ndarray,
    slot_bytes: int,
    staging: np.ndarray,
    lengths_U: np.ndarray,
    status_U: np.ndarray,
) -> tuple[int, int, int]:
    """Stored bytes of U rows -> staging[u * slot_bytes :], with the checksum behind each.

    Returns how many are not good, how many of the others are compressed, and the bytes of all whose place is known, with their
    checksums. -1 bad: a key is of no layer here, and nothing was read.

    lengths[u] = stored bytes without the checksum; status[u] = GOOD or what is wrong. A row whose place is not known
    leaves its length alone. Rows read in place without checksums are not checked.
    """
    if not np.isin(keys_U >> RANK_BITS, layers[:, SERIAL]).all():
        return -1, 0, 0
    num_packed = num_bytes = 0
    for u, key in enumerate(keys_U.tolist()):
        rank = key & RANK_MASK
        line = next(line for line, layer in enumerate(layers.tolist()) if _holds(layer, key >> RANK_BITS, rank))
        layer = layers[line]
        if layer[FIRST_BYTES]:
            lengths_U[u] = layer[ROW_BYTES]
            slot = staging[u * slot_bytes : (u + 1) * slot_bytes]
            status_U[u] = _read_in_place(layer.tolist(), rank, int(seeds_U[u]), slot)
            num_bytes += int(layer[ROW_BYTES]) + (4 if layer[SUMS_FD] >= 0 else 0)
            continue
        place, size, bad_page = row_place(layers, line, rank)
        if bad_page >= 0 or size > layer[ROW_BYTES] or place < 0:
            status_U[u] = BAD_INDEX_PAGE
            continue
        lengths_U[u] = size
        num_bytes += size + 4
        data = np.frombuffer(os.pread(int(layer[ROWS_FD]), size + 4, place), np.uint8)
        staging[u * slot_bytes : u * slot_bytes + len(data)] = data
        if len(data) < size + 4:
            status_U[u] = CUT_SHORT
        elif xxh64(data, 0, size, int(seeds_U[u])) & 0xFFFFFFFF != int.from_bytes(data[size:], "little"):
            status_U[u] = BAD_CHECKSUM
        else:
            status_U[u] = GOOD
            num_packed += int(size < layer[ROW_BYTES])
    return int(np.count_nonzero(status_U)), num_packed, num_bytes


def _holds(layer: list[int], serial: int, rank: int) -> bool:
    """Whether a line is of this serial and, if it is a segment, has this rank."""
    is_here = not layer[FIRST_BYTES] or 0 <= rank - layer[FIRST_RANK] < layer[NUM_ROWS]
    return layer[SERIAL] == serial and is_here


def _read_in_place(layer: list[int], rank: int, seed: int, slot: np.ndarray) -> int:
    """One row of a segment: its pieces and, where there are checksums, its checksum, one behind the other in the slot."""
    row_bytes, first, i = layer[ROW_BYTES], layer[FIRST_BYTES], rank - layer[FIRST_RANK]
    pieces = [(layer[ROWS_FD], first, layer[ROWS_DATA_AT])]
    if row_bytes > first:
        pieces.append((layer[SECOND_FD], row_bytes - first, layer[SECOND_AT]))
    if layer[SUMS_FD] >= 0:
        pieces.append((layer[SUMS_FD], 4, layer[SUMS_AT]))
    at = 0
    for fd, size, begin in pieces:
        data = np.frombuffer(os.pread(fd, size, begin + i * size), np.uint8)
        slot[at : at + len(data)] = data
        if len(data) < size:
            return CUT_SHORT
        at += size
    if layer[SUMS_FD] < 0:
        return GOOD
    wanted = int.from_bytes(slot[row_bytes : row_bytes + 4].tobytes(), "little")
    return GOOD if xxh64(slot, 0, row_bytes, seed) & 0xFFFFFFFF == wanted else BAD_CHECKSUM
