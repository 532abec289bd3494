"""What a flush writes: journal and old overlay merged into a new overlay and new tombstones, and the manifest that names them.

Nothing is published here; until a manifest names them, these files are rubbish.

Shapes: M changes of a chunk, K longest n-gram.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.files import require_space
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.changes.collisions import are_equal, published_ngrams
from ngramstore.store.journal.journal import Changes, Journal
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.layer_writer import LayerWriter, layer_bytes
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.layers.merge import is_in, merged, without
from ngramstore.store.layers.names import numbered
from ngramstore.store.view import View


def write_overlay(view: View, journal: Journal) -> Manifest:
    """Write overlay and tombstones of the next generation, durable; returns its manifest. Raises DiskFull, DamagedStore."""
    manifest, generation = view.manifest, view.manifest.generation + 1
    stamp = manifest.stamp(generation)
    ids, is_delete = journal.ids()
    tombstones = _tombstones(view, ids, ids[is_delete])
    old_puts = view.overlay.index.ids() if view.overlay else np.empty(0, np.uint64)
    num_puts = int((~is_in(old_puts, ids)).sum() + (~is_delete).sum())
    packed_bytes = num_puts * (manifest.spec.codec.row_bytes + CHECKSUM_BYTES)
    needed = layer_bytes(manifest.spec, num_puts, packed_bytes, is_compressed=False, is_keyed=True)
    needed += IndexPlan(len(tombstones), True, False).file_bytes
    require_space(view.directory, needed, "publishing changes")
    counts, is_same_set = _moves(view, journal)
    return manifest.next(
        overlay=_write_puts(view, journal, ids, num_puts, stamp) if num_puts else None,
        tombstones=_write_tombstones(view, tombstones, stamp) if len(tombstones) else None,
        overlay_generation=generation,
        num_rows=manifest.num_rows + int(counts.sum()),
        length_counts=tuple(int(old + new) for old, new in zip(manifest.length_counts, counts, strict=False)),
        suffix_closed=manifest.suffix_closed and is_same_set,
        journal=numbered("journal", generation),
    )


def _tombstones(view: View, changed: np.ndarray, deleted: np.ndarray) -> np.ndarray:
    """Sorted IDs that the base has and nobody may see: those of before that were not put again, and new ones."""
    old = view.tombstones.ids() if view.tombstones else np.empty(0, np.uint64)
    if view.base.is_keyed:
        deleted = deleted[view.base_only().find(deleted) >= 0]
    return np.union1d(old[~is_in(old, changed)], deleted)


def _moves(view: View, journal: Journal) -> tuple[np.ndarray, bool]:
    """How many n-grams of each length come and go, (K + 1,) i64, and whether none does.

    A deletion frees its ID, and a put may have given it to another n-gram: the one that goes is the published one.
    """
    spec = view.manifest.spec
    counts = np.zeros(spec.max_n + 1, np.int64)
    is_same_set = True
    for change in journal.scan() if spec.is_ngram else ():
        keys, is_put = view.find(change.ids), ~change.is_delete
        was_there = keys >= 0
        old = new = (change.tokens[was_there], change.lengths[was_there])
        if spec.has_tokens:
            old = published_ngrams(view, keys[was_there])
        is_same_set &= bool((was_there == is_put).all() and are_equal(old, new).all())
        np.subtract.at(counts, old[1], 1)
        np.add.at(counts, change.lengths[is_put], 1)
    return counts, is_same_set


def _write_puts(view: View, journal: Journal, changed: np.ndarray, num_puts: int, stamp: FileStamp) -> LayerEntry:
    spec = view.manifest.spec
    writer = LayerWriter(view.directory, "overlay", stamp.generation, spec, num_puts, is_keyed=True)
    try:
        old = view.overlay.batches() if view.overlay else iter(())
        for batch in merged(without(old, changed), _puts(journal.scan(), spec.max_n if spec.has_tokens else 0)):
            writer.add(batch)
        return writer.finish(stamp)
    finally:
        writer.close()


def _write_tombstones(view: View, ids: np.ndarray, stamp: FileStamp) -> FileEntry:
    builder = IndexBuilder(IndexPlan(len(ids), is_keyed=True, is_sized=False))
    builder.add(ids)
    return builder.write(view.directory / f"{numbered('tombstones', stamp.generation)}.index", stamp)


def _puts(chunks: Iterator[Changes], width: int) -> Iterator[Batch]:
    """The puts among changes, as batches with tokens of that width."""
    for change in chunks:
        keep = ~change.is_delete
        yield Batch(change.ids[keep], change.rows[keep], change.tokens[keep, :width], change.lengths[keep])
