"""What the row cache's kernels mean: the same memory, read as a list and a table.

STATE and the records of slots: kernels/native/cache.py. One thread: the lock is not looked at.

Shapes: M wanted rows, U rows read, C slots.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ngramstore.kernels.reference.dequantize import OUT_BYTES, WRITER, write_row
from ngramstore.kernels.reference.hashing import mix64

LOCK, HITS, MISSES, INSERTED, EVICTED, USED = 0, 1, 2, 3, 4, 5
NUM_SLOTS, TABLE_PLACES, SLOT_BYTES = 6, 7, 8
ARENA_ADDRESS, SLOTS_ADDRESS, TABLE_ADDRESS = 9, 10, 11
NUM_STATE = 12
PREVIOUS, NEXT, PINS = 0, 1, 2
KEY = 2
RECORD_BYTES = 32
_LEAST_RECENT_TRIED = 9


class _Cache:
    """The parts of a cache as arrays over its memory."""

    def __init__(self, state: np.ndarray) -> None:
        self.num_slots, self.row_bytes = int(state[NUM_SLOTS]), int(state[SLOT_BYTES])
        self.arena = memory(int(state[ARENA_ADDRESS]), self.num_slots * self.row_bytes)
        records = memory(int(state[SLOTS_ADDRESS]), RECORD_BYTES * (self.num_slots + 1))
        self.links = records.view(np.int32).reshape(-1, 8)
        self.keys = records.view(np.int64).reshape(-1, 4)[:-1, KEY]
        self.table = memory(int(state[TABLE_ADDRESS]), 4 * int(state[TABLE_PLACES])).view(np.int32)

    def place(self, key: int) -> int:
        """Where the table holds a key, or the free place where it would go: its home, or the next after it that fits."""
        at = mix64(key) % len(self.table)
        while self.table[at] != 0 and self.keys[self.table[at] - 1] != key:
            at = (at + 1) % len(self.table)
        return at

    def find(self, key: int) -> int:
        """The slot of a key, or -1."""
        return int(self.table[self.place(key)]) - 1

    def order(self) -> list[int]:
        """Slots, most recently used first."""
        order = [int(self.links[-1, NEXT])]
        while order[-1] != self.num_slots:
            order.append(int(self.links[order[-1], NEXT]))
        return order[:-1]

    def set_order(self, order: list[int]) -> None:
        """Write the ring that reads as this order."""
        ring = [self.num_slots, *order]
        self.links[ring, NEXT] = ring[1:] + ring[:1]
        self.links[ring, PREVIOUS] = ring[-1:] + ring[:-1]

    def forget(self, slot: int) -> None:
        """Take a slot's key out: what stood behind it without a gap is lifted out and entered again, in order."""
        at = self.place(int(self.keys[slot]))
        self.table[at], self.keys[slot] = 0, -1
        at = (at + 1) % len(self.table)
        while self.table[at] != 0:
            entry, self.table[at] = int(self.table[at]), 0
            self.table[self.place(int(self.keys[entry - 1]))] = entry
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
    order = cache.order()
    for m, key in enumerate(keys_M.tolist()):
        slot = cache.find(key) if key >= 0 else -1
        if slot >= 0:
            order.remove(slot)
            order.insert(0, slot)
        if key >= 0 and slot < 0:
            miss_M[absent] = m
            absent += 1
        elif is_wanted:
            _put_out(cache, plan, slot, out.ctypes.data + m * int(plan[OUT_BYTES]))
    if is_wanted:
        state[HITS] += np.count_nonzero(keys_M >= 0) - absent
        state[MISSES] += absent
    cache.set_order(order)
    return absent


def serve_if_all_are_here(state: int, plan: np.ndarray, keys: np.ndarray, count: int, target: int) -> bool:
    """As `serve` for `count` keys, if all of them are in the cache; else nothing has changed, and False.

    state: the address of STATE. plan: an array that begins with a plan.
    """
    array: Any = memory(state, 8 * NUM_STATE).view(np.int64)
    cache = _Cache(array)
    slots = [cache.find(key) if key >= 0 else None for key in keys[:count].tolist()]
    if -1 in slots:
        return False
    order = cache.order()
    for m, slot in enumerate(slots):
        if slot is not None:
            array[HITS] += 1
            order.remove(slot)
            order.insert(0, slot)
        _put_out(cache, plan, -1 if slot is None else slot, target + m * int(plan[OUT_BYTES]))
    cache.set_order(order)
    return True


def _put_out(cache: _Cache, plan: np.ndarray, slot: int, target: int) -> None:
    """The row of a slot (-1: zeros) to an address."""
    if slot < 0:
        memory(target, int(plan[OUT_BYTES]))[:] = 0
    else:
        write_row(plan, cache.arena.ctypes.data + slot * cache.row_bytes, target)


def pin_those_here(state: int, keys: np.ndarray, count: int, held: np.ndarray) -> int:
    """Slots of `count` keys, as most recently used; -1: not here. Returns how many are here. One thread: nothing is pinned.

    state: the address of STATE.
    """
    cache = _Cache(memory(state, 8 * NUM_STATE).view(np.int64))
    order = cache.order()
    for m, key in enumerate(keys[:count].tolist()):
        held[m] = cache.find(key)
        if held[m] >= 0:
            order.remove(int(held[m]))
            order.insert(0, int(held[m]))
    cache.set_order(order)
    return int(np.count_nonzero(held[:count] >= 0))


def let_go(state: int, held: np.ndarray, count: int, hits: int, misses: int) -> None:
    """Count hits and misses."""
    array: Any = memory(state, 8 * NUM_STATE).view(np.int64)
    array[HITS] += hits
    array[MISSES] += misses


def insert(state: np.ndarray, rows: np.ndarray, rows_at_U: np.ndarray, keys_U: np.ndarray) -> None:
    """Put U rows in as most recently used, evicting the least recently used; a key that is here already stays as it is.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. The victim is the first unpinned of the nine least
    recently used; where there is none the row is not kept.
    """
    cache = _Cache(state)
    order = cache.order()
    for key, at in zip(keys_U.tolist(), rows_at_U.tolist(), strict=True):
        if at < 0 or cache.find(key) >= 0:
            continue
        if state[USED] < cache.num_slots:
            slot = int(state[USED])
            state[USED] += 1
        else:
            tried = order[: -_LEAST_RECENT_TRIED - 1 : -1]
            slot = next((victim for victim in tried if cache.links[victim, PINS] == 0), -1)
            if slot < 0:
                continue
            order.remove(slot)
            cache.forget(slot)
            state[EVICTED] += 1
        cache.arena[slot * cache.row_bytes : (slot + 1) * cache.row_bytes] = rows[at : at + cache.row_bytes]
        place = cache.place(key)
        cache.keys[slot], cache.table[place] = key, slot + 1
        order.insert(0, slot)
        state[INSERTED] += 1
    cache.set_order(order)


def distinct(
    seen: np.ndarray,
    keys_M: np.ndarray,
    seeds_M: np.ndarray,
    miss_M: np.ndarray,
    miss_keys_M: np.ndarray,
    miss_seeds_M: np.ndarray,
) -> int:
    """List each wanted row key once, in order of appearance; miss[m] = its place, -1 where none is wanted. Returns how many."""
    places: dict[int, int] = {}
    for m, key in enumerate(keys_M.tolist()):
        if key >= 0 and key not in places:
            miss_keys_M[len(places)], miss_seeds_M[len(places)] = key, seeds_M[m]
            places[key] = len(places)
        miss_M[m] = places.get(key, -1)
    return len(places)
