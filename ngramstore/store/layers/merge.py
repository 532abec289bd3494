"""Merging sorted rows: a layer, less what changed, with what came in its place. What flush and compaction stream.

Shapes: M rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.store.layers.layer import Batch


def is_in(ids_M: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    """Whether each ID is in a sorted array: (M,) bool."""
    if len(sorted_ids) == 0:
        return np.zeros(len(ids_M), bool)
    at = np.minimum(np.searchsorted(sorted_ids, ids_M), len(sorted_ids) - 1)
    return sorted_ids[at] == ids_M


def without(batches: Iterator[Batch], sorted_ids: np.ndarray) -> Iterator[Batch]:
    """Batches less the rows whose IDs are listed."""
    for batch in batches:
        drop = is_in(batch.ids, sorted_ids)
        yield batch.take(~drop) if drop.any() else batch


def merged(left: Iterator[Batch], right: Iterator[Batch]) -> Iterator[Batch]:
    """Two streams of batches, each ascending, no ID in both -> one ascending stream."""
    ahead_left, ahead_right = _next(left), _next(right)
    while ahead_left is not None and ahead_right is not None:
        last = min(ahead_left.ids[-1], ahead_right.ids[-1])
        cut_left = int(np.searchsorted(ahead_left.ids, last, side="right"))
        cut_right = int(np.searchsorted(ahead_right.ids, last, side="right"))
        if cut_left == 0 or cut_right == 0:
            yield ahead_left.take(slice(0, cut_left)) if cut_left else ahead_right.take(slice(0, cut_right))
        else:
            both = Batch.join([ahead_left.take(slice(0, cut_left)), ahead_right.take(slice(0, cut_right))])
            yield both.take(np.argsort(both.ids, kind="stable"))
        ahead_left = ahead_left.take(slice(cut_left, None)) if cut_left < len(ahead_left) else _next(left)
        ahead_right = ahead_right.take(slice(cut_right, None)) if cut_right < len(ahead_right) else _next(right)
    for ahead, rest in ((ahead_left, left), (ahead_right, right)):
        if ahead is not None:
            yield ahead
            yield from rest


def _next(batches: Iterator[Batch]) -> Batch | None:
    return next((batch for batch in batches if len(batch)), None)
