"""Reading stored rows without the GIL: hint the pages of a batch, then read, then check. Meaning: kernels/reference/rows.py.

Queue depth is what makes a cold batch fast: all reads are under way before the first is waited for. As long as nothing has to be
waited for, nothing is hinted: rows in the page cache cost one system call, not two. Rows are taken in the order of the file: what
shares a page costs one call, and pages side by side are asked for as one.
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
    RANK_MASK,
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
from ngramstore.kernels.native.memory import (
    HAS_READ_AT_ONCE,
    HAS_READ_HINT,
    NOWAIT,
    WILLNEED,
    copy_bytes,
    load_u32,
    pread,
    store_i64,
)

if HAS_READ_HINT:
    from ngramstore.kernels.native.memory import posix_fadvise
else:

    def posix_fadvise(fd, offset, length, advice):
        """Not on this platform; never called."""
        return 0


GOOD, CUT_SHORT, BAD_CHECKSUM, BAD_INDEX_PAGE = 0, 1, 2, 3
_PIECES = 3  # of a row in place: codes, scales, checksum; a packed row is one
_PAGE_BITS = 12
_SPAN_BYTES = 1 << 16  # of one read
_HINT_BYTES = 1 << 20  # of one hint


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


if HAS_READ_AT_ONCE:
    from ngramstore.kernels.native.memory import preadv2

    @inline
    def read_at_once(fd, target, size, place, pair):
        """As `_read`, and False too where the disk would have to be waited for. pair: address of 16 bytes of scratch."""
        store_i64(pair, target)
        store_i64(pair + 8, size)
        return preadv2(np.int32(fd), pair, np.int32(1), place, np.int32(NOWAIT)) == size

else:

    @inline
    def read_at_once(fd, target, size, place, pair):
        """As `_read`: this system cannot tell whether it would wait."""
        return _read(fd, target, size, place)


@inline
def _line_from(layers, key, line):
    """The line of a row key: of its serial, and in a layer of segments of its rank; -1: no line has it.

    `line`: that of a smaller key, or 0.
    """
    left = layers.shape[0]
    while layers[line, SERIAL] != key >> RANK_BITS:
        left -= 1
        if left == 0:
            return -1
        line = line + 1 if line + 1 < layers.shape[0] else 0
    rank = key & RANK_MASK
    while layers[line, FIRST_BYTES] > 0 and rank >= layers[line, FIRST_RANK] + layers[line, NUM_ROWS]:
        line += 1
    return line


@inline
def _piece(layers, line, place, size, number):
    """(fd, position, bytes, offset in the slot) of one piece of a row; no bytes: the row has no such piece."""
    first = layers[line, FIRST_BYTES]
    if first == 0:
        return layers[line, ROWS_FD], place, size + 4 if number == 0 else np.int64(0), np.int64(0)
    if number == 0:
        return layers[line, ROWS_FD], layers[line, ROWS_DATA_AT] + place * first, first, np.int64(0)
    if number == 1:
        rest = size - first
        return layers[line, SECOND_FD], layers[line, SECOND_AT] + place * rest, rest, first
    checksum = np.int64(4) if layers[line, SUMS_FD] >= 0 else np.int64(0)
    return layers[line, SUMS_FD], layers[line, SUMS_AT] + 4 * place, checksum, size


@inline
def _run_end(layers, order, lines, places, lengths_U, status_U, i, number, reach, limit):
    """Where the run of pieces ends that begins with order[i]: (index behind it, end of its bytes in the file).

    A run is in one file, each piece beginning at most `reach` pages behind the page the one before it ends in.
    """
    u = order[i]
    fd, begin, size, _ = _piece(layers, lines[u], places[u], lengths_U[u], number)
    end = begin + size
    j = i + 1
    while j < order.shape[0]:
        u = order[j]
        if status_U[u] != GOOD:
            break
        other, at, size, _ = _piece(layers, lines[u], places[u], lengths_U[u], number)
        if size == 0 or other != fd or at < begin or max(end, at + size) - begin > limit:
            break
        if at >> _PAGE_BITS > ((end - 1) >> _PAGE_BITS) + reach:
            break
        end = max(end, at + size)
        j += 1
    return j, end


@inline
def _hint_from(layers, order, lines, places, lengths_U, status_U, i, number, pieces):
    """Ask for the pages of all pieces that come after, order[i]'s piece of that number the first."""
    while number < pieces:
        while i < order.shape[0]:
            u = order[i]
            size = np.int64(0)
            if status_U[u] == GOOD:
                fd, begin, size, _ = _piece(layers, lines[u], places[u], lengths_U[u], number)
            if size == 0:
                i += 1
                continue
            i, end = _run_end(layers, order, lines, places, lengths_U, status_U, i, number, 1, _HINT_BYTES)
            posix_fadvise(np.int32(fd), begin, end - begin, np.int32(WILLNEED))
        i = 0
        number += 1


@inline
def _place_rows(layers, keys_U, order, lines, places, lengths_U, status_U):
    """Line, place and length of each row, in that order; status GOOD or BAD_INDEX_PAGE. Returns how many pieces rows may have.

    0: a key is of no layer here.
    """
    pieces = 1
    line = 0
    for i in range(order.shape[0]):
        u = order[i]
        status_U[u] = GOOD
        line = _line_from(layers, keys_U[u], line)
        if line < 0:
            return 0
        lines[u] = line
        rank = keys_U[u] & RANK_MASK
        if layers[line, FIRST_BYTES] > 0:
            pieces = _PIECES
            places[u] = rank - layers[line, FIRST_RANK]
            lengths_U[u] = layers[line, ROW_BYTES]
            continue
        place, size, bad = row_place(layers, line, rank)
        if bad >= 0 or size > layers[line, ROW_BYTES] or place < 0:
            status_U[u] = BAD_INDEX_PAGE
            continue
        places[u] = place
        lengths_U[u] = size
    return pieces


@inline
def _read_pieces(layers, order, lines, places, lengths_U, status_U, base, slot_bytes, pieces, scratch, pair):
    """Read what `_place_rows` found: row u -> address base + u * slot_bytes; status CUT_SHORT where a file ends before.

    scratch: _SPAN_BYTES u8; pair: (2,) i64.
    """
    is_ahead = False  # whatever is still to be read has been asked for
    for number in range(pieces):
        i = 0
        while i < order.shape[0]:
            u = order[i]
            if status_U[u] != GOOD:
                i += 1
                continue
            fd, begin, size, inside = _piece(layers, lines[u], places[u], lengths_U[u], number)
            if size == 0:
                i += 1
                continue
            j, end = _run_end(layers, order, lines, places, lengths_U, status_U, i, number, 0, _SPAN_BYTES)
            is_run = j > i + 1
            run = np.int64(scratch.ctypes.data) if is_run else base + u * slot_bytes + inside
            is_read = False
            if not is_ahead:
                if HAS_READ_AT_ONCE:
                    is_read = read_at_once(fd, run, end - begin, begin, np.int64(pair.ctypes.data))
                if not is_read:
                    if HAS_READ_HINT:
                        _hint_from(layers, order, lines, places, lengths_U, status_U, i, number, pieces)
                    is_ahead = True
            if not is_read:
                is_read = _read(fd, run, end - begin, begin)
            for k in range(i, j):
                u = order[k]
                fd, place, size, inside = _piece(layers, lines[u], places[u], lengths_U[u], number)
                target = base + u * slot_bytes + inside
                if is_read:
                    if is_run:
                        copy_bytes(target, np.int64(scratch.ctypes.data) + place - begin, size)
                elif not _read(fd, target, size, place):  # in a run that a cut file does not hold whole
                    status_U[u] = CUT_SHORT
            i = j


@inline
def _check_rows(layers, lines, seeds_U, lengths_U, status_U, base, slot_bytes):
    """Compare checksums; status BAD_CHECKSUM where one differs. Returns what `read_rows` does."""
    num_bad, num_packed, num_bytes = 0, 0, np.int64(0)
    for u in range(lines.shape[0]):
        if status_U[u] == BAD_INDEX_PAGE:
            num_bad += 1
            continue
        num_bytes += lengths_U[u]
        if layers[lines[u], FIRST_BYTES] == 0 or layers[lines[u], SUMS_FD] >= 0:
            num_bytes += 4
            target = base + u * slot_bytes
            if status_U[u] == GOOD and checksum32(target, lengths_U[u], seeds_U[u]) != load_u32(target + lengths_U[u]):
                status_U[u] = BAD_CHECKSUM
        if status_U[u] != GOOD:
            num_bad += 1
        elif lengths_U[u] < layers[lines[u], ROW_BYTES]:
            num_packed += 1
    return num_bad, num_packed, num_bytes


@kernel
def read_rows(layers, keys_U, seeds_U, slot_bytes, staging, lengths_U, status_U):
    """Stored bytes of U rows -> staging[u * slot_bytes :], checked against the checksum behind each.

    keys: row keys of file layers. seeds: what each checksum is seeded with (the ID).
    lengths[u] = stored bytes; status[u] = GOOD or what is wrong. Rows read in place without checksums are not checked.
    Returns how many are not good, how many of the others are compressed, and the bytes of all whose place is known, with their
    checksums. -1 bad: a key is of no layer here, and nothing was read.
    """
    base = np.int64(staging.ctypes.data)
    count = keys_U.shape[0]
    lines = np.empty(count, np.int32)
    places = np.empty(count, np.int64)
    is_sorted = True
    for u in range(1, count):
        if keys_U[u] < keys_U[u - 1]:
            is_sorted = False
            break
    order = np.arange(count) if is_sorted else np.argsort(keys_U)
    pieces = _place_rows(layers, keys_U, order, lines, places, lengths_U, status_U)
    if pieces == 0:
        return -1, 0, np.int64(0)
    scratch = np.empty(_SPAN_BYTES, np.uint8)
    pair = np.empty(2, np.int64)
    _read_pieces(layers, order, lines, places, lengths_U, status_U, base, slot_bytes, pieces, scratch, pair)
    return _check_rows(layers, lines, seeds_U, lengths_U, status_U, base, slot_bytes)
