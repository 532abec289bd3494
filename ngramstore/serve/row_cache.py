"""A byte budget of encoded rows in memory, least recently used first out; safe for threads.

The arena is allocated once and touched as it fills. The kernels take the cache's lock for a block of rows at a time, never
while they copy rows out or in, and no lock is held in Python: threads share the cache and copy side by side.

Shapes: M wanted rows, U rows read, C slots.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native import cache as native
from ngramstore.kernels.native import cache_oldest as oldest
from ngramstore.kernels.native import cache_table as table
from ngramstore.kernels.native.dequantize import NUM_PLAN

SLOT_OVERHEAD_BYTES = native.SLOT_OVERHEAD_BYTES
_LEAST_OLDEST = 64
NO_CACHE = np.empty(0, np.int64)
"""The state of no cache: rows are kept nowhere."""
NO_WRITER: np.ndarray = np.zeros(NUM_PLAN, np.int64)
"""A plan that copies nothing."""
NOWHERE = np.empty((0, 1), np.uint8)
"""Where it copies that to."""


class RowCache:
    """LRU cache of encoded rows by row key. Threads: any number."""

    def __init__(self, budget_bytes: int, row_bytes: int, max_rows: int) -> None:
        self.budget_bytes = budget_bytes
        self.row_bytes = row_bytes
        self._most_slots = max(1, min(budget_bytes // (row_bytes + SLOT_OVERHEAD_BYTES), (1 << 31) - 2))
        self.num_slots = min(self._most_slots, max(1, max_rows))
        self._arena = np.empty(self.num_slots * row_bytes, np.uint8)
        self._table = np.zeros((table.PLACES_PER_SLOT * self.num_slots, table.ENTRY), np.int64)
        most_oldest = max(_LEAST_OLDEST, self.num_slots // oldest.SLOTS_PER_LISTED)
        self._oldest = np.empty((min(self.num_slots, most_oldest), oldest.NUMBERS), np.int64)
        self._scratch = np.empty(oldest.scratch_numbers(len(self._oldest)), np.int64)
        self.state = np.zeros(table.NUM_STATE, np.int64)
        self.state[table.NUM_SLOTS] = self.num_slots
        self.state[table.NUM_PLACES] = len(self._table)
        self.state[table.SLOT_BYTES] = row_bytes
        self.state[table.MOST_OLDEST] = len(self._oldest)
        self.state[table.ARENA_ADDRESS] = self._arena.ctypes.data
        self.state[table.TABLE_ADDRESS] = self._table.ctypes.data
        self.state[table.OLDEST_ADDRESS] = self._oldest.ctypes.data
        self.state[table.SCRATCH_ADDRESS] = self._scratch.ctypes.data

    def is_outgrown_by(self, num_rows: int) -> bool:
        """Whether the budget has room for more of so many rows than this cache was made for."""
        return self.num_slots < min(num_rows, self._most_slots)

    def serve(self, plan: np.ndarray, keys_M: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy rows that are here into out (M rows, u8), zeros where a key is -1: positions of those that are absent."""
        miss_M = np.empty(len(keys_M), np.int64)
        return miss_M[: native.serve(self.state, plan, keys_M, out, miss_M)]

    def absent(self, keys_M: np.ndarray) -> np.ndarray:
        """Positions of the keys that are not here; the others are used last from now on. Counts neither hits nor misses."""
        return self.serve(NO_WRITER, keys_M, NOWHERE)

    def stats(self) -> dict[str, int]:
        """Counters since the cache was made, of this moment: look-ups that hit and missed, rows inserted, evicted, not
        kept; rows and bytes held.

        Not kept: read while every row that could have gone was being copied out. Bytes: rows held, and the bookkeeping
        of all slots.
        """
        hits, misses, inserted, evicted, not_kept, used = self.state[table.HITS : table.USED + 1].tolist()
        return {
            "cache_hits": hits,
            "cache_misses": misses,
            "cache_inserted": inserted,
            "cache_evicted": evicted,
            "cache_not_kept": not_kept,
            "cache_rows": used,
            "cache_bytes": used * self.row_bytes + self.num_slots * SLOT_OVERHEAD_BYTES,
            "cache_budget_bytes": self.budget_bytes,
            "cache_slots": self.num_slots,
        }
