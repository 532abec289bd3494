"""A new base of all that is good in a damaged store, and lines for the rows and changes that are not.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import with_window_log
from ngramstore.errors import UsageError
from ngramstore.files import fsync_directory, require_space
from ngramstore.hashing import row_ids
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.changes.compaction import is_suffix_closed
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.layer_writer import LayerWriter, layer_bytes
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.layers.merge import is_in, merged, without
from ngramstore.store.layers.rows_writer import default_threads
from ngramstore.store.progress import over_rows
from ngramstore.store.repair.lost import LostRows, line_of_changes, line_of_ngrams, line_of_numbers
from ngramstore.store.repair.rebuild_journal import RebuildJournal
from ngramstore.store.repair.replaced import Replaced
from ngramstore.store.repair.report import RepairReport
from ngramstore.store.repair.worn import Chunk, WornLayer
from ngramstore.store.repair.worn_index import WornIndex


class Rebuild:
    """One repair: reads `source`, writes a base into `target`."""

    def __init__(
        self,
        source: Path,
        manifest: Manifest,
        target: Path,
        report: RepairReport,
        drop_tokens: bool,
        progress: bool,
    ) -> None:
        self._progress = progress
        self._source, self._target = source, target
        self._manifest = manifest
        self._spec = manifest.spec
        self._new_spec = replace(self._spec, has_tokens=self._spec.has_tokens and not drop_tokens)
        self._report = report
        stamp = manifest.stamp(manifest.base_generation)
        if not isinstance(manifest.base, LayerEntry):
            raise UsageError(
                f"the rows of {source} lie in files of others, and only such stores as hold their own are repaired",
                hint="put those files back, or import them again; where the journal is damaged, moving "
                f"{manifest.journal} away gives up the changes in it and nothing else",
            )
        self._base = WornLayer(source, manifest.base, stamp, self._spec, is_keyed=self._spec.is_ngram)
        stamp = manifest.stamp(manifest.overlay_generation)
        self._overlay = (
            WornLayer(source, manifest.overlay, stamp, self._spec, is_keyed=True) if manifest.overlay else None
        )
        self._tombstones = (  # opened like the rest, before the journal is read: no writer takes it away
            WornIndex(source, manifest.tombstones, stamp, None, is_keyed=True, is_sized=False)
            if manifest.tombstones
            else None
        )
        self.journal = RebuildJournal(source, manifest, target, report)
        self._unpublished = self.journal.changes
        self._num_back = 0  # rows that may be there again, since what deleted them is lost
        self._changed = np.unique(np.concatenate([*self._changed_before(), self._unpublished.ids]))
        self._replaced = Replaced(self._target, self._spec.codec.row_bytes)

    def survey(self) -> int:
        """Rows that will be kept. Fills the report, and gathers what replaced rows of a row-addressed base."""
        spec, report = self._spec, self._report
        if not spec.is_ngram:
            self._collect_replaced()
            lost = LostRows(report, line_of_numbers)
            for chunk in self._base.chunks(all_rows=True):
                lost.add(chunk, ~chunk.is_good & ~self._has_other(chunk.ids))
            report.num_rows = self._base.num_rows
            return report.num_rows
        num = 0
        for layer, superseded in ((self._base, self._changed), (self._overlay, self._unpublished.ids)):
            last = -1
            where = "base" if layer is self._base else "overlay"
            if layer is not None and layer.num_told < layer.num_rows:
                report.lost.append(f"rows {layer.num_told} to {layer.num_rows - 1} of the {where}")
                report.num_lost += layer.num_rows - layer.num_told
            lost = LostRows(report, partial(line_of_ngrams, where))
            for chunk in layer.chunks() if layer is not None else ():
                keep = self._is_kept(chunk, last)
                last = max([last, *chunk.ids[keep][-1:].tolist()])
                keep &= ~is_in(chunk.ids, superseded)
                num += int(keep.sum())
                is_lost = ~keep & ~(chunk.has_id & is_in(chunk.ids, superseded))
                lost.add(chunk, is_lost)
                if self._new_spec.has_tokens:
                    is_without = is_lost & chunk.is_good & chunk.has_id & ~chunk.has_tokens
                    report.num_without_tokens += int(is_without.sum())
        report.num_rows = num + int((~self._unpublished.is_delete).sum())
        return report.num_rows

    def write(self) -> None:
        """Write the new base and publish it."""
        spec, manifest, target = self._spec, self._manifest, self._target
        num_rows = self.survey()
        is_compressed = self._base.is_compressed
        packed_bytes = num_rows * (spec.codec.row_bytes + CHECKSUM_BYTES)
        require_space(
            target, layer_bytes(self._new_spec, num_rows, packed_bytes, is_compressed=is_compressed), "the repair"
        )
        generation = manifest.generation + 1
        stamp = manifest.stamp(generation)
        dictionary = self._base.dictionary if is_compressed else None
        window_log, batches = with_window_log(self._batches(), dictionary)
        writer = LayerWriter(
            target,
            "base",
            generation,
            self._new_spec,
            num_rows,
            is_keyed=spec.is_ngram,
            dictionary=dictionary,
            window_log=window_log,
            threads=default_threads(),
        )
        try:
            for batch in over_rows(batches, num_rows, "repair", self._progress):
                writer.add(batch)
            base = writer.finish(stamp)
            counts = writer.length_counts
        finally:
            writer.close()
        if spec.is_ngram and not self._new_spec.has_tokens:
            counts = self._most_of_each_length(num_rows)
        published = manifest.with_base(
            base,
            spec=self._new_spec,
            num_rows=num_rows,
            length_counts=tuple(counts.tolist()) if spec.is_ngram else (),
            suffix_closed=False,
        )
        published = replace(published, suffix_closed=is_suffix_closed(target, published))
        self._base.close()
        if self._overlay is not None:
            self._overlay.close()
        fsync_directory(target)
        if self._source == target:
            self.journal.mark_published(published.state_digest)
        published.write(target)

    def _most_of_each_length(self, num_rows: int) -> np.ndarray:
        """Upper bounds, (K + 1,), where no tokens are kept: the lengths of rows are nowhere but in the manifest.

        It does not count rows that come back because their deletion is lost, and one that knows of fewer than
        `num_rows` lies: then there may be some of every length.
        """
        counts = np.array(self._manifest.length_counts)
        counts = counts + np.bincount(self._unpublished.lengths, minlength=len(counts))
        if self._num_back or counts.sum() < num_rows:
            counts[1:] = num_rows
        return counts

    def _changed_before(self) -> tuple[np.ndarray, np.ndarray]:
        """IDs in overlay and tombstones, as far as they are certain."""
        report, layer = self._report, self._overlay
        overlay, tombstones = [np.empty(0, np.uint64)], np.empty(0, np.uint64)
        unknown = 0 if layer is None else layer.num_rows - layer.num_told
        for chunk in layer.chunks() if layer is not None else ():
            overlay.append(chunk.ids[chunk.has_id])
            unknown += int((~chunk.has_id).sum())
        if self._tombstones is not None:
            tombstones, num_unknown = self._tombstones.all_ids()
            if num_unknown:
                self._num_back = num_unknown
                report.lost.append(f"{num_unknown} deletions: what they deleted may be there again")
            self._tombstones.close()
        if unknown:
            what = "n-grams" if self._spec.is_ngram else "rows"
            report.lost.append(f"{unknown} changes of unknown {what}: these may show an older value")
            if not self._spec.is_ngram:  # n-grams are counted where their rows are named
                report.num_lost += unknown
        return np.concatenate(overlay), tombstones

    def _is_kept(self, chunk: Chunk, last: int) -> np.ndarray:
        """Which rows of a chunk are certain in key and value, and above `last` and each other."""
        keep = chunk.is_good & chunk.has_id
        if self._new_spec.has_tokens:
            keep &= chunk.has_tokens
        at = np.flatnonzero(keep)
        ids = chunk.ids[at]
        if len(at):
            highest = np.maximum.accumulate(ids)
            rising = np.append(True, ids[1:] > highest[:-1])
            if last >= 0:
                rising &= ids > np.uint64(last)
            keep[at[~rising]] = False
        return keep

    def _good(self, layer: WornLayer) -> Iterator[Batch]:
        last = -1
        for chunk in layer.chunks():
            keep = self._is_kept(chunk, last)
            if keep.any():
                last = int(chunk.ids[keep][-1])
                yield Batch(chunk.ids[keep], chunk.rows[keep], chunk.tokens[keep], chunk.lengths[keep])

    def _batches(self) -> Iterator[Batch]:
        """The rows of the new base."""
        if not self._spec.is_ngram:
            yield from self._numbered()
            return
        journal = self._unpublished
        puts = ~journal.is_delete
        width = self._spec.max_n if self._spec.has_tokens else 0
        put = Batch(journal.ids[puts], journal.rows[puts], journal.tokens[puts, :width], journal.lengths[puts])
        overlay = without(self._good(self._overlay), journal.ids) if self._overlay is not None else iter(())
        yield from merged(without(self._good(self._base), self._changed), merged(overlay, iter([put])))

    def _numbered(self) -> Iterator[Batch]:
        zeros = self._spec.codec.encode(np.zeros((1, self._spec.dim), np.float32))
        for chunk in self._base.chunks(all_rows=True):
            rows = chunk.rows.copy()
            rows[~chunk.is_good] = zeros
            self._replaced.into(row_ids(chunk.ids), rows)
            tokens = np.zeros((len(rows), 0), np.uint32)
            yield Batch(chunk.ids, rows, tokens, np.zeros(len(rows), np.uint8))

    def _collect_replaced(self) -> None:
        """Rows of the overlay and the journal by ID; a lost one becomes zeros."""
        zeros = self._spec.codec.encode(np.zeros((1, self._spec.dim), np.float32))
        lost = LostRows(self._report, line_of_changes)
        for chunk in self._overlay.chunks() if self._overlay is not None else ():
            rows = chunk.rows.copy()
            rows[~chunk.is_good] = zeros
            lost.add(chunk, chunk.has_id & ~chunk.is_good & ~is_in(chunk.ids, self._unpublished.ids))
            self._replaced.add(chunk.ids[chunk.has_id], rows[chunk.has_id])
        self._replaced.add(self._unpublished.ids, self._unpublished.rows)

    def _has_other(self, numbers: np.ndarray) -> np.ndarray:
        """Which rows have been replaced since the base was packed."""
        return is_in(row_ids(numbers), self._changed)
