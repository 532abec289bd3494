"""Reading stored rows without the GIL: hint every page of a batch, then read, then check. Meaning: kernels/reference/rows.py.

Queue depth is what makes a cold batch fast: all reads are under way before the first is waited for.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.hashing import checksum32
from ngramstore.kernels.native.index import RANK_BITS, ROW_BYTES, ROWS_FD, SERIAL, row_place
from ngramstore.kernels.native.memory import HAS_READ_HINT, WILLNEED, load_u32, pread

if HAS_READ_HINT:
    from ngramstore.kernels.native.memory import posix_fadvise
else:

    def posix_fadvise(fd, offset, length, advice):
        """Not on this platform; never called."""
        return 0


GOOD, CUT_SHORT, BAD_CHECKSUM, BAD_INDEX_PAGE = 0, 1, 2, 3
_RANK_MASK = (1 << RANK_BITS) - 1


@kernel
def read_rows(layers, keys_U, seeds_U, slot_bytes, hint, staging, lengths_U, status_U):
    """Stored bytes of U rows -> staging[u * slot_bytes :], checked against the checksum behind each.

    keys: row keys of file layers. seeds: what each checksum is seeded with (the ID). hint: ask for all pages first.
    lengths[u] = stored bytes; status[u] = GOOD or what is wrong. Returns how many are not good.
    """
    base = np.int64(staging.ctypes.data)
    count = keys_U.shape[0]
    lines = np.empty(count, np.int8)
    places = np.empty(count, np.int64)
    faults = 0
    for u in range(count):
        status_U[u] = GOOD
        serial = keys_U[u] >> RANK_BITS
        line = 0
        while layers[line, SERIAL] != serial:
            line += 1
        lines[u] = line
        place, size, bad = row_place(layers, line, keys_U[u] & _RANK_MASK)
        if bad >= 0 or size > layers[line, ROW_BYTES] or place < 0:
            status_U[u] = BAD_INDEX_PAGE
            faults += 1
            continue
        places[u] = place
        lengths_U[u] = size
        if HAS_READ_HINT and hint:
            posix_fadvise(np.int32(layers[line, ROWS_FD]), place, size + 4, np.int32(WILLNEED))
    for u in range(count):
        if status_U[u] != GOOD:
            continue
        fd = np.int32(layers[lines[u], ROWS_FD])
        target = base + u * slot_bytes
        wanted = lengths_U[u] + 4
        done = np.int64(0)
        while done < wanted:
            got = pread(fd, target + done, np.uint64(wanted - done), places[u] + done)
            if got <= 0:
                break
            done += got
        if done < wanted:
            status_U[u] = CUT_SHORT
            faults += 1
        elif checksum32(target, lengths_U[u], seeds_U[u]) != load_u32(target + lengths_U[u]):
            status_U[u] = BAD_CHECKSUM
            faults += 1
    return faults
