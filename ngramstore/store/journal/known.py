"""The IDs of the journal in memory: which there are, which are deleted, and the checksum of each one's latest value.

Kept in tiers: sorted arrays, newest first, each at least four times as long as the one before it. A put makes a tier and merges
it with those that are not; so of n IDs each is moved O(log n) times, and a look-up after a put indexes what has moved, not all.

Shapes: M IDs of a call, T IDs of a tier.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ngramstore.store.layers.index import Index

_RATIO = 4
_MIN_TIER = 256
"""So few are merged each time: an index of them costs hardly more than one of a single ID."""


class Tier:
    """Changes that came together, each ID once. Never changes; the indexes are made when first asked for."""

    def __init__(self, ids: np.ndarray, is_delete: np.ndarray, checksums: np.ndarray) -> None:
        """ids (T,) u64 ascending, is_delete (T,) bool, checksums (T,) u32."""
        self.ids, self.is_delete, self.checksums = ids, is_delete, checksums
        for array in (ids, is_delete, checksums):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def put_ids(self) -> np.ndarray:
        """Sorted IDs of the puts: (P,) u64."""
        return self.ids[~self.is_delete]

    @cached_property
    def puts(self) -> Index | None:
        """Index of `put_ids`."""
        return Index.from_ids(self.put_ids) if len(self.put_ids) else None

    @cached_property
    def deletes(self) -> Index | None:
        """Index of the deletions."""
        gone = self.ids[self.is_delete]
        return Index.from_ids(gone) if len(gone) else None

    def over(self, older: Tier) -> Tier:
        """Both in one; of an ID in both, what this one says."""
        is_kept = ~np.isin(older.ids, self.ids, assume_unique=True)
        ids = np.concatenate([older.ids[is_kept], self.ids])
        order = np.argsort(ids, kind="stable")  # two ascending runs: a merge
        return Tier(
            ids[order],
            np.concatenate([older.is_delete[is_kept], self.is_delete])[order],
            np.concatenate([older.checksums[is_kept], self.checksums])[order],
        )


class KnownIds:
    """13 bytes an ID, and about 7 more once it is indexed."""

    def __init__(self) -> None:
        self._tiers: list[Tier] = []

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """What is known, newest first: what a tier says of an ID hides what later ones say."""
        return tuple(self._tiers)

    def add(self, ids: np.ndarray, is_delete: np.ndarray, checksums: np.ndarray) -> None:
        """Note the latest change of M IDs: (M,) u64 ascending, each once, bool, u32. They are copied."""
        if len(ids) == 0:
            return
        new, tiers, num_merged = Tier(ids.copy(), is_delete.copy(), checksums.copy()), self._tiers, 0
        for older in tiers:
            if len(older) > _RATIO * len(new) and len(older) + len(new) > _MIN_TIER:
                break
            new = new.over(older)
            num_merged += 1
        tiers[:num_merged] = [new]  # at once, and last: a merge that ends early forgets no tier

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All IDs ascending and is_delete: (all,) u64 and (all,) bool, read-only."""
        while len(self._tiers) > 1:
            self._tiers[:2] = [self._tiers[0].over(self._tiers[1])]  # merged before either is let go of
        if not self._tiers:
            return np.empty(0, np.uint64), np.empty(0, bool)
        return self._tiers[0].ids, self._tiers[0].is_delete

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
        for tier in reversed(self._tiers):  # newer ones write over older ones
            at = np.minimum(np.searchsorted(tier.ids, ids), len(tier) - 1)
            here = np.flatnonzero(tier.ids[at] == ids)
            is_known[here] = True
            checksums[here] = tier.checksums[at[here]]
            is_delete[here] = tier.is_delete[at[here]]
        return checksums, is_known, is_delete
