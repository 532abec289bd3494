"""What a compaction writes: base and overlay merged into a new base, and the manifest that names it.

Nothing is published here; until a manifest names it, the new base is rubbish.

Shapes: M rows of a batch, B bytes of an encoded row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import with_window_log
from ngramstore.errors import DamagedRows, DamagedStore
from ngramstore.files import require_space
from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
from ngramstore.kernels.native.rows import read_rows
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.layers.index_builder import scratch_bytes
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer import Batch, Layer, LayerWriter
from ngramstore.store.layers.manifest import MANIFEST_NAME, Manifest
from ngramstore.store.layers.merge import merged, without
from ngramstore.store.layers.rows_writer import default_threads
from ngramstore.store.layers.suffixes import suffixes_are_stored
from ngramstore.store.progress import over_rows
from ngramstore.store.view import View

_TOKEN_BLOCKS = 1024  # read at once


def write_base(view: View, *, progress: bool = False) -> Manifest:
    """Write a base of the next generation, durable; returns its manifest. progress: a bar on stderr. Raises DiskFull, DamagedStore, DamagedRows."""
    manifest, directory, generation = view.manifest, view.directory, view.manifest.generation + 1
    _refuse_impossible_count(view)
    in_place = manifest.num_rows * (manifest.spec.codec.row_bytes + CHECKSUM_BYTES) if manifest.sources else 0
    plan = IndexPlan(manifest.num_rows, manifest.spec.is_ngram, view.base.rows.dictionary is not None)
    needed = sum(entry.file_bytes for entry in manifest.files) + in_place + scratch_bytes(plan)
    require_space(directory, needed, "compaction")
    dictionary = view.base.rows.dictionary
    window_log, batches = with_window_log(live_batches(view), dictionary)
    writer = LayerWriter(
        directory,
        "base",
        generation,
        manifest.spec,
        manifest.num_rows,
        is_keyed=manifest.spec.is_ngram,
        dictionary=dictionary,
        window_log=window_log,
        threads=default_threads(),
    )
    try:
        for batch in over_rows(_counted(batches, view), manifest.num_rows, "compact", progress):
            writer.add(batch)
        base = writer.finish(manifest.stamp(generation))
    finally:
        writer.close()
    published = manifest.with_base(base)
    return replace(published, suffix_closed=is_suffix_closed(directory, published))


def _refuse_impossible_count(view: View) -> None:
    """DamagedStore where the manifest counts more rows than the layers have: memory and disk are taken by its count."""
    most = view.base.num_rows
    if view.manifest.spec.is_ngram and view.overlay is not None:
        most += view.overlay.num_rows
    if view.manifest.num_rows > most:
        raise _wrong_count(view, f"{most:,} at most")


def _counted(batches: Iterator[Batch], view: View) -> Iterator[Batch]:
    """The batches, as long as they hold the rows that the manifest counts; DamagedStore where those are more or fewer."""
    count, wanted = 0, view.manifest.num_rows
    for batch in batches:
        count += len(batch)
        if count > wanted:
            raise _wrong_count(view, "more")
        yield batch
    if count < wanted:
        raise _wrong_count(view, f"{count:,}")


def _wrong_count(view: View, found: str) -> DamagedStore:
    return DamagedStore(
        f"{view.directory / MANIFEST_NAME} says {view.manifest.num_rows:,} rows, its layers hold {found}"
    )


def is_suffix_closed(directory: Path, manifest: Manifest) -> bool:
    """Whether the longest match may stop at the first miss, in a store without overlay; known only where tokens are kept."""
    spec = manifest.spec
    stored = np.flatnonzero(manifest.length_counts)
    if not spec.is_ngram or not spec.has_tokens:
        return False
    if len(stored) <= 1:
        return True
    base = View(directory, manifest).base
    try:
        return _has_all_endings(base, int(stored[0]), spec.seed)
    finally:
        base.close()  # an error holds it for as long as its traceback is held, and nobody could remove the files


def _has_all_endings(base: Layer, shortest: int, seed: int) -> bool:
    assert base.tokens is not None
    for block in range(0, base.tokens.num_blocks, _TOKEN_BLOCKS):
        tokens, lengths = base.tokens.blocks(block, min(_TOKEN_BLOCKS, base.tokens.num_blocks - block))
        if not suffixes_are_stored(base.index, tokens, lengths, shortest, seed):
            return False
    return True


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
    view: View, overlay: Layer, numbers_M: np.ndarray, keys_M: np.ndarray, seeds_M: np.ndarray
) -> np.ndarray:
    """Encoded rows of the overlay by key: (M, B) u8. DamagedRows names those that fail by their numbers."""
    row_bytes = view.manifest.spec.codec.row_bytes
    stored = np.empty((len(keys_M), row_bytes + CHECKSUM_BYTES), np.uint8)
    lengths, status = np.zeros(len(keys_M), np.int64), np.empty(len(keys_M), np.uint8)
    num_bad, _, _ = read_rows(
        view.file_table, keys_M, seeds_M, stored.shape[1], True, stored.reshape(-1), lengths, status
    )
    if num_bad:
        bad = numbers_M[status != 0].tolist()
        begin = int(overlay.places(int(keys_M[status != 0][0] & RANK_MASK), 1)[0][0])
        raise DamagedRows(
            f"{overlay.rows.path}: {len(bad)} rows fail their checksum, first row {bad[0]:,} at byte {begin:,}",
            keys=bad,
        )
    return stored[:, :row_bytes]
