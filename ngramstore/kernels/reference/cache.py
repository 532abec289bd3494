"""What the row cache's bookkeeping means: the same arrays as the compiled kernels, read as a list and a table.

C slots of row_bytes in one arena; slot_keys[c] is the row key in slot c (-1: free). `links` (C + 1, 4) int32 is a ring:
previous, next, pins, unused; from line C its `next` is the most recently used slot, its `previous` the least. `table` is
open addressing by row key: slot + 1, 0 = free.

Shapes: M wanted rows, U rows read, C slots.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.reference.hashing import mix64

PREVIOUS, NEXT, PINS = 0, 1, 2
HITS, MISSES, INSERTED, EVICTED, USED = 0, 1, 2, 3, 4
NUM_COUNTERS = 5
_LEAST_RECENT_TRIED = 9


def _place(table: np.ndarray, slot_keys: np.ndarray, key: int) -> int:
    """Where the table holds a key, or the free place where it would go: its home, or the next after it that fits."""
    at = mix64(key) % len(table)
    while table[at] != 0 and slot_keys[table[at] - 1] != key:
        at = (at + 1) % len(table)
    return at


def _order(links: np.ndarray) -> list[int]:
    """Slots, most recently used first."""
    anchor = len(links) - 1
    order = [int(links[anchor, NEXT])]
    while order[-1] != anchor:
        order.append(int(links[order[-1], NEXT]))
    return order[:-1]


def _set_order(links: np.ndarray, order: list[int]) -> None:
    """Write the ring that reads as this order."""
    ring = [len(links) - 1, *order]
    links[ring, NEXT] = ring[1:] + ring[:1]
    links[ring, PREVIOUS] = ring[-1:] + ring[:-1]


def _forget(table: np.ndarray, slot_keys: np.ndarray, slot: int) -> None:
    """Take a slot's key out of the table: what stood behind it without a gap is lifted out and entered again, in order."""
    at = _place(table, slot_keys, int(slot_keys[slot]))
    table[at], slot_keys[slot] = 0, -1
    at = (at + 1) % len(table)
    while table[at] != 0:
        entry, table[at] = int(table[at]), 0
        table[_place(table, slot_keys, int(slot_keys[entry - 1]))] = entry
        at = (at + 1) % len(table)


def _list_once(
    seen: np.ndarray, key: int, seed: int, miss_keys_M: np.ndarray, miss_seeds_M: np.ndarray, absent: int
) -> int:
    """Place of a key in the list of absent ones, entered there if it is new; `seen` holds place + 1 by key."""
    at = _place(seen, miss_keys_M, key)
    if seen[at] == 0:
        miss_keys_M[absent], miss_seeds_M[absent] = key, seed
        seen[at] = absent + 1
    return int(seen[at]) - 1


def acquire(
    table: np.ndarray,
    slot_keys: np.ndarray,
    links: np.ndarray,
    counters: np.ndarray,
    row_bytes: int,
    seen: np.ndarray,
    keys_M: np.ndarray,
    seeds_M: np.ndarray,
    offsets_M: np.ndarray,
    slots_M: np.ndarray,
    miss_M: np.ndarray,
    miss_keys_M: np.ndarray,
    miss_seeds_M: np.ndarray,
) -> int:
    """Find M row keys (-1: nothing wanted) and pin the slots of those present; list each absent key once.

    offsets[m] = byte offset in the arena, -1 nothing wanted, -2 absent; slots[m] = pinned slot or -1; miss[m] = place in
    miss_keys of an absent key, else -1. Returns absent keys.
    """
    absent = 0
    order = _order(links)
    slots_M[:], miss_M[:] = -1, -1
    for m, key in enumerate(keys_M.tolist()):
        if key < 0:
            offsets_M[m] = -1
            continue
        slot = int(table[_place(table, slot_keys, key)]) - 1
        if slot >= 0:
            counters[HITS] += 1
            links[slot, PINS] += 1
            order.remove(slot)
            order.insert(0, slot)
            slots_M[m], offsets_M[m] = slot, slot * row_bytes
        else:
            counters[MISSES] += 1
            offsets_M[m] = -2
            miss_M[m] = _list_once(seen, key, int(seeds_M[m]), miss_keys_M, miss_seeds_M, absent)
            absent = max(absent, int(miss_M[m]) + 1)
    _set_order(links, order)
    return absent


def touch(
    table: np.ndarray,
    slot_keys: np.ndarray,
    links: np.ndarray,
    counters: np.ndarray,
    row_bytes: int,
    keys_M: np.ndarray,
    offsets_M: np.ndarray,
) -> bool:
    """All of a few row keys present (-1: nothing wanted)? Then offsets as `acquire` gives them, and True; nothing is pinned.

    False: at least one is absent; nothing has changed.
    """
    slots = [int(table[_place(table, slot_keys, key)]) - 1 if key >= 0 else None for key in keys_M.tolist()]
    if -1 in slots:
        return False
    order = _order(links)
    for m, slot in enumerate(slots):
        offsets_M[m] = -1 if slot is None else slot * row_bytes
        if slot is not None:
            counters[HITS] += 1
            order.remove(slot)
            order.insert(0, slot)
    _set_order(links, order)
    return True


def insert(
    table: np.ndarray,
    slot_keys: np.ndarray,
    links: np.ndarray,
    counters: np.ndarray,
    arena: np.ndarray,
    row_bytes: int,
    rows: np.ndarray,
    rows_at_U: np.ndarray,
    keys_U: np.ndarray,
    miss_M: np.ndarray,
    offsets_M: np.ndarray,
    slots_M: np.ndarray,
    slots_U: np.ndarray,
) -> None:
    """Put U rows in as most recently used, evicting the least recently used; pin those that M positions wait for.

    Row u lies at rows[rows_at[u]]; rows_at -1: damaged, not kept. The victim is the first unpinned of the nine least
    recently used; where there is none the row finds no slot and offsets[m] stays -2. slots_U: scratch.
    """
    num_slots = len(slot_keys)
    order = _order(links)
    slots_U[:] = -1
    for u, (key, at) in enumerate(zip(keys_U.tolist(), rows_at_U.tolist(), strict=True)):
        if at < 0:
            continue
        slot = int(table[_place(table, slot_keys, key)]) - 1
        if slot < 0:
            if counters[USED] < num_slots:
                slot = int(counters[USED])
                counters[USED] += 1
            else:
                tried = order[: -_LEAST_RECENT_TRIED - 1 : -1]
                slot = next((victim for victim in tried if links[victim, PINS] == 0), -1)
                if slot < 0:
                    continue
                order.remove(slot)
                _forget(table, slot_keys, slot)
                counters[EVICTED] += 1
            arena[slot * row_bytes : (slot + 1) * row_bytes] = rows[at : at + row_bytes]
            slot_keys[slot] = key
            table[_place(np.where(table == slot + 1, 0, table), slot_keys, key)] = slot + 1
            order.insert(0, slot)
            counters[INSERTED] += 1
        links[slot, PINS] += 1  # until the end of this call: a later row must not evict it
        slots_U[u] = slot
    for m, u in enumerate(miss_M.tolist()):
        if u >= 0 and slots_U[u] >= 0:
            slots_M[m], offsets_M[m] = slots_U[u], int(slots_U[u]) * row_bytes
            links[slots_U[u], PINS] += 1
    unpin(links, slots_U)
    _set_order(links, order)


def unpin(links: np.ndarray, slots_M: np.ndarray) -> None:
    """Give back the pins of slots[m] (-1: none)."""
    np.subtract.at(links[:, PINS], slots_M[slots_M >= 0], 1)


def distinct(
    seen: np.ndarray,
    keys_M: np.ndarray,
    seeds_M: np.ndarray,
    miss_M: np.ndarray,
    miss_keys_M: np.ndarray,
    miss_seeds_M: np.ndarray,
) -> int:
    """Without a cache: list each wanted row key once; miss[m] = its place or -1. Returns how many."""
    absent = 0
    for m, key in enumerate(keys_M.tolist()):
        miss_M[m] = -1 if key < 0 else _list_once(seen, key, int(seeds_M[m]), miss_keys_M, miss_seeds_M, absent)
        absent = max(absent, int(miss_M[m]) + 1)
    return absent
