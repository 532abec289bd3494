"""What reading stored rows means: find each row's place, read it, compare the checksum behind it.

Shapes: U rows to read.
"""

from __future__ import annotations

import os

import numpy as np

from ngramstore.kernels.native.index import RANK_BITS, ROW_BYTES, ROWS_FD, SERIAL
from ngramstore.kernels.reference.hashing import xxh64
from ngramstore.kernels.reference.index import row_place

GOOD, CUT_SHORT, BAD_CHECKSUM, BAD_INDEX_PAGE = 0, 1, 2, 3


def read_rows(
    layers: np.ndarray,
    keys_U: np.ndarray,
    seeds_U: np.ndarray,
    slot_bytes: int,
    hint: bool,
    staging: np.ndarray,
    lengths_U: np.ndarray,
    status_U: np.ndarray,
) -> int:
    """Stored bytes of U rows -> staging[u * slot_bytes :], with the checksum behind each. Returns how many are not good.

    lengths[u] = stored bytes without the checksum; status[u] = GOOD or what is wrong. A row whose place is not known
    leaves its length alone. `hint` changes no result.
    """
    line_of = {int(serial): line for line, serial in reversed(list(enumerate(layers[:, SERIAL])))}
    for u, key in enumerate(keys_U.tolist()):
        line = line_of[key >> RANK_BITS]
        layer = layers[line]
        place, size, bad_page = row_place(layers, line, key & ((1 << RANK_BITS) - 1))
        if bad_page >= 0 or size > layer[ROW_BYTES] or place < 0:
            status_U[u] = BAD_INDEX_PAGE
            continue
        lengths_U[u] = size
        data = np.frombuffer(os.pread(int(layer[ROWS_FD]), size + 4, place), np.uint8)
        staging[u * slot_bytes : u * slot_bytes + len(data)] = data
        if len(data) < size + 4:
            status_U[u] = CUT_SHORT
        elif xxh64(data, 0, size, int(seeds_U[u])) & 0xFFFFFFFF != int.from_bytes(data[size:], "little"):
            status_U[u] = BAD_CHECKSUM
        else:
            status_U[u] = GOOD
    return int(np.count_nonzero(status_U))
