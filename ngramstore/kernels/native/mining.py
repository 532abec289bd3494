"""Counting, finding and tagging n-grams, one array pass each (docs/mining.md says how they fit together).

A key packs (number of the frequent prefix of length n-1, next token) into 64 bits; EMPTY is the key of "no n-gram here".
`ngramstore/kernels/reference/mining.py` says in plain numpy what each function here means.

Shapes: T position, C table slots, N keys, M n-grams, K longest n-gram.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.hashing import extend_state, seed_state
from ngramstore.kernels.native.memory import prefetch

EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
"""The key of a free slot, and of a position where no n-gram ends."""
_NO_ID = np.uint32(0xFFFFFFFF)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_32 = np.uint64(32)
_ONE = np.uint64(1)
_AHEAD = 12
"""Keys. A table slot is asked for this long before it is used, so that misses of the CPU's caches overlap."""


@inline
def _slot(key, num_slots):
    """Where to look for a key first: the high half of a product, scaled to the table (no power of two needed)."""
    z = (key ^ (key >> _32)) * _GOLDEN
    return np.int64(((z >> _32) * np.uint64(num_slots)) >> _32)


@kernel
def pack_keys(before, ids_T, tokens_T, out_T):
    """Keys of the n-grams that end at each position, from the (n-1)-gram numbers that end there and one before.

    before: number of the (n-1)-gram that ends just before position 0; ids_T, tokens_T (T,) u32; out_T (T,) u64.
    A position gets a key only where both (n-1)-grams, prefix and suffix, are frequent; else EMPTY.
    """
    prefix = np.uint32(before)
    for t in range(len(ids_T)):
        suffix = ids_T[t]
        if prefix != _NO_ID and suffix != _NO_ID:
            out_T[t] = (np.uint64(prefix) << _32) | np.uint64(tokens_T[t])
        else:
            out_T[t] = EMPTY
        prefix = suffix


@kernel
def count_keys(keys_T, table_C2, used, most_used):
    """Add one to the count of every key: -> (number of positions done, slots in use now).

    table_C2 (C, 2) u64 rows of key and count, EMPTY where free. Stops before the key that would need slot most_used + 1.
    """
    num_slots = len(table_C2)
    table = np.int64(table_C2.ctypes.data)
    for t in range(len(keys_T)):
        if t + _AHEAD < len(keys_T):
            prefetch(table + 16 * _slot(keys_T[t + _AHEAD], num_slots))  # type: ignore[call-arg]
        key = keys_T[t]
        if key == EMPTY:
            continue
        slot = _slot(key, num_slots)
        while True:
            there = table_C2[slot, 0]
            if there == key:
                table_C2[slot, 1] += _ONE
                break
            if there == EMPTY:
                if used >= most_used:
                    return t, used
                table_C2[slot, 0] = key
                table_C2[slot, 1] = _ONE
                used += 1
                break
            slot += 1
            if slot == num_slots:
                slot = 0
    return len(keys_T), used


@kernel
def rehash_counts(old_C2, new_C2):
    """Move every entry of one count table into a larger, empty one."""
    num_slots = len(new_C2)
    for c in range(len(old_C2)):
        key = old_C2[c, 0]
        if key == EMPTY:
            continue
        slot = _slot(key, num_slots)
        while new_C2[slot, 0] != EMPTY:
            slot += 1
            if slot == num_slots:
                slot = 0
        new_C2[slot, 0] = key
        new_C2[slot, 1] = old_C2[c, 1]


@kernel
def gather_counts(table_C2, min_count):
    """Move the entries counted at least min_count times to the front, in table order: -> how many. The rest is undefined."""
    used = 0
    for c in range(len(table_C2)):
        if table_C2[c, 0] != EMPTY and table_C2[c, 1] >= np.uint64(min_count):
            table_C2[used, 0] = table_C2[c, 0]
            table_C2[used, 1] = table_C2[c, 1]
            used += 1
    return used


@kernel
def fill_ids(keys_N, first_id, table_C2):
    """Enter keys_N (N,) u64, all different, with the numbers first_id, first_id + 1, ... into an empty table of C > N slots."""
    num_slots = len(table_C2)
    for i in range(len(keys_N)):
        slot = _slot(keys_N[i], num_slots)
        while table_C2[slot, 0] != EMPTY:
            slot += 1
            if slot == num_slots:
                slot = 0
        table_C2[slot, 0] = keys_N[i]
        table_C2[slot, 1] = np.uint64(first_id + i)


@kernel
def find_ids(keys_T, table_C2, ids_T):
    """ids[t] = the number of keys[t] where the table has it; other positions stay as they are. ids_T (T,) u32."""
    num_slots = len(table_C2)
    table = np.int64(table_C2.ctypes.data)
    for t in range(len(keys_T)):
        if t + _AHEAD < len(keys_T):
            prefetch(table + 16 * _slot(keys_T[t + _AHEAD], num_slots))  # type: ignore[call-arg]
        key = keys_T[t]
        if key == EMPTY:
            continue
        slot = _slot(key, num_slots)
        while True:
            there = table_C2[slot, 0]
            if there == key:
                ids_T[t] = np.uint32(table_C2[slot, 1])
                break
            if there == EMPTY:
                break
            slot += 1
            if slot == num_slots:
                slot = 0


@kernel
def fill_matches(tokens_MK, lengths_M, table_C2):
    """Enter M n-grams by hash with their row numbers: -> -1, or the row of the first n-gram that was there already.

    The hash takes the last token first, so that the hash of a longer suffix is one more mix of the shorter one's.
    """
    num_slots = len(table_C2)
    empty_state = seed_state(np.uint64(0))
    for m in range(len(lengths_M)):
        h = empty_state
        for n in range(lengths_M[m]):
            h = extend_state(h, tokens_MK[m, lengths_M[m] - 1 - n])
        if h == EMPTY:
            h = np.uint64(0)
        slot = _slot(h, num_slots)
        while table_C2[slot, 0] != EMPTY:
            if table_C2[slot, 0] == h:
                row = np.int64(table_C2[slot, 1])
                same = lengths_M[row] == lengths_M[m]
                for k in range(lengths_M[m]):
                    same = same and tokens_MK[row, k] == tokens_MK[m, k]
                if same:
                    return m
            slot += 1
            if slot == num_slots:
                slot = 0
        table_C2[slot, 0] = h
        table_C2[slot, 1] = np.uint64(m)
    return -1


@kernel
def longest_matches(tokens_T, starts_T, tokens_MK, lengths_M, shortest, table_C2, is_closed, out_lengths_T, out_rows_T):
    """The longest n-gram that ends at each position inside its document: its length (0: none) and row (-1: none).

    tokens_T (T,) u32; starts_T (T,) bool, True at a document's first token. N-grams of fewer than `shortest` tokens are not
    looked for: it is the shortest stored length, found once by the caller, as M may be much larger than T. is_closed lets
    the search stop at the first length that misses; tokens are compared, so a hash collision cannot lie.
    """
    num_slots = len(table_C2)
    max_n = tokens_MK.shape[1]
    table = np.int64(table_C2.ctypes.data)
    empty_state = seed_state(np.uint64(0))
    room = 0
    for t in range(len(tokens_T)):
        if t + _AHEAD < len(tokens_T):  # the pair that ends there; it is also the one most often stored
            h = extend_state(extend_state(empty_state, tokens_T[t + _AHEAD]), tokens_T[t + _AHEAD - 1])
            prefetch(table + 16 * _slot(h, num_slots))  # type: ignore[call-arg]
        room = 1 if starts_T[t] else min(room + 1, max_n)
        best_length = 0
        best_row = np.int64(-1)
        h = empty_state
        for n in range(1, room + 1):
            h = extend_state(h, tokens_T[t - n + 1])
            if n < shortest:
                continue
            wanted = h if h != EMPTY else np.uint64(0)
            slot = _slot(wanted, num_slots)
            found = False
            while table_C2[slot, 0] != EMPTY:
                if table_C2[slot, 0] == wanted:
                    row = np.int64(table_C2[slot, 1])
                    found = np.int64(lengths_M[row]) == n
                    for k in range(n):
                        found = found and tokens_MK[row, k] == tokens_T[t - n + 1 + k]
                    if found:
                        best_length = n
                        best_row = row
                        break
                slot += 1
                if slot == num_slots:
                    slot = 0
            if is_closed and not found:
                break
        out_lengths_T[t] = best_length
        out_rows_T[t] = best_row
