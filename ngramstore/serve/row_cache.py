"""A byte budget of encoded rows in memory, least recently used first out; counted exactly, safe for threads.

The arena is allocated once and touched as it fills. Finding, inserting and evicting take the lock; rows are dequantized
from pinned slots without it, so threads share the cache and still copy side by side.

Shapes: M wanted rows, U rows read, C slots.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ngramstore.kernels.native import cache as native
from ngramstore.kernels.native import few as native_few

SLOT_OVERHEAD_BYTES = 8 + 16 + 8
"""Beside its row, a slot costs its key, its links and two places in the table."""


@dataclass(frozen=True)
class Fetched:
    """U rows read for a batch: row u begins at data[at[u]]; at -1: it could not be read."""

    data: np.ndarray
    at: np.ndarray


class RowCache:
    """LRU cache of encoded rows by row key. Threads: any number."""

    def __init__(self, budget_bytes: int, row_bytes: int, max_rows: int) -> None:
        self.budget_bytes = budget_bytes
        self.row_bytes = row_bytes
        self._most_slots = max(1, min(budget_bytes // (row_bytes + SLOT_OVERHEAD_BYTES), (1 << 31) - 2))
        self.num_slots = min(self._most_slots, max(1, max_rows))
        self._lock = threading.Lock()
        self._allocate()

    def _allocate(self) -> None:
        self._arena = np.empty(self.num_slots * self.row_bytes, np.uint8)
        self._keys = np.full(self.num_slots, -1, np.int64)
        self._links = np.zeros((self.num_slots + 1, 4), np.int32)
        self._links[self.num_slots, :2] = self.num_slots
        self._table = np.zeros(1 << (2 * self.num_slots - 1).bit_length(), np.int32)
        self._counters = np.zeros(native.NUM_COUNTERS, np.int64)

    def is_outgrown_by(self, num_rows: int) -> bool:
        """Whether the budget has room for more of so many rows than this cache was made for."""
        return self.num_slots < min(num_rows, self._most_slots)

    def take_few(
        self, keys_M: np.ndarray, copy_out: Callable[[np.ndarray, np.ndarray, np.ndarray], None], out_MD: np.ndarray
    ) -> bool:
        """Serve a handful of row keys if all are here: no pins, one short hold of the lock. False: nothing was done."""
        offsets_M = np.empty(len(keys_M), np.int64)
        with self._lock:
            if not native.touch(
                self._table, self._keys, self._links, self._counters, self.row_bytes, keys_M, offsets_M
            ):
                return False
            copy_out(self._arena, offsets_M, out_MD)
            return True

    def take_ngrams(
        self,
        layers: np.ndarray,
        tokens_MN: np.ndarray,
        seed: np.uint64,
        copy_out: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
        out_MD: np.ndarray,
    ) -> tuple[np.ndarray, int] | None:
        """As `take_few`, from token ids: found (M,) bool and how many, or None: nothing was done."""
        offsets_M, found_M = np.empty(len(tokens_MN), np.int64), np.empty(len(tokens_MN), np.bool_)
        with self._lock:
            num_found = native_few.touch_ngrams(
                layers, tokens_MN, seed, self._table, self._keys, self._links, self._counters, self.row_bytes,
                offsets_M, found_M,
            )  # fmt: skip
            if num_found < 0:
                return None
            copy_out(self._arena, offsets_M, out_MD)
        return found_M, num_found

    def take(
        self,
        keys_M: np.ndarray,
        seeds_M: np.ndarray,
        fetch: Callable[[np.ndarray, np.ndarray], Fetched],
        scatter: Callable[[np.ndarray, np.ndarray], None],
        *,
        is_counted: bool = True,
    ) -> tuple[Fetched, np.ndarray] | None:
        """Serve M row keys (-1: none): `fetch` reads absent ones, `scatter(arena, offsets)` copies rows out.

        Each absent key is fetched once. Rows that found no slot are left to the caller: returns what was fetched and, for
        each position, which fetched row it waits for (-1: it is done). None: all done. is_counted=False leaves hits and
        misses as they are.
        """
        tally = self._counters if is_counted else np.zeros_like(self._counters)
        count = len(keys_M)
        offsets_M, slots_M = np.empty(count, np.int64), np.empty(count, np.int32)
        miss_M = np.empty(count, np.int32)
        miss_keys, miss_seeds = np.empty(count, np.int64), np.empty(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        with self._lock:
            absent = native.acquire(
                self._table, self._keys, self._links, tally, self.row_bytes, seen,
                keys_M, seeds_M, offsets_M, slots_M, miss_M, miss_keys, miss_seeds,
            )  # fmt: skip
        try:
            if absent == 0:
                scatter(self._arena, offsets_M)
                return None
            fetched = fetch(miss_keys[:absent], miss_seeds[:absent])
            with self._lock:
                native.insert(
                    self._table, self._keys, self._links, self._counters, self._arena, self.row_bytes,
                    fetched.data, fetched.at, miss_keys[:absent], miss_M, offsets_M, slots_M, np.empty(absent, np.int32),
                )  # fmt: skip
            left = offsets_M == -2
            if not left.any():
                scatter(self._arena, offsets_M)
                return None
            scatter(self._arena, np.where(left, -1, offsets_M))
            return fetched, np.where(left, miss_M, -1)
        finally:
            with self._lock:
                native.unpin(self._links, slots_M)

    def clear(self) -> None:
        """Forget all rows and set the counters to zero. No look-up may be under way."""
        with self._lock:
            self._allocate()

    def stats(self) -> dict[str, int]:
        """Counters since the cache was made: look-ups that hit and missed, rows inserted and evicted, rows and bytes held."""
        hits, misses, inserted, evicted, used = (int(value) for value in self._counters)
        return {
            "cache_hits": hits,
            "cache_misses": misses,
            "cache_inserted": inserted,
            "cache_evicted": evicted,
            "cache_rows": used,
            "cache_bytes": used * (self.row_bytes + SLOT_OVERHEAD_BYTES),
            "cache_budget_bytes": self.budget_bytes,
            "cache_slots": self.num_slots,
        }
