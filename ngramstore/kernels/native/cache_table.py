"""The parts of a row cache in memory: its state, the table of row keys, and the readers that copy rows out. No kernels
of its own.

STATE is an int64 array, columns below: locks, counters, and where the other parts are.
- the arena: C slots of ROW_BYTES;
- the table: `places` entries of 24 bytes, open addressing by row key: i64 row key + 1 (0: free), i64 stamp, i64 slot.
  A row that is used gets the next number of the clock as its stamp: the order of stamps is the order of use;
- the oldest: kernels/native/cache_oldest.py.

A row that is used touches one entry and nothing else, one line of memory. Only rows that are being copied out need care: a reader
notes the clock before it takes its stamps, and nothing that was stamped since then is evicted.

Entries are changed under LOCK. They are moved (rows inserted, evicted) under INSERTING as well, so whoever holds that one may
read the table while others are served. INSERTING is always taken before LOCK.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline
from ngramstore.kernels.native.hashing import mix64
from ngramstore.kernels.native.memory import (
    i64_array,
    load_acquire_i64,
    load_i64,
    lock,
    prefetch,
    store_i64,
    unlock,
    yield_core,
)

LOCK, HITS, MISSES, INSERTED, EVICTED, NOT_KEPT, USED, CLOCK = 0, 1, 2, 3, 4, 5, 6, 7
NUM_SLOTS, NUM_PLACES, SLOT_BYTES = 8, 9, 10
ARENA_ADDRESS, TABLE_ADDRESS, OLDEST_ADDRESS, SCRATCH_ADDRESS, MOST_OLDEST = 11, 12, 13, 14, 15
INSERTING, OLDEST_AT, NUM_OLDEST = 16, 17, 18
READERS = 24
NUM_READERS = 40
NUM_STATE = READERS + NUM_READERS
KEY, STAMP, SLOT = 0, 1, 2
ENTRY = 3
"""Numbers of an entry."""
ENTRY_BYTES = 8 * ENTRY
PLACES_PER_SLOT = 2
"""With 1.5, 12 bytes a slot less, a row served from 600,000 takes 5 ns more, and one inserted 50 ns."""


@inline
def table_of(state):
    """The table of the cache whose STATE is at an address."""
    return i64_array(load_i64(state + 8 * TABLE_ADDRESS), ENTRY * load_i64(state + 8 * NUM_PLACES))


@inline
def home(places, key):
    """Where a key would stand if no other did."""
    return np.int64(((mix64(np.uint64(key)) >> np.uint64(32)) * np.uint64(places)) >> np.uint64(32))


@inline
def ask_for(table, places, key):
    """The entry of a key will be needed: table is its address."""
    prefetch(table + ENTRY_BYTES * home(places, key))


@inline
def find_entry(table, places, key):
    """Where the entry of a key begins in the table, or -1."""
    at = ENTRY * home(places, key)
    while True:
        stored = table[at + KEY]
        if stored == key + 1:
            return at
        if stored == 0:
            return np.int64(-1)
        at += ENTRY
        if at == ENTRY * places:
            at = np.int64(0)


@inline
def put_entry(table, places, key, stamp, slot):
    """Enter a key that is not there."""
    at = ENTRY * home(places, key)
    while table[at + KEY] != 0:
        at += ENTRY
        if at == ENTRY * places:
            at = np.int64(0)
    table[at + KEY] = key + 1
    table[at + STAMP] = stamp
    table[at + SLOT] = slot


@inline
def take_entry(table, places, at):
    """Take an entry out, closing the gap (backward-shift deletion)."""
    end = ENTRY * places
    hole = at
    while True:
        at += ENTRY
        if at == end:
            at = np.int64(0)
        stored = table[at + KEY]
        if stored == 0:
            break
        from_home = at - ENTRY * home(places, stored - 1)
        from_hole = at - hole
        if from_home < 0:
            from_home += end
        if from_hole < 0:
            from_hole += end
        if from_home >= from_hole:
            for i in range(ENTRY):
                table[hole + i] = table[at + i]
            hole = at
    for i in range(ENTRY):
        table[hole + i] = 0


@inline
def count(state, column, number):
    """Add to a counter, under LOCK."""
    store_i64(state + 8 * column, load_i64(state + 8 * column) + number)


@inline
def lock_to_read(state):
    """Take LOCK as a reader: rows stamped from now on stay where they are until `stop_reading`. Returns which reader this is.

    All readers' places are taken: wait. Readers neither sleep nor call Python.
    """
    while True:
        lock(state + 8 * LOCK)
        for reader in range(READERS, READERS + NUM_READERS):
            if load_acquire_i64(state + 8 * reader) == 0:
                store_i64(state + 8 * reader, load_i64(state + 8 * CLOCK) + 1)
                return reader
        unlock(state + 8 * LOCK)
        yield_core()


@inline
def stop_reading(state, reader):
    """Rows that this reader had found may be evicted."""
    unlock(state + 8 * reader)


@inline
def first_held(state):
    """Under LOCK: the first stamp that a reader may hold."""
    first = load_i64(state + 8 * CLOCK) + 1
    for reader in range(READERS, READERS + NUM_READERS):
        begin = load_acquire_i64(state + 8 * reader)
        if begin != 0:
            first = min(first, begin)
    return first
