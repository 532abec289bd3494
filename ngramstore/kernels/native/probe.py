"""IDs or token windows in, row keys out, through all layers and without the GIL. Meaning: kernels/reference/probe.py.

IDs are looked up a block at a time: for all of a block the directory is asked for, then the buckets, then they are compared, so
that a block waits for memory three times and not each ID. What a layer's line says is taken into locals once a block; left
in the table, it would be read again after every write.
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

_AHEAD = 32
"""IDs of a block."""
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
def _probe_line(layers, line, ids_M, begin, count, keys_M, buckets):
    """`_probe` in one layer, for the IDs whose keys are _ABSENT so far.

    The quick way believes pages that were verified before, and compares sixteen neighbours of the place where the remainder
    should be: nearly always that is enough. Whatever else happens is left to the careful way.
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
    for i in range(count):
        prefetch(file + directory_at + 4 * np.int64(ids_M[begin + i] >> above))
    for i in range(count):
        identity = ids_M[begin + i]
        bucket = np.int64(identity >> above)
        group = bucket >> group_bits
        start = np.int64(load_u64(file + groups_at + 8 * group)) + np.int64(load_u32(file + directory_at + 4 * bucket))
        group = (bucket + 1) >> group_bits
        end = np.int64(load_u64(file + groups_at + 8 * group)) + np.int64(
            load_u32(file + directory_at + 4 * bucket + 4)
        )
        at, group_at = directory_at + 4 * bucket, groups_at + 8 * (bucket >> group_bits)
        is_known = _is_good(flags, at, at + 7) and _is_good(flags, group_at, group_at + 15)
        if not (is_known and 0 <= start <= end <= num_rows and num_rows >= _WINDOW):
            buckets[0, i], buckets[1, i] = -1, 0
            continue
        remainder = (identity >> below) & _U32_MASK
        guess = start + np.int64((remainder * np.uint64(end - start)) >> np.uint64(32))  # remainders are uniform
        window = max(np.int64(0), min(guess - _WINDOW // 2, num_rows - _WINDOW))
        buckets[0, i], buckets[1, i], buckets[2, i] = start, end, window
        prefetch(file + remainders_at + 4 * window)
        prefetch(file + remainders_at + 4 * window + 4 * _WINDOW - 1)
        prefetch(file + low_bits_at + ((guess * width) >> 3))
    for i in range(count):
        if keys_M[begin + i] != _ABSENT:
            continue
        identity = ids_M[begin + i]
        start, end, window = buckets[0, i], buckets[1, i], buckets[2, i]
        if start == end:
            continue
        rank = np.int64(-2)
        if start >= 0 and _is_good(flags, remainders_at + 4 * start, remainders_at + 4 * end - 1):
            plane = file + remainders_at
            remainder = np.uint32((identity >> below) & _U32_MASK)
            equal = which_of_16_equal(plane + 4 * window, remainder)
            is_whole_left = window <= start or load_u32(plane + 4 * window) < remainder
            is_whole_right = window + _WINDOW >= end or load_u32(plane + 4 * (window + _WINDOW - 1)) > remainder
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
            keys_M[begin + i] = _DELETED if is_tombstone else first_key | rank
        elif rank < -1:
            keys_M[begin + i] = -2 - ((-2 - rank) * MAX_LINES + line)


@inline
def _room_for_buckets():
    """Scratch of `_probe`: first rank, end and window of a block's buckets."""
    return np.empty((3, _AHEAD), np.int64)


@inline
def _probe(layers, ids_M, begin, count, keys_M, buckets):
    """keys[m] = row key of ids[m], -1 if absent, below -1: the code of a bad page; `count`, at most _AHEAD, from `begin` on."""
    for i in range(count):
        keys_M[begin + i] = _ABSENT
    for line in range(layers.shape[0]):
        if layers[line, NUM_ROWS] > 0:
            _probe_line(layers, line, ids_M, begin, count, keys_M, buckets)
    for i in range(count):
        if keys_M[begin + i] == _DELETED:
            keys_M[begin + i] = _ABSENT


@kernel
def find(layers, ids_M, keys_M):
    """keys[m] = row key of ids[m], -1 if absent; stops at a bad page and leaves its code in keys[m]. Returns rows done."""
    count = ids_M.shape[0]
    buckets = _room_for_buckets()
    for begin in range(0, count, _AHEAD):
        size = min(_AHEAD, count - begin)
        _probe(layers, ids_M, begin, size, keys_M, buckets)
        for m in range(begin, begin + size):
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
    buckets = _room_for_buckets()
    states, keys, places = np.empty(_AHEAD, np.uint64), np.empty(_AHEAD, np.int64), np.empty(_AHEAD, np.int64)
    for begin in range(0, count, _AHEAD):
        live = min(_AHEAD, count - begin)
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
            _probe(layers, states, 0, asked, keys, buckets)
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
    states_N, keys_N, lengths_N = np.empty(_AHEAD, np.uint64), np.empty(_AHEAD, np.int64), np.empty(_AHEAD, np.int64)
    buckets = _room_for_buckets()
    state = seed_state(np.uint64(seed))
    longest, length = np.int64(-1), np.int64(0)
    n = 0
    while n < room:
        asked = 0
        while n < room and asked < _AHEAD:
            state = extend_state(state, tokens_S[end - 1 - n])
            n += 1
            if (lengths_mask >> n) & 1:
                states_N[asked], lengths_N[asked] = state, n
                asked += 1
        _probe(layers, states_N, 0, asked, keys_N, buckets)
        for i in range(asked):
            if keys_N[i] < -1:
                return keys_N[i], np.int64(0)
            if keys_N[i] >= 0:
                longest, length = keys_N[i], lengths_N[i]
            elif stop_at_miss:
                return longest, length
    return longest, length
