"""What the row cache's kernels mean: the same memory, read as a dictionary of entries.

STATE and the table: kernels/native/cache_table.py. One thread: the locks are not looked at. The list of the oldest is
neither read
nor written: what it says of the rows that are still as listed stays true.

Shapes: M wanted rows, U rows read, C slots.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ngramstore.kernels.native.cache_table import (
    ARENA_ADDRESS,
    CLOCK,
    ENTRY,
    EVICTED,
    HITS,
    INSERTED,
    KEY,
    MISSES,
    NOT_KEPT,
    NUM_PLACES,
    NUM_READERS,
    NUM_SLOTS,
    NUM_STATE,
    READERS,
    SLOT,
    SLOT_BYTES,
    STAMP,
    TABLE_ADDRESS,
    USED,
)
from ngramstore.kernels.reference.dequantize import OUT_BYTES, WRITER, write_row
from ngramstore.kernels.reference.hashing import mix64


class _Cache:
    """The parts of a cache as arrays over its memory."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = state
        self.num_slots, self.row_bytes = int(state[NUM_SLOTS]), int(state[SLOT_BYTES])
        self.arena = memory(int(state[ARENA_ADDRESS]), self.num_slots * self.row_bytes)
        table = memory(int(state[TABLE_ADDRESS]), 8 * ENTRY * int(state[NUM_PLACES]))
        self.table = table.view(np.int64).reshape(-1, ENTRY)

    def place(self, key: int) -> int:
        """Where the table holds a key, or the free place where it would go: its home, or the next after it that fits."""
        at = (mix64(key) >> 32) * len(self.table) >> 32
        while self.table[at, KEY] not in (0, key + 1):
            at = (at + 1) % len(self.table)
        return at

    def find(self, key: int) -> int:
        """The place of a key, or -1."""
        at = self.place(key) if key >= 0 else -1
        return at if at >= 0 and self.table[at, KEY] != 0 else -1

    def use(self, place: int) -> int:
        """The row at a place becomes the most recently used: its address."""
        self.table[place, STAMP] = self.tick()
        return self.arena.ctypes.data + int(self.table[place, SLOT]) * self.row_bytes

    def tick(self) -> int:
        """The next number of the clock."""
        self.state[CLOCK] += 1
        return int(self.state[CLOCK])

    def oldest(self) -> int:
        """The place of the least recently used row, or -1: a reader holds it."""
        stamps = np.where(self.table[:, KEY] != 0, self.table[:, STAMP], np.iinfo(np.int64).max)
        begins = self.state[READERS : READERS + NUM_READERS]
        held_since = min(begins[begins != 0].tolist(), default=int(self.state[CLOCK]) + 1)
        oldest = int(stamps.argmin())
        return oldest if stamps[oldest] < held_since else -1

    def forget(self, place: int) -> None:
        """Take an entry out: what stood behind it without a gap is lifted out and entered again, in order."""
        self.table[place] = 0
        at = (place + 1) % len(self.table)
        while self.table[at, KEY] != 0:
            entry = self.table[at].copy()
            self.table[at] = 0
            self.table[self.place(int(entry[KEY]) - 1)] = entry
            at = (at + 1) % len(self.table)


def memory(address: int, num_bytes: int) -> np.ndarray:
    """The bytes at an address, writeable, (num_bytes,) u8."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def serve(state: np.ndarray, plan: np.ndarray, keys_M: np.ndarray, out: np.ndarray, miss_M: np.ndarray) -> int:
    """Copy the rows of M row keys (-1: none, zeros) out of the cache, as most recently used. Returns how many are absent.

    miss[:absent] = positions of keys that are not here; their rows of `out` are left as they are. out: u8, C-contiguous.
    A plan without a row writer copies nothing and counts nothing: rows are wanted in the cache only.
    """
    cache, is_wanted, absent = _Cache(state), plan[WRITER] != 0, 0
    for m, key in enumerate(keys_M.tolist()):
        place = cache.find(key)
        source = cache.use(place) if place >= 0 else 0
        if key >= 0 and place < 0:
            miss_M[absent] = m
            absent += 1
        elif is_wanted:
            put_out(plan, source, out.ctypes.data + m * int(plan[OUT_BYTES]))
    if is_wanted:
        state[HITS] += np.count_nonzero(keys_M >= 0) - absent
        state[MISSES] += absent
    return absent


def serve_if_all_are_here(state: int, plan: np.ndarray, keys: np.ndarray, num_keys: int, target: int) -> bool:
    """As `serve` for some keys, if all of them are in the cache; else nothing has changed, and False.

    state: the address of STATE. plan: an array that begins with a plan.
    """
    cache = _Cache(_state_at(state))
    wanted = keys[:num_keys].tolist()
    if any(key >= 0 and cache.find(key) < 0 for key in wanted):
        return False
    for m, key in enumerate(wanted):
        source = cache.use(cache.find(key)) if key >= 0 else 0
        cache.state[HITS] += key >= 0
        put_out(plan, source, target + m * int(plan[OUT_BYTES]))
    return True


def _state_at(address: int) -> Any:
    return memory(address, 8 * NUM_STATE).view(np.int64)


def put_out(plan: np.ndarray, source: int, target: int) -> None:
    """The row at an address (0: zeros) to an address."""
    if source == 0:
        memory(target, int(plan[OUT_BYTES]))[:] = 0
    else:
        write_row(plan, source, target)


def hold_those_here(state: int, keys: np.ndarray, num_keys: int, held: np.ndarray) -> int:
    """Addresses of the rows of some keys, as most recently used; -1: not here. One thread: nothing has to be held, no reader.

    state: the address of STATE.
    """
    cache = _Cache(_state_at(state))
    for m, key in enumerate(keys[:num_keys].tolist()):
        place = cache.find(key)
        held[m] = cache.use(place) if place >= 0 else -1
    return 0


def let_go(state: int, reader: int, hits: int, misses: int) -> None:
    """Count hits and misses."""
    del reader
    array = _state_at(state)
    array[HITS] += hits
    array[MISSES] += misses


def insert(state: np.ndarray, rows: np.ndarray, rows_at_U: np.ndarray, keys_U: np.ndarray) -> None:
    """Put U rows in as most recently used, evicting the least recently used; a key that is here already stays as it is.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. Nor is a row kept, and that is counted, where the
    least recently used one is held by a reader.
    """
    cache = _Cache(state)
    for key, at in zip(keys_U.tolist(), rows_at_U.tolist(), strict=True):
        if at < 0 or key < 0 or cache.find(key) >= 0:
            continue
        slot = int(state[USED])
        if slot < cache.num_slots:
            state[USED] += 1
        else:
            oldest = cache.oldest()
            if oldest < 0:
                state[NOT_KEPT] += 1
                continue
            slot = int(cache.table[oldest, SLOT])
            cache.forget(oldest)
            state[EVICTED] += 1
        cache.arena[slot * cache.row_bytes : (slot + 1) * cache.row_bytes] = rows[at : at + cache.row_bytes]
        cache.table[cache.place(key)] = key + 1, cache.tick(), slot
        state[INSERTED] += 1
