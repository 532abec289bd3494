"""The row cache without the GIL: find rows and copy them out, insert and evict. Meaning: kernels/reference/cache.py.

Kernels take the cache's lock themselves, for a block of rows at a time (its parts: kernels/native/cache_table.py). Rows
are copied out without it, so threads copy side by side; while rows are copied, the entries of the blocks behind them
are on their way.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.cache_oldest import (
    NUMBERS,
    PASS_BY,
    SLOTS_PER_LISTED,
    USED_UP,
    is_used_up,
    list_oldest,
    pass_by_used,
    take_oldest,
)
from ngramstore.kernels.native.cache_table import (
    ARENA_ADDRESS,
    CLOCK,
    ENTRY_BYTES,
    EVICTED,
    HITS,
    INSERTED,
    INSERTING,
    LOCK,
    MISSES,
    NOT_KEPT,
    NUM_PLACES,
    NUM_SLOTS,
    PLACES_PER_SLOT,
    SLOT,
    SLOT_BYTES,
    STAMP,
    TABLE_ADDRESS,
    USED,
    ask_for,
    count,
    find_entry,
    first_held,
    lock_to_read,
    put_entry,
    stop_reading,
    table_of,
    take_entry,
)
from ngramstore.kernels.native.dequantize import OUT_BYTES, WRITER, prefetch_row, write_row
from ngramstore.kernels.native.memory import copy_bytes, load_i64, lock, store_i64, unlock, yield_core, zero_bytes

SLOT_OVERHEAD_BYTES = PLACES_PER_SLOT * ENTRY_BYTES + 2 * 8 * NUMBERS // SLOTS_PER_LISTED
"""What a slot costs beside its row: its places in the table, its part of the list of the oldest and of the room to sort that."""
BLOCK = 64
"""Rows that are found under one hold of the lock, then copied out without it."""
_ROWS_AHEAD = 4
"""Rows whose bytes are asked for before they are needed."""
_ENTRIES_AHEAD = 128
_INSERT_BLOCK = 16
_TURN = 4 * _INSERT_BLOCK
"""Rows after which others that wait to insert get their turn."""
_ATTEMPTS = 4
"""Passes over the table for one row: while one goes on, other threads may use all that it lists."""


@kernel
def serve(state, plan, keys_M, out, miss_M):
    """Copy the rows of M row keys (-1: none, zeros) out of the cache, as most recently used. Returns how many are absent.

    miss[:absent] = positions of keys that are not here; their rows of `out` are left as they are. out: u8, C-contiguous.
    A plan without a row writer copies nothing and counts nothing: rows are wanted in the cache only.
    """
    places, table_at = state[NUM_PLACES], state[TABLE_ADDRESS]
    num_keys = keys_M.shape[0]
    held = np.empty(BLOCK, np.int64)
    for m in range(min(_ENTRIES_AHEAD, num_keys)):
        ask_for(table_at, places, keys_M[m])
    absent = np.int64(0)
    for begin in range(0, num_keys, BLOCK):
        absent = serve_block(
            np.int64(state.ctypes.data), plan, keys_M, begin, np.int64(out.ctypes.data), miss_M, absent, held
        )
        for m in range(begin + _ENTRIES_AHEAD, min(begin + _ENTRIES_AHEAD + BLOCK, num_keys)):
            ask_for(table_at, places, keys_M[m])
    return absent


@inline
def serve_block(state, plan, keys_M, begin, target, miss_M, absent, held):
    """`serve` for BLOCK keys from `begin` on: target is the address of all rows. Returns how many are absent so far."""
    places, row_bytes, arena = (
        load_i64(state + 8 * NUM_PLACES),
        load_i64(state + 8 * SLOT_BYTES),
        load_i64(state + 8 * ARENA_ADDRESS),
    )
    table = table_of(state)
    is_wanted = plan[WRITER] != 0
    size = min(BLOCK, keys_M.shape[0] - begin)
    hits = np.int64(0)
    misses = np.int64(0)
    reader = lock_to_read(state)
    clock = load_i64(state + 8 * CLOCK)
    for i in range(size):
        key = keys_M[begin + i]
        held[i] = -1
        if key < 0:
            continue
        entry = find_entry(table, places, key)
        if entry < 0:
            miss_M[absent + misses] = begin + i
            misses += 1
            continue
        hits += 1
        table[entry + STAMP] = clock + hits
        held[i] = arena + table[entry + SLOT] * row_bytes
        if i < _ROWS_AHEAD:
            prefetch_row(held[i], row_bytes)
    store_i64(state + 8 * CLOCK, clock + hits)
    if is_wanted:
        count(state, HITS, hits)
        count(state, MISSES, misses)
    unlock(state + 8 * LOCK)
    if is_wanted:
        row = target + begin * plan[OUT_BYTES]
        for i in range(size):
            if i + _ROWS_AHEAD < size and held[i + _ROWS_AHEAD] >= 0:
                prefetch_row(held[i + _ROWS_AHEAD], row_bytes)
            if held[i] >= 0:
                write_row(plan, held[i], row)
            elif keys_M[begin + i] < 0:
                zero_bytes(row, plan[OUT_BYTES])
            row += plan[OUT_BYTES]
    stop_reading(state, reader)
    return absent + misses


@inline
def serve_if_all_are_here(state, plan, keys, num_keys, target):
    """As `serve` for some keys, at most BLOCK, if all of them are in the cache; else nothing has changed, and False.

    state: the address of STATE. plan: an array that begins with a plan.
    """
    table, places = table_of(state), load_i64(state + 8 * NUM_PLACES)
    row_bytes, arena = load_i64(state + 8 * SLOT_BYTES), load_i64(state + 8 * ARENA_ADDRESS)
    held = np.empty(num_keys, np.int64)
    reader = lock_to_read(state)
    for i in range(num_keys):
        held[i] = -1
        if keys[i] >= 0:
            held[i] = find_entry(table, places, keys[i])
            if held[i] < 0:
                stop_reading(state, reader)
                unlock(state + 8 * LOCK)
                return False
            prefetch_row(arena + table[held[i] + SLOT] * row_bytes, row_bytes)
    clock = load_i64(state + 8 * CLOCK)
    hits = 0
    for i in range(num_keys):
        if held[i] >= 0:
            hits += 1
            table[held[i] + STAMP] = clock + hits
            held[i] = arena + table[held[i] + SLOT] * row_bytes
    store_i64(state + 8 * CLOCK, clock + hits)
    count(state, HITS, hits)
    unlock(state + 8 * LOCK)
    for i in range(num_keys):
        if held[i] >= 0:
            write_row(plan, held[i], target + i * plan[OUT_BYTES])
        else:
            zero_bytes(target + i * plan[OUT_BYTES], plan[OUT_BYTES])
    stop_reading(state, reader)
    return True


@inline
def hold_those_here(state, keys, num_keys, held):
    """Addresses of the rows of some keys, at most BLOCK, as most recently used; -1: not here. Returns a reader, for `let_go`.

    state: the address of STATE.
    """
    table, places = table_of(state), load_i64(state + 8 * NUM_PLACES)
    row_bytes, arena = load_i64(state + 8 * SLOT_BYTES), load_i64(state + 8 * ARENA_ADDRESS)
    reader = lock_to_read(state)
    clock = load_i64(state + 8 * CLOCK)
    for i in range(num_keys):
        held[i] = -1
        entry = find_entry(table, places, keys[i]) if keys[i] >= 0 else np.int64(-1)
        if entry >= 0:
            clock += 1
            table[entry + STAMP] = clock
            held[i] = arena + table[entry + SLOT] * row_bytes
            prefetch_row(held[i], row_bytes)
    store_i64(state + 8 * CLOCK, clock)
    unlock(state + 8 * LOCK)
    return reader


@inline
def let_go(state, reader, hits, misses):
    """The rows of `hold_those_here` may be evicted; count hits and misses."""
    stop_reading(state, reader)
    lock(state + 8 * LOCK)
    count(state, HITS, hits)
    count(state, MISSES, misses)
    unlock(state + 8 * LOCK)


@kernel
def insert(state, rows, rows_at_U, keys_U):
    """Put U rows in as most recently used, evicting the least recently used; a key that is here already stays as it is.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. Nor is a row kept, and that is counted, where the
    least recently used one is held by a reader, or where other threads use again and again all that was found to be the oldest.
    """
    at_state, source = np.int64(state.ctypes.data), np.int64(rows.ctypes.data)
    places, arena, row_bytes = state[NUM_PLACES], state[ARENA_ADDRESS], state[SLOT_BYTES]
    table = table_of(at_state)
    num_rows = keys_U.shape[0]
    slots = np.empty(_INSERT_BLOCK, np.int64)
    begin = 0
    attempts = 0
    while begin < num_rows:
        lock(at_state + 8 * INSERTING)
        if attempts > 0 and is_used_up(at_state):
            list_oldest(at_state)
        pass_by_used(at_state)
        end, attempts = _take_slots(at_state, table, places, rows_at_U, keys_U, begin, slots, attempts)
        for u in range(begin, end):  # nobody finds these slots yet, so LOCK is free meanwhile
            if slots[u - begin] >= 0:
                copy_bytes(arena + slots[u - begin] * row_bytes, source + rows_at_U[u], row_bytes)
        lock(at_state + 8 * LOCK)
        for u in range(begin, end):
            if slots[u - begin] >= 0:
                count(at_state, CLOCK, 1)
                count(at_state, INSERTED, 1)
                put_entry(table, places, keys_U[u], load_i64(at_state + 8 * CLOCK), slots[u - begin])
        unlock(at_state + 8 * LOCK)
        unlock(at_state + 8 * INSERTING)
        if end % _TURN == 0 and end < num_rows:
            yield_core()
        begin = end


@inline
def _take_slots(state, table, places, rows_at_U, keys_U, begin, slots, attempts):
    """Under INSERTING: a slot for each of the next rows, free or of an evicted row; -1: not kept. Returns their end,
    and attempts.

    Fewer rows than _INSERT_BLOCK where the list of the oldest ends before.
    """
    end = min(keys_U.shape[0], begin + _INSERT_BLOCK)
    lock(state + 8 * LOCK)
    held_since = first_held(state)
    u = begin
    while u < end:
        slot = np.int64(-1)
        if _is_wanted(table, places, rows_at_U, keys_U, begin, u):
            slot = load_i64(state + 8 * USED)
            if slot < load_i64(state + 8 * NUM_SLOTS):
                count(state, USED, 1)
            else:
                oldest = take_oldest(state)
                if oldest == PASS_BY:
                    break
                if oldest == USED_UP and attempts < _ATTEMPTS:
                    attempts += 1
                    break
                slot = np.int64(-1)
                if oldest >= 0 and table[oldest + STAMP] < held_since:
                    slot = table[oldest + SLOT]
                    take_entry(table, places, oldest)
                    count(state, EVICTED, 1)
                else:
                    count(state, NOT_KEPT, 1)
        slots[u - begin] = slot
        attempts = 0
        u += 1
    unlock(state + 8 * LOCK)
    return u, attempts


@inline
def _is_wanted(table, places, rows_at_U, keys_U, begin, u):
    """Whether row u is good and its key neither in the cache nor among those before it in the block."""
    if rows_at_U[u] < 0 or keys_U[u] < 0 or find_entry(table, places, keys_U[u]) >= 0:
        return False
    for before in range(begin, u):
        if keys_U[before] == keys_U[u]:
            return False
    return True
