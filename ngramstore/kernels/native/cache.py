"""The row cache's bookkeeping without the GIL: find and pin, insert and evict, unpin. Meaning: kernels/reference/cache.py.

C slots of row_bytes in one arena; slot_keys[c] is the row key in slot c (-1: free). `links` (C + 1, 4) int32: previous,
next, pins, unused; line C is the list's anchor: its next is the most recently used slot, its previous the least.
`table` (power of two, at least 2 C) int32: open addressing by row key, slot + 1, 0 = free.
Callers hold the cache's lock; rows are copied out of pinned slots without it.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import mix64
from ngramstore.kernels.native.memory import copy_bytes, prefetch

PREVIOUS, NEXT, PINS = 0, 1, 2
HITS, MISSES, INSERTED, EVICTED, USED = 0, 1, 2, 3, 4
NUM_COUNTERS = 5
_PATIENCE = 8
_AHEAD = 8


@inline
def _home(table, key):
    return np.int64(mix64(np.uint64(key)) & np.uint64(table.shape[0] - 1))


@inline
def _slot_of(table, slot_keys, key):
    """Slot of a key, or -1."""
    mask = table.shape[0] - 1
    at = _home(table, key)
    while True:
        entry = table[at]
        if entry == 0:
            return np.int64(-1)
        if slot_keys[entry - 1] == key:
            return np.int64(entry - 1)
        at = (at + 1) & mask


@inline
def _unlink(links, slot):
    before = links[slot, PREVIOUS]
    after = links[slot, NEXT]
    links[before, NEXT] = after
    links[after, PREVIOUS] = before


@inline
def _push_front(links, slot):
    anchor = links.shape[0] - 1
    first = links[anchor, NEXT]
    links[slot, PREVIOUS] = anchor
    links[slot, NEXT] = first
    links[first, PREVIOUS] = slot
    links[anchor, NEXT] = slot


@inline
def _forget(table, slot_keys, slot):
    """Take a slot's key out of the table, closing the gap (backward-shift deletion)."""
    mask = table.shape[0] - 1
    at = _home(table, slot_keys[slot])
    while table[at] != slot + 1:
        at = (at + 1) & mask
    hole = at
    while True:
        at = (at + 1) & mask
        entry = table[at]
        if entry == 0:
            break
        home = _home(table, slot_keys[entry - 1])
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = entry
            hole = at
    table[hole] = 0
    slot_keys[slot] = -1


@kernel
def acquire(
    table,
    slot_keys,
    links,
    counters,
    row_bytes,
    seen,
    keys_M,
    seeds_M,
    offsets_M,
    slots_M,
    miss_M,
    miss_keys_M,
    miss_seeds_M,
):
    """Find M row keys (-1: nothing wanted) and pin the slots of those present; list each absent key once.

    offsets[m] = byte offset in the arena, -1 nothing wanted, -2 absent; slots[m] = pinned slot or -1; miss[m] = place in
    miss_keys of an absent key, else -1. `seen`: zeroed scratch, a power of two of at least 2 M. Returns absent keys.
    """
    count = keys_M.shape[0]
    seen_mask = seen.shape[0] - 1
    absent = 0
    for m in range(count):
        if m + 2 * _AHEAD < count and keys_M[m + 2 * _AHEAD] >= 0:
            prefetch(np.int64(table.ctypes.data) + 4 * _home(table, keys_M[m + 2 * _AHEAD]))
        if m + _AHEAD < count and keys_M[m + _AHEAD] >= 0:
            likely = np.int64(table[_home(table, keys_M[m + _AHEAD])]) - 1
            if likely >= 0:
                prefetch(np.int64(slot_keys.ctypes.data) + 8 * likely)
                prefetch(np.int64(links.ctypes.data) + 16 * likely)
        key = keys_M[m]
        slots_M[m] = -1
        miss_M[m] = -1
        if key < 0:
            offsets_M[m] = -1
            continue
        slot = _slot_of(table, slot_keys, key)
        if slot >= 0:
            counters[HITS] += 1
            links[slot, PINS] += 1
            _unlink(links, slot)
            _push_front(links, slot)
            slots_M[m] = slot
            offsets_M[m] = slot * row_bytes
            continue
        counters[MISSES] += 1
        offsets_M[m] = -2
        at = _home(seen, key)
        while seen[at] != 0 and miss_keys_M[seen[at] - 1] != key:
            at = (at + 1) & seen_mask
        if seen[at] == 0:
            miss_keys_M[absent] = key
            miss_seeds_M[absent] = seeds_M[m]
            absent += 1
            seen[at] = absent
        miss_M[m] = seen[at] - 1
    return absent


@kernel
def touch(table, slot_keys, links, counters, row_bytes, keys_M, offsets_M):
    """All of a few row keys present (-1: nothing wanted)? Then offsets as `acquire` gives them, and True; nothing is pinned.

    False: at least one is absent; nothing has changed. The caller copies rows out before it lets go of the lock.
    """
    for m in range(keys_M.shape[0]):
        offsets_M[m] = -1
        if keys_M[m] >= 0:
            slot = _slot_of(table, slot_keys, keys_M[m])
            if slot < 0:
                return False
            offsets_M[m] = slot * row_bytes
    for m in range(keys_M.shape[0]):
        if offsets_M[m] >= 0:
            slot = offsets_M[m] // row_bytes
            counters[HITS] += 1
            _unlink(links, slot)
            _push_front(links, slot)
    return True


@kernel
def insert(
    table, slot_keys, links, counters, arena, row_bytes, rows, rows_at_U, keys_U, miss_M, offsets_M, slots_M, slots_U
):
    """Put U rows in as most recently used, evicting the least recently used; pin those that M positions wait for.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. Sets offsets[m] and slots[m] of positions whose row is
    now in a slot; a row that found no slot (all others pinned) leaves offsets[m] = -2. slots_U: scratch.
    """
    num_slots = slot_keys.shape[0]
    mask = table.shape[0] - 1
    to = np.int64(arena.ctypes.data)
    source = np.int64(rows.ctypes.data)
    for u in range(keys_U.shape[0]):
        slots_U[u] = -1
        if rows_at_U[u] < 0:
            continue
        key = keys_U[u]
        slot = _slot_of(table, slot_keys, key)
        if slot < 0:
            if counters[USED] < num_slots:
                slot = counters[USED]
                counters[USED] += 1
            else:
                slot = np.int64(links[num_slots, PREVIOUS])
                patience = _PATIENCE
                while slot != num_slots and links[slot, PINS] > 0 and patience > 0:
                    slot = np.int64(links[slot, PREVIOUS])
                    patience -= 1
                if slot == num_slots or links[slot, PINS] > 0:
                    continue
                _unlink(links, slot)
                _forget(table, slot_keys, slot)
                counters[EVICTED] += 1
            copy_bytes(to + slot * row_bytes, source + rows_at_U[u], row_bytes)
            slot_keys[slot] = key
            at = _home(table, key)
            while table[at] != 0:
                at = (at + 1) & mask
            table[at] = slot + 1
            _push_front(links, slot)
            counters[INSERTED] += 1
        links[slot, PINS] += 1
        slots_U[u] = slot
    for m in range(miss_M.shape[0]):
        if miss_M[m] >= 0 and slots_U[miss_M[m]] >= 0:
            slot = np.int64(slots_U[miss_M[m]])
            links[slot, PINS] += 1
            slots_M[m] = slot
            offsets_M[m] = slot * row_bytes
    unpin(links, slots_U)


@kernel
def unpin(links, slots_M):
    """Give back the pins of slots[m] (-1: none)."""
    for m in range(slots_M.shape[0]):
        if slots_M[m] >= 0:
            links[slots_M[m], PINS] -= 1


@kernel
def distinct(seen, keys_M, seeds_M, miss_M, miss_keys_M, miss_seeds_M):
    """Without a cache: list each wanted row key once; miss[m] = its place or -1. Returns how many."""
    mask = seen.shape[0] - 1
    absent = 0
    for m in range(keys_M.shape[0]):
        key = keys_M[m]
        if key < 0:
            miss_M[m] = -1
            continue
        at = _home(seen, key)
        while seen[at] != 0 and miss_keys_M[seen[at] - 1] != key:
            at = (at + 1) & mask
        if seen[at] == 0:
            miss_keys_M[absent] = key
            miss_seeds_M[absent] = seeds_M[m]
            absent += 1
            seen[at] = absent
        miss_M[m] = seen[at] - 1
    return absent
