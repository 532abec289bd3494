"""A new base of all that is good in a damaged store, and lines for the rows and changes that are not.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import with_window_log
from ngramstore.errors import NgramStoreError, UsageError
from ngramstore.files import fsync_directory, remove_if_possible, require_space
from ngramstore.hashing import ngram_ids, row_ids
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.changes.compaction import is_suffix_closed
from ngramstore.store.journal.ack import AckFile
from ngramstore.store.journal.journal import Changes
from ngramstore.store.journal.left import name_aside, set_aside
from ngramstore.store.journal.values import ValueCodec
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.layer_writer import LayerWriter, layer_bytes
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.layers.merge import is_in, merged, without
from ngramstore.store.layers.rows_writer import default_threads
from ngramstore.store.progress import over_rows
from ngramstore.store.repair.journal import salvage
from ngramstore.store.repair.lost import LostRows, line_of_changes, line_of_ngrams, line_of_numbers
from ngramstore.store.repair.raw_file import list_files
from ngramstore.store.repair.replaced import Replaced
from ngramstore.store.repair.report import RepairReport
from ngramstore.store.repair.worn import Chunk, WornLayer
from ngramstore.store.repair.worn_index import WornIndex

_log = logging.getLogger("ngramstore")


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
        self._aside: Path | None = None
        self._journal = self._salvaged_journal()
        self._overlay_ids, tombstones = self._changed_before()
        self._changed = np.unique(np.concatenate([self._overlay_ids, tombstones, self._journal.ids]))
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
        for layer, superseded in ((self._base, self._changed), (self._overlay, self._journal.ids)):
            last = -1
            where = "base" if layer is self._base else "overlay"
            if layer is not None and layer.num_told < layer.num_rows:
                report.lost.append(f"rows {layer.num_told} to {layer.num_rows - 1} of the {where}")
                report.num_lost += layer.num_rows - layer.num_told
            lost = LostRows(report, partial(line_of_ngrams, where))
            for chunk in layer.chunks() if layer is not None else ():
                keep = self._is_kept(chunk, last) & ~is_in(chunk.ids, superseded)
                last = max([last, *chunk.ids[keep][-1:].tolist()])
                num += int(keep.sum())
                is_lost = ~keep & ~(chunk.has_id & is_in(chunk.ids, superseded))
                lost.add(chunk, is_lost)
                if self._new_spec.has_tokens:
                    is_without = is_lost & chunk.is_good & chunk.has_id & ~chunk.has_tokens
                    report.num_without_tokens += int(is_without.sum())
        report.num_rows = num + int((~self._journal.is_delete).sum())
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
        if spec.is_ngram and not self._new_spec.has_tokens:  # the lengths of rows are nowhere else: keep an upper bound
            counts = np.array(manifest.length_counts) + np.bincount(self._journal.lengths, minlength=spec.max_n + 1)
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
        if self._source == target and self._aside is None:
            self._mark_journal(published)
        published.write(target)

    def _mark_journal(self, published: Manifest) -> None:
        """Note in the journal that its changes will be in that state: then it is rubbish, should we end before `clear_journal`."""
        path = self._source / self._manifest.journal
        if not path.exists():
            return
        try:
            ack_file = AckFile.open(path)
            try:
                ack_file.write(published_as=published.state_digest, sync=True)
            finally:
                ack_file.close()
        except (OSError, NgramStoreError) as error:  # it is kept then, under another name
            _log.info("%s: cannot note that its changes are published: %s", path, str(error))

    def clear_journal(self) -> None:
        """After `write` in place: the journal is published as far as it could be read; one of which nothing was taken is kept."""
        path = self._source / self._manifest.journal
        if self._aside is not None:
            set_aside(path, self._aside)
        else:
            remove_if_possible(path)

    def _salvaged_journal(self) -> Changes:
        """The changes that can still be read of the journal."""
        spec = self._spec
        width, row_bytes = spec.journal_width, spec.codec.row_bytes
        path = self._source / self._manifest.journal
        nothing = ValueCodec(width=width, row_bytes=row_bytes).empty(0)
        if not path.is_dir() or not list_files(path):
            return nothing
        state = self._manifest.state_digest
        parts, faults = salvage(path, row_bytes=row_bytes, width=width, store_state=state, room=self._target)
        self._report.lost += [f"unpublished changes: {fault.replace(str(path), path.name)}" for fault in faults]
        if not parts:
            if faults and self._report.out == str(self._source):
                self._aside = name_aside(path)
                self._report.lost.append(f"unpublished changes: {path.name} is kept as {self._aside.name}")
            return nothing
        changes = parts[0]
        if spec.is_ngram:
            is_right = changes.ids == ngram_ids(changes.tokens, changes.lengths, spec.seed)
        else:
            is_right = changes.ids == row_ids(changes.tokens.astype("<u4").view("<u8").reshape(-1))
        for identity in changes.ids[~is_right].tolist():
            self._report.lost.append(f"unpublished change of ID 0x{identity:016x}: its tokens do not hash to it")
        self._report.num_lost += int((~is_right).sum())
        columns = (changes.ids, changes.is_delete, changes.tokens, changes.lengths, changes.rows)
        return Changes(*(column[is_right] for column in columns))

    def _changed_before(self) -> tuple[np.ndarray, np.ndarray]:
        """IDs in overlay and tombstones, as far as they are certain."""
        overlay, tombstones = [np.empty(0, np.uint64)], np.empty(0, np.uint64)
        unknown = 0
        for chunk in self._overlay.chunks() if self._overlay is not None else ():
            overlay.append(chunk.ids[chunk.has_id])
            unknown += int((~chunk.has_id).sum())
        if self._tombstones is not None:
            tombstones, num_unknown = self._tombstones.all_ids()
            if num_unknown:
                self._report.lost.append(f"{num_unknown} deletions: what they deleted may be there again")
            self._tombstones.close()
        if unknown:
            self._report.lost.append(f"{unknown} changes of unknown n-grams: these may show an older value")
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
        journal = self._journal
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
            lost.add(chunk, chunk.has_id & ~chunk.is_good & ~is_in(chunk.ids, self._journal.ids))
            self._replaced.add(chunk.ids[chunk.has_id], rows[chunk.has_id])
        self._replaced.add(self._journal.ids, self._journal.rows)

    def _has_other(self, numbers: np.ndarray) -> np.ndarray:
        """Which rows have been replaced since the base was packed."""
        return is_in(row_ids(numbers), self._changed)
