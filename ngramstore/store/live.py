"""The rows of a published state in order: the base, less what changed since, with what came in its place.

Shapes: M rows of a batch, B bytes of an encoded row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.errors import DamagedRows
from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
from ngramstore.kernels.native.rows import read_rows
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.merge import merged, without
from ngramstore.store.layers.packed_layer import PackedLayer
from ngramstore.store.view import View


def live_batches(view: View) -> Iterator[Batch]:
    """The published rows of a view in ID order (or by number): base, less what changed, with what came in its place."""
    if not view.manifest.spec.is_ngram:
        yield from _with_replaced_rows(view)
        return
    changed = [index.ids() for index in (view.overlay.index if view.overlay else None, view.tombstones) if index]
    dropped = np.sort(np.concatenate([np.empty(0, np.uint64), *changed]))
    overlay = view.overlay.batches() if view.overlay else iter(())
    yield from merged(without(view.base.batches(), dropped), overlay)


def _with_replaced_rows(view: View) -> Iterator[Batch]:
    overlay = view.overlay
    for batch in view.base.batches():
        rows = batch.rows
        if overlay is not None:
            keys, seeds = view.find_rows(batch.ids.astype(np.int64))
            changed = np.flatnonzero(keys >> RANK_BITS == overlay.serial)
            if len(changed):
                rows = rows.copy()
                rows[changed] = _replaced_rows(view, overlay, batch.ids[changed], keys[changed], seeds[changed])
        yield Batch(batch.ids, rows, batch.tokens, batch.lengths)


def _replaced_rows(
    view: View, overlay: PackedLayer, numbers_M: np.ndarray, keys_M: np.ndarray, seeds_M: np.ndarray
) -> np.ndarray:
    """Encoded rows of the overlay by key: (M, B) u8. DamagedRows names those that fail by their numbers."""
    row_bytes = view.manifest.spec.codec.row_bytes
    stored = np.empty((len(keys_M), row_bytes + CHECKSUM_BYTES), np.uint8)
    lengths, status = np.zeros(len(keys_M), np.int64), np.empty(len(keys_M), np.uint8)
    num_bad, _, _ = read_rows(view.file_table, keys_M, seeds_M, stored.shape[1], stored.reshape(-1), lengths, status)
    if num_bad:
        bad = numbers_M[status != 0].tolist()
        begin = int(overlay.places(int(keys_M[status != 0][0] & RANK_MASK), 1)[0][0])
        raise DamagedRows(
            f"{overlay.rows.path}: {len(bad)} rows fail their checksum, first row {bad[0]:,} at byte {begin:,}",
            keys=bad,
        )
    return stored[:, :row_bytes]
