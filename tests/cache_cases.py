"""A row cache driven by its kernels or by their twins, and what tests look at: its rows in order of use, its bytes, who
holds rows, a copy."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native import cache as native_cache
from ngramstore.kernels.native import cache_table as parts
from ngramstore.kernels.native.dequantize import row_writer
from ngramstore.kernels.reference import cache as reference_cache
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES, RowCache


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
    """Nobody holds a lock or rows; every slot in use has one entry, and every key is found: no gap between its home and
    its place."""
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


class CacheState:
    """A row cache driven by one package of kernels; its rows are the key's byte, repeated."""

    ROW = 3

    def __init__(self, module, num_slots: int) -> None:
        self.module, self.num_slots = module, num_slots
        self.cache = RowCache(num_slots * (self.ROW + SLOT_OVERHEAD_BYTES), self.ROW, num_slots)
        self.state = self.cache.state
        self.plan = np.array([row_writer("copy", "copy"), self.ROW, self.ROW, self.ROW, self.ROW, 0])
        self.readers: list[int] = []

    def serve(self, keys, plan=None):
        """Rows of those keys and positions of absent ones; a row that is absent stays 99."""
        keys = np.array(keys, np.int64)
        out, miss = np.full((len(keys), self.ROW), 99, np.uint8), np.zeros(len(keys), np.int64)
        absent = self.module.serve(self.state, self.plan if plan is None else plan, keys, out, miss)
        return out.tolist(), miss[:absent].tolist()

    def insert(self, keys, lost=()):
        """Put keys in, but for those that are lost."""
        keys = np.array(keys, np.int64)
        at = np.arange(len(keys)) * self.ROW
        at[np.isin(keys, list(lost))] = -1
        self.module.insert(self.state, np.repeat(keys % 251, self.ROW).astype(np.uint8), at, keys)

    def serve_if_all_are_here(self, keys, plan=None):
        """Rows if all of those keys are there."""
        keys = np.array(keys, np.int64)
        out = np.full((len(keys), self.ROW), 99, np.uint8)
        call = compiled_serve if self.module is native_cache else reference_cache.serve_if_all_are_here
        there = call(self.state.ctypes.data, self.plan if plan is None else plan, keys, len(keys), out.ctypes.data)
        return out.tolist() if there else None

    def hold(self, keys) -> None:
        """Be another thread that is copying some rows out: what is there of them was found by it, the first of them first."""
        stamps = {key - 1: stamp for key, stamp, _ in entries_of(self.cache).tolist()}
        begin = min((stamps[key] for key in keys if key in stamps), default=int(self.state[parts.CLOCK]) + 1)
        free = int(np.flatnonzero(readers_of(self.cache) == 0)[-1])
        readers_of(self.cache)[free] = begin
        self.readers.append(free)

    def let_go(self) -> None:
        if self.readers:
            readers_of(self.cache)[self.readers.pop(0)] = 0


@kernel
def compiled_serve(state, plan, keys, count, target):
    """The helper, callable from here."""
    return native_cache.serve_if_all_are_here(state, plan, keys, count, target)
