"""The planes of an index read without the GIL, each page checked before it is believed. Meaning: kernels/reference/index.py.

A store is a short list of layers, newest first: each a sorted set of IDs that either holds rows or, as a tombstone layer,
says that they are gone. LAYERS is an int64 table, one line a layer, columns below; addresses point into the mapped index
file, whose pages are verified here on first touch.

A row key is `serial << 40 | rank`. -1: absent. Below -1: a page of layer l failed its checksum: -2 - (page * 64 + l).

Where FIRST_BYTES is not 0, the line is a segment of rows read in place from files of others: NUM_ROWS rows from rank FIRST_RANK
on. A row is FIRST_BYTES at ROWS_DATA_AT + i * FIRST_BYTES of ROWS_FD, and the rest of ROW_BYTES likewise at SECOND_AT of
SECOND_FD; its checksum is u32 at SUMS_AT + 4 i of SUMS_FD, or nowhere (-1). Segments of one layer follow one another and
share a serial.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import checksum32
from ngramstore.kernels.native.memory import load_u8, load_u16, load_u32, load_u64, store_u8

NUM_ROWS = 0
BUCKET_BITS = 1
GROUP_BITS = 2
FILE_ADDRESS = 3
PAGE_OK_ADDRESS = 4
GROUPS_AT = 5
DIRECTORY_AT = 6
REMAINDERS_AT = 7
LOW_BITS_AT = 8
CHECKSUMS_AT = 9
IS_TOMBSTONE = 10
SERIAL = 11
OFFSETS_AT = 12
LENGTHS_AT = 13
ROWS_FD = 14
ROWS_DATA_AT = 15
ROW_BYTES = 16
FIRST_BYTES = 17
FIRST_RANK = 18
SECOND_FD = 19
SECOND_AT = 20
SUMS_FD = 21
SUMS_AT = 22
NUM_COLUMNS = 23
RANK_BITS = 40
RANK_MASK = (1 << RANK_BITS) - 1
MAX_LINES = 64  # of a table: a fault code holds page and line

PAGE_SHIFT = 12
_PAGE_BYTES = 4096


@inline
def page_fault(layers, line, first_byte, last_byte):
    """Verify the pages of a byte range not yet verified; -1 if all are good, else the bad page."""
    page = first_byte >> PAGE_SHIFT
    last = last_byte >> PAGE_SHIFT
    while page <= last:
        if load_u8(layers[line, PAGE_OK_ADDRESS] + page) == 0:
            start = layers[line, FILE_ADDRESS] + (page << PAGE_SHIFT)
            wanted = load_u32(layers[line, FILE_ADDRESS] + layers[line, CHECKSUMS_AT] + 4 * (page - 1))
            if checksum32(start, _PAGE_BYTES, np.uint64(page)) != wanted:
                return page
            store_u8(layers[line, PAGE_OK_ADDRESS] + page, np.uint8(1))
        page += 1
    return np.int64(-1)


@inline
def bucket_start(layers, line, bucket):
    group = bucket >> layers[line, GROUP_BITS]
    base = load_u64(layers[line, FILE_ADDRESS] + layers[line, GROUPS_AT] + 8 * group)
    return np.int64(base) + np.int64(load_u32(layers[line, FILE_ADDRESS] + layers[line, DIRECTORY_AT] + 4 * bucket))


@inline
def low_bits(layers, line, rank, width):
    bit = rank * width
    word = load_u64(layers[line, FILE_ADDRESS] + layers[line, LOW_BITS_AT] + (bit >> 3))
    return (word >> np.uint64(bit & 7)) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1))


@kernel
def ids_of_ranks(layers, line, first, ids_M):
    """ids[m] = ID of rank first + m, read back from the planes. Returns -1, or the first bad page."""
    count = ids_M.shape[0]
    if count == 0:
        return np.int64(-1)
    width = 32 - layers[line, BUCKET_BITS]
    bad = page_fault(layers, line, layers[line, GROUPS_AT], layers[line, REMAINDERS_AT] - 1)
    if bad < 0:
        bad = page_fault(
            layers, line, layers[line, REMAINDERS_AT] + 4 * first, layers[line, REMAINDERS_AT] + 4 * (first + count) - 1
        )
    if bad < 0 and width > 0:
        bad = page_fault(
            layers,
            line,
            layers[line, LOW_BITS_AT] + ((first * width) >> 3),
            layers[line, LOW_BITS_AT] + (((first + count - 1) * width) >> 3) + 7,
        )
    if bad >= 0:
        return bad
    low = np.int64(0)
    high = np.int64(1) << layers[line, BUCKET_BITS]
    while high - low > 1:  # last bucket that starts at or before `first`
        middle = (low + high) >> 1
        if bucket_start(layers, line, middle) <= first:
            low = middle
        else:
            high = middle
    bucket = low
    last_bucket = (np.int64(1) << layers[line, BUCKET_BITS]) - 1
    plane = layers[line, FILE_ADDRESS] + layers[line, REMAINDERS_AT]
    for m in range(count):
        rank = first + m
        while bucket < last_bucket and bucket_start(layers, line, bucket + 1) <= rank:
            bucket += 1
        identity = np.uint64(bucket) << np.uint64(64 - layers[line, BUCKET_BITS])
        identity |= np.uint64(load_u32(plane + 4 * rank)) << np.uint64(width)
        if width > 0:
            identity |= low_bits(layers, line, rank, width)
        ids_M[m] = identity
    return np.int64(-1)


@kernel
def pack_low_bits(ids_M, width, packed):
    """The last `width` bits of M IDs, packed from the lowest bit up, into a zeroed u8 buffer."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    pending = np.uint64(0)
    have = 0
    at = 0
    for m in range(ids_M.shape[0]):
        pending |= (ids_M[m] & mask) << np.uint64(have)
        have += width
        while have >= 8:
            packed[at] = np.uint8(pending & np.uint64(0xFF))
            pending >>= np.uint64(8)
            have -= 8
            at += 1
    if have > 0:
        packed[at] = np.uint8(pending & np.uint64(0xFF))


@inline
def row_place(layers, line, rank):
    """(file offset, stored bytes without the checksum, -1 or bad page) of a row."""
    if layers[line, OFFSETS_AT] == 0:
        return layers[line, ROWS_DATA_AT] + rank * (layers[line, ROW_BYTES] + 4), layers[line, ROW_BYTES], np.int64(-1)
    block = rank >> 6
    first = block << 6
    at = layers[line, OFFSETS_AT] + 8 * block
    bad = page_fault(layers, line, at, at + 7)
    if bad < 0:
        bad = page_fault(layers, line, layers[line, LENGTHS_AT] + 2 * first, layers[line, LENGTHS_AT] + 2 * rank + 1)
    if bad >= 0:
        return np.int64(0), np.int64(0), bad
    offset = np.int64(load_u64(layers[line, FILE_ADDRESS] + at))
    lengths = layers[line, FILE_ADDRESS] + layers[line, LENGTHS_AT]
    for other in range(first, rank):
        offset += np.int64(load_u16(lengths + 2 * other)) + 4
    return offset, np.int64(load_u16(lengths + 2 * rank)), np.int64(-1)
