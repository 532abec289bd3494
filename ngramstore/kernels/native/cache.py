"""The row cache without the GIL: find rows and copy them out, insert and evict. Meaning: kernels/reference/cache.py.

STATE is an int64 array, columns below: a lock, counters, and where the parts of the cache are.
- the arena: C slots of ROW_BYTES;
- slots: C + 1 records of 32 bytes: i32 previous, next, pins, unused; then the i64 row key in the slot (-1: free) and 8 bytes
  unused. Record C is the anchor of the ring: its next is the most recently used slot, its previous the least;
- the table: i32, a power of two of at least 2 C: open addressing by row key, slot + 1, 0 = free.

Kernels take the lock themselves, for a block of rows at a time. Rows are copied out of pinned slots without it, so threads
copy side by side. While rows are copied, the memory that the blocks behind them will be found in is on its way: places of the
table three blocks ahead, records two, their neighbours one. 1 M rows of 1 KiB, 8,192 keys a call: a row found and copied takes
0.18 us, 0.26 if all of that is asked for at the beginning of its block.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.dequantize import OUT_BYTES, WRITER, prefetch_row, write_row
from ngramstore.kernels.native.hashing import mix64
from ngramstore.kernels.native.memory import (
    copy_bytes,
    i32_array,
    i64_array,
    load_i32,
    load_i64,
    lock,
    prefetch,
    store_i64,
    unlock,
    zero_bytes,
)

LOCK, HITS, MISSES, INSERTED, EVICTED, USED = 0, 1, 2, 3, 4, 5
NUM_SLOTS, TABLE_PLACES, SLOT_BYTES = 6, 7, 8
ARENA_ADDRESS, SLOTS_ADDRESS, TABLE_ADDRESS = 9, 10, 11
NUM_STATE = 12
PREVIOUS, NEXT, PINS = 0, 1, 2
KEY = 2
"""Place of the key in a record, counted in i64."""
RECORD_BYTES = 32
SLOT_OVERHEAD_BYTES = RECORD_BYTES + 16
"""Beside its row, a slot costs its record and its places in the table: two to four, of 4 bytes."""
BLOCK = 64
"""Rows that are found under one hold of the lock, then copied out without it."""
_PATIENCE = 8
_AHEAD = 4
"""Rows whose bytes are asked for before they are needed."""
_INSERT_BLOCK = 16


@inline
def _home(places, key):
    return np.int64(mix64(np.uint64(key)) & np.uint64(places - 1))


@inline
def _slot_of(table, keys, key):
    """Slot of a key, or -1."""
    mask = table.shape[0] - 1
    at = _home(table.shape[0], key)
    while True:
        entry = np.int64(table[at])
        if entry == 0:
            return np.int64(-1)
        if keys[4 * (entry - 1) + KEY] == key:
            return entry - 1
        at = (at + 1) & mask


@inline
def _unlink(links, slot):
    before = np.int64(links[8 * slot + PREVIOUS])
    after = np.int64(links[8 * slot + NEXT])
    links[8 * before + NEXT] = np.int32(after)
    links[8 * after + PREVIOUS] = np.int32(before)


@inline
def _push_front(links, anchor, slot):
    first = np.int64(links[8 * anchor + NEXT])
    links[8 * slot + PREVIOUS] = np.int32(anchor)
    links[8 * slot + NEXT] = np.int32(first)
    links[8 * first + PREVIOUS] = np.int32(slot)
    links[8 * anchor + NEXT] = np.int32(slot)


@inline
def _move_to_front(links, anchor, slot):
    if np.int64(links[8 * anchor + NEXT]) != slot:
        _unlink(links, slot)
        _push_front(links, anchor, slot)


@inline
def _forget(table, keys, slot):
    """Take a slot's key out of the table, closing the gap (backward-shift deletion)."""
    places = table.shape[0]
    mask = places - 1
    at = _home(places, keys[4 * slot + KEY])
    while np.int64(table[at]) != slot + 1:
        at = (at + 1) & mask
    hole = at
    while True:
        at = (at + 1) & mask
        entry = np.int64(table[at])
        if entry == 0:
            break
        home = _home(places, keys[4 * (entry - 1) + KEY])
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = np.int32(entry)
            hole = at
    table[hole] = np.int32(0)
    keys[4 * slot + KEY] = -1


@inline
def _count(state, column, number):
    store_i64(state + 8 * column, load_i64(state + 8 * column) + number)


@inline
def _unpin(links, held, count):
    for i in range(count):
        if held[i] >= 0:
            links[8 * held[i] + PINS] -= np.int32(1)


@inline
def _ask_for_place(table, places, key):
    prefetch(table + 4 * _home(places, key))


@inline
def _likely_slot(table, places, key):
    """Slot at the first place of a key, -1 if none. Read without the lock: a hint, nothing more."""
    return np.int64(load_i32(table + 4 * _home(places, key))) - 1


@inline
def _ask_for_record(table, places, records, key):
    slot = _likely_slot(table, places, key)
    if slot >= 0:
        prefetch(records + RECORD_BYTES * slot)


@inline
def _ask_for_neighbours(table, places, records, key):
    """A slot that becomes the most recently used leaves its neighbours in the ring with new neighbours."""
    slot = _likely_slot(table, places, key)
    if slot >= 0:
        record = records + RECORD_BYTES * slot
        prefetch(records + RECORD_BYTES * np.int64(load_i32(record + 4 * PREVIOUS)))
        prefetch(records + RECORD_BYTES * np.int64(load_i32(record + 4 * NEXT)))


@kernel
def serve(state, plan, keys_M, out, miss_M):
    """Copy the rows of M row keys (-1: none, zeros) out of the cache, as most recently used. Returns how many are absent.

    miss[:absent] = positions of keys that are not here; their rows of `out` are left as they are. out: u8, C-contiguous.
    A plan without a row writer copies nothing and counts nothing: rows are wanted in the cache only.
    """
    at_state = np.int64(state.ctypes.data)
    anchor, places, row_bytes = state[NUM_SLOTS], state[TABLE_PLACES], state[SLOT_BYTES]
    arena, records, table_at = state[ARENA_ADDRESS], state[SLOTS_ADDRESS], state[TABLE_ADDRESS]
    table = i32_array(table_at, places)
    links, keys = i32_array(records, 8 * (anchor + 1)), i64_array(records, 4 * (anchor + 1))
    is_wanted = plan[WRITER] != 0
    count = keys_M.shape[0]
    for m in range(min(3 * BLOCK, count)):
        _ask_for_place(table_at, places, keys_M[m])
    for m in range(min(2 * BLOCK, count)):
        _ask_for_record(table_at, places, records, keys_M[m])
    for m in range(min(BLOCK, count)):
        _ask_for_neighbours(table_at, places, records, keys_M[m])
    held = np.empty(BLOCK, np.int64)
    pinned = 0
    absent = 0
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        hits = 0
        misses = 0
        lock(at_state + 8 * LOCK)
        _unpin(links, held, pinned)
        for i in range(size):
            key = keys_M[begin + i]
            held[i] = -1
            if key < 0:
                continue
            slot = _slot_of(table, keys, key)
            if slot < 0:
                miss_M[absent] = begin + i
                absent += 1
                misses += 1
                continue
            hits += 1
            held[i] = slot
            if i < _AHEAD:
                prefetch_row(arena + slot * row_bytes, row_bytes)
            links[8 * slot + PINS] += np.int32(1)
            _move_to_front(links, anchor, slot)
        if is_wanted:
            _count(at_state, HITS, hits)
            _count(at_state, MISSES, misses)
        unlock(at_state + 8 * LOCK)
        pinned = size
        target = np.int64(out.ctypes.data) + begin * plan[OUT_BYTES]
        for i in range(size):
            if is_wanted and i + _AHEAD < size and held[i + _AHEAD] >= 0:
                prefetch_row(arena + held[i + _AHEAD] * row_bytes, row_bytes)
            m = begin + i
            if m + 3 * BLOCK < count:
                _ask_for_place(table_at, places, keys_M[m + 3 * BLOCK])
            if m + 2 * BLOCK < count:
                _ask_for_record(table_at, places, records, keys_M[m + 2 * BLOCK])
            if m + BLOCK < count:
                _ask_for_neighbours(table_at, places, records, keys_M[m + BLOCK])
            if not is_wanted:
                continue
            if held[i] >= 0:
                write_row(plan, arena + held[i] * row_bytes, target + i * plan[OUT_BYTES])
            elif keys_M[m] < 0:
                zero_bytes(target + i * plan[OUT_BYTES], plan[OUT_BYTES])
    lock(at_state + 8 * LOCK)
    _unpin(links, held, pinned)
    unlock(at_state + 8 * LOCK)
    return absent


@inline
def serve_if_all_are_here(state, plan, keys, count, target):
    """As `serve` for `count` keys, at most BLOCK, if all of them are in the cache; else nothing has changed, and False.

    state: the address of STATE. plan: an array that begins with a plan.
    """
    anchor, places = load_i64(state + 8 * NUM_SLOTS), load_i64(state + 8 * TABLE_PLACES)
    row_bytes, arena = load_i64(state + 8 * SLOT_BYTES), load_i64(state + 8 * ARENA_ADDRESS)
    records = load_i64(state + 8 * SLOTS_ADDRESS)
    table = i32_array(load_i64(state + 8 * TABLE_ADDRESS), places)
    links, slot_keys = i32_array(records, 8 * (anchor + 1)), i64_array(records, 4 * (anchor + 1))
    held = np.empty(count, np.int64)
    hits = 0
    lock(state + 8 * LOCK)
    for i in range(count):
        held[i] = -1
        if keys[i] >= 0:
            held[i] = _slot_of(table, slot_keys, keys[i])
            if held[i] < 0:
                unlock(state + 8 * LOCK)
                return False
            prefetch_row(arena + held[i] * row_bytes, row_bytes)
    for i in range(count):
        if held[i] >= 0:
            hits += 1
            links[8 * held[i] + PINS] += np.int32(1)
            _move_to_front(links, anchor, held[i])
    _count(state, HITS, hits)
    unlock(state + 8 * LOCK)
    for i in range(count):
        if held[i] >= 0:
            write_row(plan, arena + held[i] * row_bytes, target + i * plan[OUT_BYTES])
        else:
            zero_bytes(target + i * plan[OUT_BYTES], plan[OUT_BYTES])
    if hits > 0:
        lock(state + 8 * LOCK)
        _unpin(links, held, count)
        unlock(state + 8 * LOCK)
    return True


@inline
def pin_those_here(state, keys, count, held):
    """Slots of `count` keys, at most BLOCK, as most recently used, until `let_go`; -1: not here. Returns how many are here.

    state: the address of STATE.
    """
    anchor, places = load_i64(state + 8 * NUM_SLOTS), load_i64(state + 8 * TABLE_PLACES)
    row_bytes, arena = load_i64(state + 8 * SLOT_BYTES), load_i64(state + 8 * ARENA_ADDRESS)
    records = load_i64(state + 8 * SLOTS_ADDRESS)
    table = i32_array(load_i64(state + 8 * TABLE_ADDRESS), places)
    links, slot_keys = i32_array(records, 8 * (anchor + 1)), i64_array(records, 4 * (anchor + 1))
    hits = 0
    lock(state + 8 * LOCK)
    for i in range(count):
        held[i] = _slot_of(table, slot_keys, keys[i])
        if held[i] >= 0:
            hits += 1
            prefetch_row(arena + held[i] * row_bytes, row_bytes)
            links[8 * held[i] + PINS] += np.int32(1)
            _move_to_front(links, anchor, held[i])
    unlock(state + 8 * LOCK)
    return hits


@inline
def let_go(state, held, count, hits, misses):
    """Unpin the slots of `pin_those_here`, and count hits and misses."""
    links = i32_array(load_i64(state + 8 * SLOTS_ADDRESS), 8 * (load_i64(state + 8 * NUM_SLOTS) + 1))
    lock(state + 8 * LOCK)
    _unpin(links, held, count)
    _count(state, HITS, hits)
    _count(state, MISSES, misses)
    unlock(state + 8 * LOCK)


@kernel
def insert(state, rows, rows_at_U, keys_U):
    """Put U rows in as most recently used, evicting the least recently used; a key that is here already stays as it is.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. Pinned slots are passed by; a row for which none of the
    least recently used is free is not kept.
    """
    at_state = np.int64(state.ctypes.data)
    anchor, row_bytes, arena = state[NUM_SLOTS], state[SLOT_BYTES], state[ARENA_ADDRESS]
    table = i32_array(state[TABLE_ADDRESS], state[TABLE_PLACES])
    records = state[SLOTS_ADDRESS]
    links, keys = i32_array(records, 8 * (anchor + 1)), i64_array(records, 4 * (anchor + 1))
    source = np.int64(rows.ctypes.data)
    mask = table.shape[0] - 1
    count = keys_U.shape[0]
    for begin in range(0, count, _INSERT_BLOCK):
        lock(at_state + 8 * LOCK)
        for u in range(begin, min(count, begin + _INSERT_BLOCK)):
            key = keys_U[u]
            if rows_at_U[u] < 0 or _slot_of(table, keys, key) >= 0:
                continue
            slot = load_i64(at_state + 8 * USED)
            if slot < anchor:
                _count(at_state, USED, 1)
            else:
                slot = np.int64(links[8 * anchor + PREVIOUS])
                patience = _PATIENCE
                while slot != anchor and links[8 * slot + PINS] > 0 and patience > 0:
                    slot = np.int64(links[8 * slot + PREVIOUS])
                    patience -= 1
                if slot == anchor or links[8 * slot + PINS] > 0:
                    continue
                _unlink(links, slot)
                _forget(table, keys, slot)
                _count(at_state, EVICTED, 1)
            copy_bytes(arena + slot * row_bytes, source + rows_at_U[u], row_bytes)
            keys[4 * slot + KEY] = key
            at = _home(table.shape[0], key)
            while table[at] != 0:
                at = (at + 1) & mask
            table[at] = np.int32(slot + 1)
            _push_front(links, anchor, slot)
            _count(at_state, INSERTED, 1)
        unlock(at_state + 8 * LOCK)


@kernel
def distinct(seen, keys_M, seeds_M, miss_M, miss_keys_M, miss_seeds_M):
    """List each wanted row key once, in order of appearance; miss[m] = its place, -1 where none is wanted. Returns how many.

    `seen`: zeroed scratch, a power of two of at least 2 M.
    """
    mask = seen.shape[0] - 1
    absent = 0
    for m in range(keys_M.shape[0]):
        key = keys_M[m]
        if key < 0:
            miss_M[m] = -1
            continue
        at = _home(seen.shape[0], key)
        while seen[at] != 0 and miss_keys_M[seen[at] - 1] != key:
            at = (at + 1) & mask
        if seen[at] == 0:
            miss_keys_M[absent] = key
            miss_seeds_M[absent] = seeds_M[m]
            absent += 1
            seen[at] = absent
        miss_M[m] = seen[at] - 1
    return absent
