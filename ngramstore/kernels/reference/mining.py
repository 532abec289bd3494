"""What the kernels of `ngramstore/kernels/native/mining.py` mean, one n-gram at a time.

A table is (C, 2) u64 rows of key and value, EMPTY where free; an entry lies at its slot or at the next free one after it.

Shapes: T position, C table slots, N keys, M n-grams, K longest n-gram.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.reference.hashing import extend_state, seed_state

_EMPTY = 0xFFFFFFFFFFFFFFFF
_NO_ID = 0xFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15


def _find(table_C2: np.ndarray, key: int) -> int:
    """The slot that holds a key, or the free one where it would go."""
    mixed = (key ^ (key >> 32)) * _GOLDEN & _EMPTY
    slot = (mixed >> 32) * len(table_C2) >> 32
    while int(table_C2[slot, 0]) not in (key, _EMPTY):
        slot = (slot + 1) % len(table_C2)
    return slot


def _hash(tokens: np.ndarray) -> int:
    h = seed_state(0)
    for token in tokens[::-1].tolist():
        h = extend_state(h, token)
    return 0 if h == _EMPTY else h


def pack_keys(before: int, ids_T: np.ndarray, tokens_T: np.ndarray, out_T: np.ndarray) -> None:
    """out[t] = number of the (n-1)-gram that ends at t-1, and token t; EMPTY unless those ending at t-1 and t are frequent."""
    prefix_T = np.concatenate([[before], ids_T[:-1]]).astype(np.uint64)[: len(ids_T)]
    is_key_T = (prefix_T != _NO_ID) & (ids_T != _NO_ID)
    out_T[:] = np.where(is_key_T, prefix_T << np.uint64(32) | tokens_T, np.uint64(_EMPTY))


def count_keys(keys_T: np.ndarray, table_C2: np.ndarray, used: int, most_used: int) -> tuple[int, int]:
    """Add one to the count of each key up to the first that would need slot most_used + 1: -> (positions done, slots used)."""
    for t, key in enumerate(keys_T.tolist()):
        if key == _EMPTY:
            continue
        slot = _find(table_C2, key)
        if table_C2[slot, 0] == _EMPTY:
            if used >= most_used:
                return t, used
            used += 1
            table_C2[slot] = key, 0
        table_C2[slot, 1] += np.uint64(1)
    return len(keys_T), used


def rehash_counts(old_C2: np.ndarray, new_C2: np.ndarray) -> None:
    """Enter all of one table, in its order, into an empty one."""
    for key, count in old_C2[old_C2[:, 0] != _EMPTY].tolist():
        new_C2[_find(new_C2, key)] = key, count


def gather_counts(table_C2: np.ndarray, min_count: int) -> int:
    """Move the entries counted at least min_count times to the front, in table order: -> how many. The rest is undefined."""
    kept_N2 = table_C2[(table_C2[:, 0] != _EMPTY) & (table_C2[:, 1] >= min_count)]
    table_C2[: len(kept_N2)] = kept_N2
    return len(kept_N2)


def fill_ids(keys_N: np.ndarray, first_id: int, table_C2: np.ndarray) -> None:
    """Enter different keys with the numbers first_id, first_id + 1, ... into an empty table."""
    for number, key in enumerate(keys_N.tolist(), first_id):
        table_C2[_find(table_C2, key)] = key, number


def find_ids(keys_T: np.ndarray, table_C2: np.ndarray, ids_T: np.ndarray) -> None:
    """ids[t] = number of keys[t] where the table has it; other positions stay as they are."""
    for t, key in enumerate(keys_T.tolist()):
        slot = _find(table_C2, key)
        if key != _EMPTY and table_C2[slot, 0] == key:
            ids_T[t] = table_C2[slot, 1]


def fill_matches(tokens_MK: np.ndarray, lengths_M: np.ndarray, table_C2: np.ndarray) -> int:
    """Enter M n-grams by hash with their row numbers: -> -1, or the row of the first n-gram that was there already."""
    seen: set[tuple[int, ...]] = set()
    for m, length in enumerate(lengths_M.tolist()):
        ngram = tuple(tokens_MK[m, :length].tolist())
        if ngram in seen:
            return m
        seen.add(ngram)
        h = _hash(tokens_MK[m, :length])
        slot = _find(table_C2, h)
        while table_C2[slot, 0] != _EMPTY:  # the same hash for another n-gram: both stay
            slot = (slot + 1) % len(table_C2)
        table_C2[slot] = h, m
    return -1


def longest_matches(
    tokens_T: np.ndarray,
    starts_T: np.ndarray,
    tokens_MK: np.ndarray,
    lengths_M: np.ndarray,
    shortest: int,
    table_C2: np.ndarray,
    is_closed: bool,
    out_lengths_T: np.ndarray,
    out_rows_T: np.ndarray,
) -> None:
    """The longest n-gram that ends at each position inside its document: its length (0: none) and row (-1: none).

    N-grams of fewer than `shortest` tokens do not count. is_closed promises that a longer n-gram matches only where those of
    all lengths from `shortest` up match; it changes no answer then.
    """
    rows = {tuple(tokens_MK[m, :length].tolist()): m for m, length in enumerate(lengths_M.tolist())}
    begin = 0
    for t in range(len(tokens_T)):
        begin = t if starts_T[t] else begin
        out_lengths_T[t], out_rows_T[t] = 0, -1
        for n in range(shortest, min(t + 1 - begin, tokens_MK.shape[1]) + 1):
            row = rows.get(tuple(tokens_T[t + 1 - n : t + 1].tolist()))
            if row is not None:
                out_lengths_T[t], out_rows_T[t] = n, row
