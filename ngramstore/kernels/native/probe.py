"""IDs or token windows in, row keys out, through all layers and without the GIL. Meaning: kernels/reference/probe.py.

IDs pass through three steps, _APART IDs after one another: ask for the entry of the directory, read it and ask for the bucket,
compare. While one ID is compared the memory that those behind it need is on its way, so that nearly none of them waits.
Where that memory is far away an ID takes 0.026 us, 0.044 if a block of 32 is taken through one step after the other.

Shapes: M IDs, W positions of a flat token array.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import extend_state, seed_state
from ngramstore.kernels.native.index import (
    BUCKET_BITS,
    DIRECTORY_AT,
    FILE_ADDRESS,
    GROUP_BITS,
    GROUPS_AT,
    IS_TOMBSTONE,
    LOW_BITS_AT,
    MAX_LINES,
    NUM_ROWS,
    PAGE_OK_ADDRESS,
    PAGE_SHIFT,
    RANK_BITS,
    REMAINDERS_AT,
    SERIAL,
    bucket_start,
    low_bits,
    page_fault,
)
from ngramstore.kernels.native.memory import (
    load_u8,
    load_u32,
    load_u64,
    prefetch,
    trailing_zeros,
    which_of_16_equal,
)

_BLOCK = 256
"""IDs that pass through the steps in one go."""
_APART = 16
_RING = 2 * _APART
"""Buckets that are remembered between the second step and the third: a power of two above _APART."""
_WINDOW = 16
_ABSENT = np.int64(-1)
_DELETED = np.int64(-(1 << 62))
_U32_MASK = np.uint64(0xFFFFFFFF)


@inline
def _rank(layers, line, identity):
    """Rank of an ID in a layer, -1 if absent, -2 - page if a page is bad: the careful way, which verifies what it reads."""
    if layers[line, NUM_ROWS] == 0:
        return np.int64(-1)
    bucket = np.int64(identity >> np.uint64(64 - layers[line, BUCKET_BITS]))
    at = layers[line, DIRECTORY_AT] + 4 * bucket
    bad = page_fault(layers, line, at, at + 7)
    if bad >= 0:
        return -2 - bad
    group = layers[line, GROUPS_AT] + 8 * (bucket >> layers[line, GROUP_BITS])
    bad = page_fault(layers, line, group, group + 15)
    if bad >= 0:
        return -2 - bad
    start = bucket_start(layers, line, bucket)
    end = bucket_start(layers, line, bucket + 1)
    if start < 0 or end < start or end > layers[line, NUM_ROWS]:  # a checked page can still be a page of lies
        return -2 - (at >> PAGE_SHIFT)
    if start == end:
        return np.int64(-1)
    bad = page_fault(layers, line, layers[line, REMAINDERS_AT] + 4 * start, layers[line, REMAINDERS_AT] + 4 * end - 1)
    if bad >= 0:
        return -2 - bad
    width = 32 - layers[line, BUCKET_BITS]
    remainder = np.uint32((identity >> np.uint64(width)) & _U32_MASK)
    plane = layers[line, FILE_ADDRESS] + layers[line, REMAINDERS_AT]
    for rank in range(start, end):
        other = load_u32(plane + 4 * rank)
        if other > remainder:  # they are in order
            return np.int64(-1)
        if other == remainder:
            if width == 0:
                return rank
            at = layers[line, LOW_BITS_AT] + ((rank * width) >> 3)
            bad = page_fault(layers, line, at, at + 7)
            if bad >= 0:
                return -2 - bad
            if low_bits(layers, line, rank, width) == identity & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)):
                return rank
    return np.int64(-1)


@inline
def _is_good(flags, first_byte, last_byte):
    """Whether the pages at both ends of a byte range are known to be good."""
    return load_u8(flags + (first_byte >> PAGE_SHIFT)) != 0 and load_u8(flags + (last_byte >> PAGE_SHIFT)) != 0


@inline
def _probe_line(layers, line, ids_M, keys_M, ring):
    """`probe_block` in one layer, for the IDs whose keys are _ABSENT so far.

    The quick way believes pages that were verified before, and compares sixteen neighbours of the place where the remainder
    should be: nearly always that is enough. Whatever else happens is left to the careful way. All of it is one loop over
    locals: a step taken out as a function costs a sixth more, as does what is read again from the table after every write.
    """
    num_rows, bucket_bits = layers[line, NUM_ROWS], layers[line, BUCKET_BITS]
    file, flags = layers[line, FILE_ADDRESS], layers[line, PAGE_OK_ADDRESS]
    groups_at, group_bits = layers[line, GROUPS_AT], layers[line, GROUP_BITS]
    directory_at, remainders_at = layers[line, DIRECTORY_AT], layers[line, REMAINDERS_AT]
    low_bits_at, first_key = layers[line, LOW_BITS_AT], layers[line, SERIAL] << RANK_BITS
    is_tombstone = layers[line, IS_TOMBSTONE] != 0
    above, width = np.uint64(64 - bucket_bits), 32 - bucket_bits
    below = np.uint64(width)
    mask = (np.uint64(1) << below) - np.uint64(1)
    count = ids_M.shape[0]
    apart = min(_APART, count)
    for step in range(count + 2 * apart):
        if step < count:
            prefetch(file + directory_at + 4 * np.int64(ids_M[step] >> above))
        i = step - apart
        if 0 <= i < count:  # its entry of the directory is here
            identity = ids_M[i]
            bucket = np.int64(identity >> above)
            at, group_at = directory_at + 4 * bucket, groups_at + 8 * (bucket >> group_bits)
            next_group_at = groups_at + 8 * ((bucket + 1) >> group_bits)
            start = np.int64(load_u64(file + group_at)) + np.int64(load_u32(file + at))
            end = np.int64(load_u64(file + next_group_at)) + np.int64(load_u32(file + at + 4))
            is_known = _is_good(flags, at, at + 7) and _is_good(flags, group_at, group_at + 15)
            place = i & (_RING - 1)
            if is_known and 0 <= start <= end <= num_rows and num_rows >= _WINDOW:
                remainder = (identity >> below) & _U32_MASK
                guess = start + np.int64((remainder * np.uint64(end - start)) >> np.uint64(32))  # they are uniform
                window = max(np.int64(0), min(guess - _WINDOW // 2, num_rows - _WINDOW))
                ring[place, 0], ring[place, 1], ring[place, 2] = start, end, window
                prefetch(file + remainders_at + 4 * window)
                prefetch(file + remainders_at + 4 * window + 4 * _WINDOW - 1)
                prefetch(file + low_bits_at + ((guess * width) >> 3))
            else:
                ring[place, 0], ring[place, 1] = -1, 0
        i = step - 2 * apart
        if i < 0 or keys_M[i] != _ABSENT:
            continue
        identity, place = ids_M[i], i & (_RING - 1)  # its bucket is here
        start, end, window = ring[place, 0], ring[place, 1], ring[place, 2]
        if start == end:
            continue
        rank = np.int64(-2)
        if start >= 0 and _is_good(flags, remainders_at + 4 * start, remainders_at + 4 * end - 1):
            plane = file + remainders_at
            low_remainder = np.uint32((identity >> below) & _U32_MASK)
            equal = which_of_16_equal(plane + 4 * window, low_remainder)
            is_whole_left = window <= start or load_u32(plane + 4 * window) < low_remainder
            is_whole_right = window + _WINDOW >= end or load_u32(plane + 4 * (window + _WINDOW - 1)) > low_remainder
            if is_whole_left and is_whole_right and equal & (equal - 1) == 0:
                rank = window + trailing_zeros(equal)
                if equal == 0 or rank < start or rank >= end:
                    continue
                bit = rank * width
                at = low_bits_at + (bit >> 3)
                if width > 0:
                    if not _is_good(flags, at, at + 7):
                        rank = np.int64(-2)
                    elif (load_u64(file + at) >> np.uint64(bit & 7)) & mask != identity & mask:
                        continue
        if rank == -2:
            rank = _rank(layers, line, identity)
        if rank >= 0:
            keys_M[i] = _DELETED if is_tombstone else first_key | rank
        elif rank < -1:
            keys_M[i] = -2 - ((-2 - rank) * MAX_LINES + line)


@inline
def room_for_ring():
    """Scratch of `probe_block`: first rank, end and window of the buckets that were asked for."""
    return np.empty((_RING, 3), np.int64)


@inline
def probe_block(layers, ids_M, keys_M, ring):
    """keys[m] = row key of ids[m], -1 if absent, below -1: the code of a bad page."""
    for i in range(ids_M.shape[0]):
        keys_M[i] = _ABSENT
    for line in range(layers.shape[0]):
        if layers[line, NUM_ROWS] > 0:
            _probe_line(layers, line, ids_M, keys_M, ring)
    for i in range(ids_M.shape[0]):
        if keys_M[i] == _DELETED:
            keys_M[i] = _ABSENT


@kernel
def find(layers, ids_M, keys_M):
    """keys[m] = row key of ids[m], -1 if absent; stops at a bad page and leaves its code in keys[m]. Returns rows done."""
    count = ids_M.shape[0]
    ring = room_for_ring()
    for begin in range(0, count, _BLOCK):
        end = min(count, begin + _BLOCK)
        probe_block(layers, ids_M[begin:end], keys_M[begin:end], ring)
        for m in range(begin, end):
            if keys_M[m] < -1:
                return m
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
    ring = room_for_ring()
    states, keys, places = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    for begin in range(0, count, _BLOCK):
        live = min(_BLOCK, count - begin)
        for i in range(live):
            w = begin + i
            states[i], places[i] = start, w
            keys_W[w], ids_W[w], lengths_W[w] = -1, 0, 0
        n = 0
        while live > 0:
            n += 1
            asked = 0
            for i in range(live):
                w = places[i]
                if n <= room_W[w]:
                    states[asked] = extend_state(states[i], tokens_W[w - n + 1])
                    places[asked] = w
                    asked += 1
            live = asked
            if (lengths_mask >> n) & 1 == 0:
                continue
            probe_block(layers, states[:asked], keys[:asked], ring)
            live = 0
            for i in range(asked):
                w, key = places[i], keys[i]
                if key < -1:
                    keys_W[w] = key
                    return w
                if key >= 0:
                    keys_W[w], ids_W[w], lengths_W[w] = key, states[i], n
                elif stop_at_miss:
                    continue
                states[live], places[live] = states[i], w
                live += 1
    return count


@inline
def match_one(layers, tokens_S, end, room, seed, lengths_mask, stop_at_miss):
    """(row key, length) of the longest stored n-gram that ends at tokens[end - 1], as `match`; a key below -1: a bad page.

    All lengths are looked up together.
    """
    states_N, keys_N, lengths_N = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    ring = room_for_ring()
    state = seed_state(np.uint64(seed))
    longest, length = np.int64(-1), np.int64(0)
    n = 0
    while n < room:
        asked = 0
        while n < room and asked < _BLOCK:
            state = extend_state(state, tokens_S[end - 1 - n])
            n += 1
            if (lengths_mask >> n) & 1:
                states_N[asked], lengths_N[asked] = state, n
                asked += 1
        probe_block(layers, states_N[:asked], keys_N[:asked], ring)
        for i in range(asked):
            if keys_N[i] < -1:
                return keys_N[i], np.int64(0)
            if keys_N[i] >= 0:
                longest, length = keys_N[i], lengths_N[i]
            elif stop_at_miss:
                return longest, length
    return longest, length
