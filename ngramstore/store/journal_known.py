"""The IDs of the journal in memory: which there are, which are deleted, and the checksum of each one's latest value.

Sorted arrays, and a dict of what came since: a put costs no copy of the arrays, and they are merged when the dict has grown
to a quarter of them.

Shapes: M IDs of a call.
"""

from __future__ import annotations

import numpy as np

_MIN_MERGE = 4096


class KnownIds:
    """13 bytes an ID, and about 100 for each one in the dict."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.uint64)
        self._is_delete = np.empty(0, bool)
        self._checksums = np.empty(0, np.uint32)
        self._recent: dict[int, int] = {}  # ID -> checksum | is_delete << 32

    def add(self, ids: np.ndarray, is_delete: np.ndarray, checksums: np.ndarray) -> None:
        """Note the latest change of M IDs: (M,) u64, bool, u32; each ID once."""
        packed = checksums.astype(np.uint64) | (is_delete.astype(np.uint64) << np.uint64(32))
        self._recent.update(zip(ids.tolist(), packed.tolist(), strict=True))
        if len(self._recent) > max(_MIN_MERGE, len(self._ids) // 4):
            self._merge()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All IDs ascending and is_delete: (all,) u64 and (all,) bool, read-only."""
        self._merge()
        return self._ids, self._is_delete

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,) u64 -> which are known (M,) bool, and which of those are deleted (M,) bool."""
        _, is_known, is_delete = self._look_up(ids)
        return is_known, is_delete

    def checksums(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,) u64 -> checksum of each one's latest value (M,) u32, 0 where unknown, and which are known (M,) bool."""
        checksums, is_known, _ = self._look_up(ids)
        return checksums, is_known

    def _look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        checksums = np.zeros(len(ids), np.uint32)
        is_known = np.zeros(len(ids), bool)
        is_delete = np.zeros(len(ids), bool)
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            is_known = self._ids[at] == ids
            checksums = np.where(is_known, self._checksums[at], np.uint32(0))
            is_delete = is_known & self._is_delete[at]
        if self._recent:
            get = self._recent.get
            found = [(place, packed) for place, id_ in enumerate(ids.tolist()) if (packed := get(id_)) is not None]
            for place, packed in found:
                is_known[place] = True
                checksums[place] = packed & 0xFFFFFFFF
                is_delete[place] = bool(packed >> 32)
        return checksums, is_known, is_delete

    def _merge(self) -> None:
        if not self._recent:
            return
        ids = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        packed = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        order = np.argsort(ids)
        ids, packed = ids[order], packed[order]
        is_old = np.isin(self._ids, ids, assume_unique=True)
        all_ids = np.concatenate([self._ids[~is_old], ids])
        order = np.argsort(all_ids, kind="stable")  # two ascending runs: a merge
        self._ids = all_ids[order]
        new_delete = (packed >> np.uint64(32)).astype(bool)
        new_checksums = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        self._is_delete = np.concatenate([self._is_delete[~is_old], new_delete])[order]
        self._checksums = np.concatenate([self._checksums[~is_old], new_checksums])[order]
        self._ids.setflags(write=False)
        self._is_delete.setflags(write=False)
        self._recent = {}
