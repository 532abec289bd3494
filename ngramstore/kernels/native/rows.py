"""Reading stored rows without the GIL: hint every page of a batch, then read, then check. Meaning: kernels/reference/rows.py.

Queue depth is what makes a cold batch fast: all reads are under way before the first is waited for.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import checksum32
from ngramstore.kernels.native.index import (
    FIRST_BYTES,
    FIRST_RANK,
    NUM_ROWS,
    RANK_BITS,
    ROW_BYTES,
    ROWS_DATA_AT,
    ROWS_FD,
    SECOND_AT,
    SECOND_FD,
    SERIAL,
    SUMS_AT,
    SUMS_FD,
    row_place,
)
from ngramstore.kernels.native.memory import HAS_READ_HINT, WILLNEED, load_u32, pread

if HAS_READ_HINT:
    from ngramstore.kernels.native.memory import posix_fadvise
else:

    def posix_fadvise(fd, offset, length, advice):
        """Not on this platform; never called."""
        return 0


GOOD, CUT_SHORT, BAD_CHECKSUM, BAD_INDEX_PAGE = 0, 1, 2, 3
_RANK_MASK = (1 << RANK_BITS) - 1


@inline
def _read(fd, target, size, place):
    """All of `size` bytes at a file position -> an address; False where the file ends before, or cannot be read."""
    done = np.int64(0)
    while done < size:
        got = pread(np.int32(fd), target + done, np.uint64(size - done), place + done)
        if got <= 0:
            break
        done += got
    return done == size


@inline
def _hint(fd, place, size):
    """Ask for bytes that will be read soon."""
    if HAS_READ_HINT:
        posix_fadvise(np.int32(fd), place, size, np.int32(WILLNEED))


@inline
def _line_of(layers, key):
    """The line of a row key: of its serial, and in a layer of segments of its rank."""
    line = 0
    while layers[line, SERIAL] != key >> RANK_BITS:
        line += 1
    rank = key & _RANK_MASK
    while layers[line, FIRST_BYTES] > 0 and rank >= layers[line, FIRST_RANK] + layers[line, NUM_ROWS]:
        line += 1
    return line


@kernel
def read_rows(layers, keys_U, seeds_U, slot_bytes, hint, staging, lengths_U, status_U):
    """Stored bytes of U rows -> staging[u * slot_bytes :], checked against the checksum behind each.

    keys: row keys of file layers. seeds: what each checksum is seeded with (the ID). hint: ask for all pages first.
    lengths[u] = stored bytes; status[u] = GOOD or what is wrong. Rows read in place without checksums are not checked.
    Returns how many are not good.
    """
    base = np.int64(staging.ctypes.data)
    count = keys_U.shape[0]
    lines = np.empty(count, np.int32)
    places = np.empty(count, np.int64)
    faults = 0
    for u in range(count):
        status_U[u] = GOOD
        line = _line_of(layers, keys_U[u])
        lines[u] = line
        rank = keys_U[u] & _RANK_MASK
        first = layers[line, FIRST_BYTES]
        if first > 0:
            places[u] = rank - layers[line, FIRST_RANK]
            lengths_U[u] = layers[line, ROW_BYTES]
            rest = lengths_U[u] - first
            if hint:
                _hint(layers[line, ROWS_FD], layers[line, ROWS_DATA_AT] + places[u] * first, first)
                if rest > 0:
                    _hint(layers[line, SECOND_FD], layers[line, SECOND_AT] + places[u] * rest, rest)
                if layers[line, SUMS_FD] >= 0:
                    _hint(layers[line, SUMS_FD], layers[line, SUMS_AT] + 4 * places[u], 4)
            continue
        place, size, bad = row_place(layers, line, rank)
        if bad >= 0 or size > layers[line, ROW_BYTES] or place < 0:
            status_U[u] = BAD_INDEX_PAGE
            faults += 1
            continue
        places[u] = place
        lengths_U[u] = size
        if hint:
            _hint(layers[line, ROWS_FD], place, size + 4)
    for u in range(count):
        if status_U[u] != GOOD:
            continue
        line = lines[u]
        target = base + u * slot_bytes
        size = lengths_U[u]
        first = layers[line, FIRST_BYTES]
        is_checked = True
        if first > 0:
            place = places[u]
            rest = size - first
            is_read = _read(layers[line, ROWS_FD], target, first, layers[line, ROWS_DATA_AT] + place * first)
            if is_read and rest > 0:
                is_read = _read(layers[line, SECOND_FD], target + first, rest, layers[line, SECOND_AT] + place * rest)
            is_checked = layers[line, SUMS_FD] >= 0
            if is_read and is_checked:
                is_read = _read(layers[line, SUMS_FD], target + size, 4, layers[line, SUMS_AT] + 4 * place)
        else:
            is_read = _read(layers[line, ROWS_FD], target, size + 4, places[u])
        if not is_read:
            status_U[u] = CUT_SHORT
            faults += 1
        elif is_checked and checksum32(target, size, seeds_U[u]) != load_u32(target + size):
            status_U[u] = BAD_CHECKSUM
            faults += 1
    return faults
