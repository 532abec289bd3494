"""What tests of the row cache look at: its rows in order of use, its bytes, who holds rows, a copy."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native import cache_table as parts
from ngramstore.serve.row_cache import RowCache


def entries_of(cache: RowCache) -> np.ndarray:
    """The entries of its table, most recently used first."""
    entries = cache._table[cache._table[:, parts.KEY] != 0]
    return entries[np.argsort(-entries[:, parts.STAMP])]


def keys_of(cache: RowCache) -> list[int]:
    """Its row keys, most recently used first."""
    return (entries_of(cache)[:, parts.KEY] - 1).tolist()


def readers_of(cache: RowCache) -> np.ndarray:
    """What its readers' places say; 0: no reader."""
    return cache.state[parts.READERS :]


def bytes_of(cache: RowCache) -> tuple[bytes, ...]:
    """All that its kernels and their twins leave behind: rows, entries, counters, locks, readers.

    Not in which place of the table an entry stands: that follows from the order in which some rows go and others come.
    """
    rows = cache._arena[: cache.row_bytes * int(cache.state[parts.USED])]
    parts_of_state = cache.state[: parts.NUM_SLOTS], cache.state[parts.INSERTING], readers_of(cache)
    return tuple(part.tobytes() for part in (rows, entries_of(cache), *parts_of_state))


def copy_of(cache: RowCache) -> RowCache:
    """Another cache with the same rows, used in the same order."""
    copied = RowCache(cache.budget_bytes, cache.row_bytes, cache.num_slots)
    for name in ("_arena", "_table", "_oldest"):
        getattr(copied, name)[:] = getattr(cache, name)
    for column in (*range(parts.NUM_SLOTS), parts.OLDEST_AT, parts.NUM_OLDEST):
        copied.state[column] = cache.state[column]
    return copied


def check_sound(cache: RowCache) -> None:
    """Nobody holds a lock or rows; every slot in use has one entry, and every key is found: no gap between its home and its place."""
    assert not readers_of(cache).any()
    assert not cache.state[[parts.LOCK, parts.INSERTING]].any()
    entries = entries_of(cache)
    assert sorted(entries[:, parts.SLOT].tolist()) == list(range(cache.stats()["cache_rows"]))
    assert len(set(entries[:, parts.STAMP].tolist())) == len(set(entries[:, parts.KEY].tolist())) == len(entries)
    assert entries[:, parts.STAMP].max(initial=0) <= cache.state[parts.CLOCK]
    found = np.zeros((len(entries), cache.row_bytes), np.uint8)
    before = cache._table.copy()
    plan = np.zeros(6, np.int64)  # copies nothing, counts nothing
    assert not len(cache.serve(plan, entries[::-1, parts.KEY] - 1, found))
    cache._table[:] = before
