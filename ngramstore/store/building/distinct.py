"""Equal IDs in a build: one n-gram given twice, or two n-grams with one ID. Found before anything is written.

Shapes: M rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.errors import DuplicateKey, UsageError
from ngramstore.store.building.runs import RunSorter
from ngramstore.store.changes.collisions import refuse_different
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.layers.scattered import ScatteredBatch


def num_distinct(sorter: RunSorter, spec: Spec, *, may_repeat: bool) -> int:
    """Rows that will be stored. Raises HashCollision, DuplicateKey unless `may_repeat`, UsageError for a row number left out."""
    distinct = 0
    for ids, tokens_at in sorter.sorted_ids():
        equal = np.flatnonzero(ids[1:] == ids[:-1])
        if len(equal) and spec.is_ngram:
            _check_equal(tokens_at(equal), tokens_at(equal + 1), spec.seed, may_repeat=may_repeat)
        elif len(equal) and not may_repeat:
            raise DuplicateKey(f"row {ids[equal[0]]} was added twice")
        if not spec.is_ngram and len(ids):
            kept = np.append(ids[:-1][ids[1:] != ids[:-1]], ids[-1])
            gaps = np.flatnonzero(kept != np.arange(distinct, distinct + len(kept), dtype=np.uint64))
            if len(gaps):
                raise UsageError(f"row {distinct + int(gaps[0])} was never added", hint="row numbers must be 0 .. N-1")
        distinct += len(ids) - len(equal)
    return distinct


def _check_equal(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], seed: int, *, may_repeat: bool
) -> None:
    refuse_different(left, right, seed)
    if not may_repeat:
        raise DuplicateKey(f"the n-gram {_ngram(left, 0)} was added twice")


def _ngram(pair: tuple[np.ndarray, np.ndarray], i: int) -> tuple[int, ...]:
    return tuple(pair[0][i, : pair[1][i]].tolist())


def last_of_equal(batches: Iterator[ScatteredBatch]) -> Iterator[ScatteredBatch]:
    """Drop all but the last of rows with equal IDs, also across batches."""
    held: ScatteredBatch | None = None
    for batch in batches:
        if len(batch) == 0:
            continue
        if held is not None and held.ids[0] != batch.ids[0]:
            yield held
        last = len(batch) - 1
        keep = batch.ids[1:] != batch.ids[:-1]
        front = batch.take(slice(0, last))
        if last:
            yield front if keep.all() else front.take(keep)
        held = batch.take(slice(last, last + 1))
    if held is not None:
        yield held
