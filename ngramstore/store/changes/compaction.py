"""What a compaction writes: base and overlay merged into a new base, and the manifest that names it.

Nothing is published here; until a manifest names it, the new base is rubbish.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ngramstore.codec.compress import with_window_log
from ngramstore.errors import DamagedStore
from ngramstore.files import require_space
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.layers.index_builder import scratch_bytes
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_writer import LayerWriter
from ngramstore.store.layers.manifest import MANIFEST_NAME, Manifest
from ngramstore.store.layers.names import numbered
from ngramstore.store.layers.packed_layer import PackedLayer
from ngramstore.store.layers.rows_writer import default_threads
from ngramstore.store.layers.suffixes import is_closed
from ngramstore.store.layers.tokens import TokensFile
from ngramstore.store.live import live_batches
from ngramstore.store.progress import over_rows
from ngramstore.store.view import View
from ngramstore.windows import NgramArrays

_TOKEN_BLOCKS = 1024  # read at once


def compacted(view: View, *, progress: bool = False) -> Manifest | None:
    """The manifest that merging makes, its base durable; None where nothing would be new. progress: a bar on stderr.

    Where nothing is to be merged, changes that took back what they did may have left a set with all its endings.
    Raises DiskFull, DamagedStore, DamagedRows.
    """
    manifest = view.manifest
    if view.overlay is not None or view.tombstones is not None or manifest.sources:
        return _write_base(view, progress)
    if manifest.suffix_closed or not is_suffix_closed(view.directory, manifest):
        return None
    generation = manifest.generation + 1
    return manifest.next(suffix_closed=True, overlay_generation=generation, journal=numbered("journal", generation))


def _write_base(view: View, progress: bool) -> Manifest:
    """Write a base of the next generation, durable; returns its manifest."""
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
    return replace(published, suffix_closed=published.suffix_closed or is_suffix_closed(directory, published))


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
    if not spec.is_ngram or not spec.has_tokens:
        return False
    base = View(directory, manifest).base
    try:
        assert isinstance(base, PackedLayer) and base.tokens is not None
        return is_closed(base.index, _token_blocks(base.tokens), manifest.length_counts, spec.seed)
    finally:
        base.close()  # an error holds it for as long as its traceback is held, and nobody could remove the files


def _token_blocks(tokens: TokensFile) -> Iterator[NgramArrays]:
    for block in range(0, tokens.num_blocks, _TOKEN_BLOCKS):
        yield tokens.blocks(block, min(_TOKEN_BLOCKS, tokens.num_blocks - block))
