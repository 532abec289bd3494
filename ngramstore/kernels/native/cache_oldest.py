"""Which row was used longest ago: a sorted list of the oldest, made anew by a pass over the table when it is used up.

The list holds (stamp, row key) of every entry below some stamp, oldest first. A row that is used later has another stamp by then
and is passed by; so the first of the list that is still as listed is the least recently used of all, exactly. A row
that is served pays nothing for this; one that is evicted, or used after it was listed, pays for the reading of some
thirty entries in a row.

SCRATCH is room for sorting (`scratch_numbers`): nothing is allocated under a lock, since an allocation that fails would
leave it taken. No kernels of its own.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline
from ngramstore.kernels.native.cache_table import (
    CLOCK,
    ENTRY,
    ENTRY_BYTES,
    KEY,
    LOCK,
    MOST_OLDEST,
    NUM_OLDEST,
    NUM_PLACES,
    OLDEST_ADDRESS,
    OLDEST_AT,
    SCRATCH_ADDRESS,
    STAMP,
    TABLE_ADDRESS,
    USED,
    ask_for,
    find_entry,
    table_of,
)
from ngramstore.kernels.native.memory import i64_array, load_i64, lock, store_i64, unlock

NUMBERS = 2
SLOTS_PER_LISTED = 8
"""The list is made half as long as it may be: a pass for every sixteenth of the rows."""
USED_UP, PASS_BY = -1, -2
SAMPLE = 256
_DIGIT = 8
_COUNTERS = (1 << _DIGIT) + 1
_AHEAD = 4
_MOST_PASSED_BY = 64
"""Entries of the list that are passed by under LOCK."""


def scratch_numbers(most):
    """Numbers of SCRATCH for a list of at most so many rows: counters, a sample, and pairs on their way."""
    return _COUNTERS + 2 * SAMPLE + 2 * max(most, SAMPLE)


@inline
def is_used_up(state):
    """Under INSERTING: all of the list was evicted, or used since."""
    return load_i64(state + 8 * OLDEST_AT) >= load_i64(state + 8 * NUM_OLDEST)


@inline
def pass_by_used(state):
    """Under INSERTING: pass by what was used since it was listed. It never is as listed again, so LOCK is not needed."""
    _find_oldest(state, load_i64(state + 8 * NUM_OLDEST))


@inline
def take_oldest(state):
    """Under both locks: where the entry of the least recently used row begins; USED_UP: `list_oldest`; PASS_BY:
    `pass_by_used`."""
    return _find_oldest(state, np.int64(_MOST_PASSED_BY))


@inline
def _find_oldest(state, most):
    table_at, table, places = load_i64(state + 8 * TABLE_ADDRESS), table_of(state), load_i64(state + 8 * NUM_PLACES)
    oldest = i64_array(load_i64(state + 8 * OLDEST_ADDRESS), 2 * load_i64(state + 8 * MOST_OLDEST))
    begin, end = load_i64(state + 8 * OLDEST_AT), load_i64(state + 8 * NUM_OLDEST)
    at = begin
    found = np.int64(USED_UP)
    while at < end:
        if at - begin > most:
            found = np.int64(PASS_BY)
            break
        if at + _AHEAD < end:
            ask_for(table_at, places, oldest[2 * (at + _AHEAD) + 1])
        entry = find_entry(table, places, oldest[2 * at + 1])
        if entry >= 0 and table[entry + STAMP] == oldest[2 * at]:
            found = entry
            break
        at += 1
    store_i64(state + 8 * OLDEST_AT, at)
    return found


@inline
def list_oldest(state):
    """List the oldest rows anew. Under INSERTING: entries do not move, but others are served meanwhile, and change stamps.

    What they use is no longer among the oldest: its new stamp is beyond the clock as it was here.
    """
    table, places = table_of(state), load_i64(state + 8 * NUM_PLACES)
    most = load_i64(state + 8 * MOST_OLDEST)
    oldest = i64_array(load_i64(state + 8 * OLDEST_ADDRESS), 2 * most)
    scratch = i64_array(load_i64(state + 8 * SCRATCH_ADDRESS), _COUNTERS + 2 * SAMPLE + 2 * max(most, np.int64(SAMPLE)))
    lock(state + 8 * LOCK)
    beyond = load_i64(state + 8 * CLOCK) + 1
    unlock(state + 8 * LOCK)
    limit = _likely_limit(table, places, beyond, most, load_i64(state + 8 * USED), scratch)
    listed = np.int64(0)
    begin, end = load_i64(state + 8 * TABLE_ADDRESS), load_i64(state + 8 * TABLE_ADDRESS) + ENTRY_BYTES * places
    for entry in range(begin, end, ENTRY_BYTES):
        stamp = load_i64(entry + 8 * STAMP)
        if not _is_below(stamp, limit):
            continue
        if listed == most:  # more than the sample let expect: the younger half is not listed after all
            _sort(oldest, listed, scratch)
            listed = most // 2
            limit = oldest[2 * listed]
            if stamp >= limit:
                continue
        oldest[2 * listed] = stamp
        oldest[2 * listed + 1] = load_i64(entry + 8 * KEY) - 1
        listed += 1
    _sort(oldest, listed, scratch)
    store_i64(state + 8 * OLDEST_AT, np.int64(0))
    store_i64(state + 8 * NUM_OLDEST, listed)
    return listed


@inline
def _is_below(stamp, limit):
    """Whether a place of the table is taken and its stamp below a limit: one test, as free places (stamp 0) come at random."""
    return np.uint64(stamp - 1) < np.uint64(limit - 1)


@inline
def _likely_limit(table, places, beyond, most, used, scratch):
    """A stamp below which about half as many rows lie as the list can hold, by a sample; `beyond` all of them where they fit."""
    if used <= most:
        return beyond
    sample = scratch[_COUNTERS : _COUNTERS + 2 * SAMPLE]
    size = np.int64(0)
    step = max(np.int64(1), places // SAMPLE)
    for place in range(0, places, step):
        at = ENTRY * place
        if table[at + KEY] != 0 and size < SAMPLE:
            sample[2 * size] = table[at + STAMP]
            sample[2 * size + 1] = 0
            size += 1
    _sort(sample, size, scratch)
    wanted = size * most // (2 * used)
    return min(sample[2 * wanted], beyond) if 0 < wanted < size else beyond


@inline
def _sort(pairs, count, scratch):
    """The first pairs in order of their first number, which is not negative; a radix sort from the smallest digit."""
    low = np.int64(2**62)
    high = np.int64(0)
    for i in range(count):
        low = min(low, pairs[2 * i])
        high = max(high, pairs[2 * i])
    begins, spare = scratch[:_COUNTERS], scratch[_COUNTERS + 2 * SAMPLE :]
    mask = np.int64((1 << _DIGIT) - 1)
    shift = np.int64(0)
    while count > 1 and shift < 63 and (high - low) >> shift > 0:
        begins[:] = 0
        for i in range(count):
            begins[(((pairs[2 * i] - low) >> shift) & mask) + 1] += 1
        for digit in range(1 << _DIGIT):
            begins[digit + 1] += begins[digit]
        for i in range(count):
            digit = ((pairs[2 * i] - low) >> shift) & mask
            to = begins[digit]
            begins[digit] += 1
            spare[2 * to] = pairs[2 * i]
            spare[2 * to + 1] = pairs[2 * i + 1]
        for i in range(2 * count):
            pairs[i] = spare[i]
        shift += _DIGIT
