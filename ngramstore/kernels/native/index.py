"""Probing the index without the GIL: IDs or token windows in, row keys out. Meaning: kernels/reference/index.py.

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
from ngramstore.kernels.native.hashing import checksum32, extend_state, seed_state
from ngramstore.kernels.native.memory import load_u8, load_u16, load_u32, load_u64, prefetch, store_u8, u32_array

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
MAX_LINES = 64  # of a table: a fault code holds page and line

_PAGE_SHIFT = 12
_PAGE_BYTES = 4096
_AHEAD = 32
_WINDOW = 16
_U32_MASK = np.uint64(0xFFFFFFFF)


@inline
def _page_fault(layers, line, first_byte, last_byte):
    """Verify the pages of a byte range not yet verified; -1 if all are good, else the bad page."""
    page = first_byte >> _PAGE_SHIFT
    last = last_byte >> _PAGE_SHIFT
    while page <= last:
        if load_u8(layers[line, PAGE_OK_ADDRESS] + page) == 0:
            start = layers[line, FILE_ADDRESS] + (page << _PAGE_SHIFT)
            wanted = load_u32(layers[line, FILE_ADDRESS] + layers[line, CHECKSUMS_AT] + 4 * (page - 1))
            if checksum32(start, _PAGE_BYTES, np.uint64(page)) != wanted:
                return page
            store_u8(layers[line, PAGE_OK_ADDRESS] + page, np.uint8(1))
        page += 1
    return np.int64(-1)


@inline
def _bucket_start(layers, line, bucket):
    group = bucket >> layers[line, GROUP_BITS]
    base = load_u64(layers[line, FILE_ADDRESS] + layers[line, GROUPS_AT] + 8 * group)
    return np.int64(base) + np.int64(load_u32(layers[line, FILE_ADDRESS] + layers[line, DIRECTORY_AT] + 4 * bucket))


@inline
def _bucket_of(layers, line, identity):
    return np.int64(identity >> np.uint64(64 - layers[line, BUCKET_BITS]))


@inline
def _low_bits(layers, line, rank, width):
    bit = rank * width
    word = load_u64(layers[line, FILE_ADDRESS] + layers[line, LOW_BITS_AT] + (bit >> 3))
    return (word >> np.uint64(bit & 7)) & ((np.uint64(1) << np.uint64(width)) - np.uint64(1))


@inline
def _guess(start, end, remainder):
    """Where a remainder should be in a bucket, since remainders are uniform."""
    return start + np.int64((np.uint64(remainder) * np.uint64(end - start)) >> np.uint64(32))


@inline
def _equal_in_window(address, remainder):
    """(place of the last of _WINDOW numbers that equals the remainder, how many do); the loop becomes vector compares."""
    numbers = u32_array(address, _WINDOW)
    last = np.int32(-1)
    count = np.int32(0)
    for i in range(_WINDOW):
        last = np.int32(max(last, np.int32(i) if numbers[i] == remainder else np.int32(-1)))
        count = np.int32(count + (np.int32(1) if numbers[i] == remainder else np.int32(0)))
    return np.int64(last), np.int64(count)


@inline
def _rank(layers, line, identity):
    """Rank of an ID in a layer, -1 if absent, -2 - page if a page is bad."""
    if layers[line, NUM_ROWS] == 0:
        return np.int64(-1)
    bucket = _bucket_of(layers, line, identity)
    at = layers[line, DIRECTORY_AT] + 4 * bucket
    bad = _page_fault(layers, line, at, at + 7)
    if bad >= 0:
        return -2 - bad
    group = layers[line, GROUPS_AT] + 8 * (bucket >> layers[line, GROUP_BITS])
    bad = _page_fault(layers, line, group, group + 15)
    if bad >= 0:
        return -2 - bad
    start = _bucket_start(layers, line, bucket)
    end = _bucket_start(layers, line, bucket + 1)
    if start < 0 or end < start or end > layers[line, NUM_ROWS]:  # a checked page can still be a page of lies
        return -2 - (at >> _PAGE_SHIFT)
    if start == end:
        return np.int64(-1)
    bad = _page_fault(layers, line, layers[line, REMAINDERS_AT] + 4 * start, layers[line, REMAINDERS_AT] + 4 * end - 1)
    if bad >= 0:
        return -2 - bad
    width = 32 - layers[line, BUCKET_BITS]
    remainder = np.uint32((identity >> np.uint64(width)) & _U32_MASK)
    plane = layers[line, FILE_ADDRESS] + layers[line, REMAINDERS_AT]
    rank = _guess(start, end, remainder)
    window = min(rank - _WINDOW // 2, layers[line, NUM_ROWS] - _WINDOW)
    if window >= 0:
        # Sixteen neighbours of the guess are compared at once, without a branch a neighbour: nearly always that is enough.
        last_equal, num_equal = _equal_in_window(plane + 4 * window, remainder)
        is_whole_left = window <= start or load_u32(plane + 4 * window) < remainder
        is_whole_right = window + _WINDOW >= end or load_u32(plane + 4 * (window + _WINDOW - 1)) > remainder
        if is_whole_left and is_whole_right and num_equal <= 1:
            rank = window + last_equal
            if num_equal == 0 or rank < start or rank >= end:
                return np.int64(-1)
            if width == 0:
                return rank
            at = layers[line, LOW_BITS_AT] + ((rank * width) >> 3)
            bad = _page_fault(layers, line, at, at + 7)
            if bad >= 0:
                return -2 - bad
            if _low_bits(layers, line, rank, width) == identity & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)):
                return rank
            return np.int64(-1)
    while rank < end and load_u32(plane + 4 * rank) < remainder:
        rank += 1
    while rank > start and load_u32(plane + 4 * (rank - 1)) >= remainder:
        rank -= 1
    while rank < end and load_u32(plane + 4 * rank) == remainder:
        if width == 0:
            return rank
        at = layers[line, LOW_BITS_AT] + ((rank * width) >> 3)
        bad = _page_fault(layers, line, at, at + 7)
        if bad >= 0:
            return -2 - bad
        if _low_bits(layers, line, rank, width) == identity & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)):
            return rank
        rank += 1
    return np.int64(-1)


@inline
def _prefetch_directory(layers, identity):
    for line in range(layers.shape[0]):
        if layers[line, NUM_ROWS] > 0:
            prefetch(layers[line, FILE_ADDRESS] + layers[line, DIRECTORY_AT] + 4 * _bucket_of(layers, line, identity))


@inline
def _prefetch_bucket(layers, identity):
    for line in range(layers.shape[0]):
        if layers[line, NUM_ROWS] > 0:
            width = 32 - layers[line, BUCKET_BITS]
            start = _bucket_start(layers, line, _bucket_of(layers, line, identity))
            end = _bucket_start(layers, line, _bucket_of(layers, line, identity) + 1)
            if 0 <= start <= end <= layers[line, NUM_ROWS]:
                rank = _guess(start, end, (identity >> np.uint64(width)) & _U32_MASK)
                plane = layers[line, FILE_ADDRESS] + layers[line, REMAINDERS_AT] + 4 * rank
                prefetch(plane - 2 * _WINDOW)
                prefetch(plane + 2 * _WINDOW - 1)
                prefetch(layers[line, FILE_ADDRESS] + layers[line, LOW_BITS_AT] + ((rank * width) >> 3))


@inline
def _key(layers, identity):
    """Row key of an ID through all layers, newest first."""
    for line in range(layers.shape[0]):
        rank = _rank(layers, line, identity)
        if rank >= 0:
            if layers[line, IS_TOMBSTONE] != 0:
                return np.int64(-1)
            return (layers[line, SERIAL] << RANK_BITS) | rank
        if rank < -1:
            return -2 - ((-2 - rank) * MAX_LINES + line)
    return np.int64(-1)


@kernel
def find(layers, ids_M, keys_M):
    """keys[m] = row key of ids[m], -1 if absent; stops at a bad page and leaves its code in keys[m]. Returns rows done."""
    count = ids_M.shape[0]
    begin = 0
    while begin < count:
        end = min(count, begin + _AHEAD)
        if end - begin > 1:
            for m in range(begin, end):
                _prefetch_directory(layers, ids_M[m])
            for m in range(begin, end):
                _prefetch_bucket(layers, ids_M[m])
        for m in range(begin, end):
            keys_M[m] = _key(layers, ids_M[m])
            if keys_M[m] < -1:
                return m
        begin = end
    return count


@kernel
def match(layers, tokens_W, room_W, seed, lengths_mask, stop_at_miss, keys_W, ids_W, lengths_W):
    """Longest stored n-gram ending at each of W positions of a flat token array.

    room[w]: tokens that may be used at w, itself included (1..K). lengths_mask: bit n set = some n-gram of length n may
    be stored. stop_at_miss: the set is suffix-closed, so the first absent length at or above the shortest ends the
    search. Writes key, ID and length (0: none, key -1). Returns positions done, as `find`.
    """
    count = tokens_W.shape[0]
    start = seed_state(np.uint64(seed))
    states = np.empty(_AHEAD, np.uint64)
    live = np.empty(_AHEAD, np.uint8)
    begin = 0
    while begin < count:
        size = min(_AHEAD, count - begin)
        longest = 0
        for i in range(size):
            states[i] = start
            live[i] = 1
            keys_W[begin + i] = -1
            ids_W[begin + i] = 0
            lengths_W[begin + i] = 0
            longest = max(longest, np.int64(room_W[begin + i]))
        for n in range(1, longest + 1):
            probing = (lengths_mask >> n) & 1
            for i in range(size):
                if live[i] != 0:
                    if n > room_W[begin + i]:
                        live[i] = 0
                    else:
                        states[i] = extend_state(states[i], tokens_W[begin + i - n + 1])
                        if probing != 0:
                            _prefetch_directory(layers, states[i])
            if probing == 0:
                continue
            for i in range(size):
                if live[i] != 0:
                    _prefetch_bucket(layers, states[i])
            for i in range(size):
                if live[i] == 0:
                    continue
                key = _key(layers, states[i])
                if key >= 0:
                    keys_W[begin + i] = key
                    ids_W[begin + i] = states[i]
                    lengths_W[begin + i] = n
                elif key == -1:
                    if stop_at_miss:
                        live[i] = 0
                else:
                    keys_W[begin + i] = key
                    return begin + i
        begin += size
    return count


@inline
def match_one(layers, tokens_S, end, room, seed, lengths_mask, stop_at_miss):
    """(row key, length) of the longest stored n-gram that ends at tokens[end - 1], as `match`; a key below -1: a bad page.

    The index is asked for all lengths before the first is looked at.
    """
    states_N = np.empty(room, np.uint64)
    state = seed_state(np.uint64(seed))
    for n in range(room):
        state = extend_state(state, tokens_S[end - 1 - n])
        states_N[n] = state
        if (lengths_mask >> (n + 1)) & 1:
            _prefetch_directory(layers, state)
    for n in range(room):
        if (lengths_mask >> (n + 1)) & 1:
            _prefetch_bucket(layers, states_N[n])
    longest = np.int64(-1)
    length = np.int64(0)
    for n in range(room):
        if (lengths_mask >> (n + 1)) & 1:
            key = _key(layers, states_N[n])
            if key < -1:
                return key, np.int64(0)
            if key >= 0:
                longest, length = key, np.int64(n + 1)
            elif stop_at_miss:
                break
    return longest, length


@kernel
def ids_of_ranks(layers, line, first, ids_M):
    """ids[m] = ID of rank first + m, read back from the planes. Returns -1, or the first bad page."""
    count = ids_M.shape[0]
    if count == 0:
        return np.int64(-1)
    width = 32 - layers[line, BUCKET_BITS]
    bad = _page_fault(layers, line, layers[line, GROUPS_AT], layers[line, REMAINDERS_AT] - 1)
    if bad < 0:
        bad = _page_fault(
            layers, line, layers[line, REMAINDERS_AT] + 4 * first, layers[line, REMAINDERS_AT] + 4 * (first + count) - 1
        )
    if bad < 0 and width > 0:
        bad = _page_fault(
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
        if _bucket_start(layers, line, middle) <= first:
            low = middle
        else:
            high = middle
    bucket = low
    last_bucket = (np.int64(1) << layers[line, BUCKET_BITS]) - 1
    plane = layers[line, FILE_ADDRESS] + layers[line, REMAINDERS_AT]
    for m in range(count):
        rank = first + m
        while bucket < last_bucket and _bucket_start(layers, line, bucket + 1) <= rank:
            bucket += 1
        identity = np.uint64(bucket) << np.uint64(64 - layers[line, BUCKET_BITS])
        identity |= np.uint64(load_u32(plane + 4 * rank)) << np.uint64(width)
        if width > 0:
            identity |= _low_bits(layers, line, rank, width)
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
    bad = _page_fault(layers, line, at, at + 7)
    if bad < 0:
        bad = _page_fault(layers, line, layers[line, LENGTHS_AT] + 2 * first, layers[line, LENGTHS_AT] + 2 * rank + 1)
    if bad >= 0:
        return np.int64(0), np.int64(0), bad
    offset = np.int64(load_u64(layers[line, FILE_ADDRESS] + at))
    lengths = layers[line, FILE_ADDRESS] + layers[line, LENGTHS_AT]
    for other in range(first, rank):
        offset += np.int64(load_u16(lengths + 2 * other)) + 4
    return offset, np.int64(load_u16(lengths + 2 * rank)), np.int64(-1)
