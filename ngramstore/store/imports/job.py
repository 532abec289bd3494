"""One import: what is made of a checkpoint's tables, and what a killed one of the same kind has left to go on with.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import ngramstore
from ngramstore.codec import compress
from ngramstore.codec.registry import Codec
from ngramstore.errors import UsageError
from ngramstore.files import fsync_directory, our_errors, require_space
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.imports.checkpoint import Checkpoint
from ngramstore.store.imports.conversion import another_one, conversion_of, is_changed
from ngramstore.store.imports.report import ImportReport, error_of, sample_places
from ngramstore.store.imports.resumable import ResumableRows, dictionary_of, is_of, saved_conversion
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.external import ExternalLayer, Source, write_sums
from ngramstore.store.layers.external_entry import ExternalEntry
from ngramstore.store.layers.index_builder import IndexBuilder, scratch_bytes
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import BUILDING_NAME, LOCK_NAME, MANIFEST_NAME, Manifest, Spec
from ngramstore.store.layers.names import numbered

WORK = b"import\n"
"""What BUILDING says while an import is at work: which command goes on there."""
_CHUNK_BYTES = 16 << 20


class Import:
    """Tables that become a store in a directory: rows of the codec `target`, packed, or in place with or without `checksums`."""

    def __init__(
        self,
        found: Checkpoint,
        target: Codec,
        out: Path,
        *,
        pack: bool,
        checksums: bool,
        compression: str,
        progress: bool,
    ) -> None:
        self._found = found
        self._target = target
        self._out = out
        self._is_packed = pack
        self._has_checksums = checksums
        self._compression = compression
        self._progress = progress
        self._entry = _entry_of(found)
        self._spec = Spec(
            addressing="row",
            dim=target.dim,
            max_n=1,
            codec=target,
            has_tokens=False,
            metadata={
                "keys": found.keys.spec(),
                "tables": [vars(table) for table in found.keys.tables],
                "checkpoint": found.directory.name,
                "source_codec": found.codec.spec(),
            },
        )
        digests = "".join(source.header_digest + source.sample_digest for source in self._entry.sources)
        self._identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"ngramstore:{digests}:{target.spec()}:{compression}"))
        self._rows_path = out / f"{numbered('base', 1)}.rows"
        self._resumed_rows = 0
        self._is_refused = False

    @property
    def _conversion(self) -> dict[str, Any]:
        return conversion_of(self._identity, self._entry, self._target, self._compression)

    def can_go_on(self) -> bool:
        """Whether this very pack was begun here and not ended, or nothing was written yet. In place nothing is gone on with."""
        if not self._is_packed or not (self._out / BUILDING_NAME).exists() or (self._out / MANIFEST_NAME).exists():
            return False
        is_empty = set(os.listdir(self._out)) <= {BUILDING_NAME, LOCK_NAME}
        return is_empty or is_of(self._rows_path, self._conversion)

    def may_take_over(self) -> bool:
        """Whether nothing is lost if this pack goes on here; IncompleteStore if rows of another conversion would be."""
        if self.can_go_on():
            return True
        if not self._is_packed or (self._out / MANIFEST_NAME).exists() or not self._is_begun():
            return False
        saved = saved_conversion(self._rows_path)
        if saved is None:
            return True
        raise another_one(self._out, saved, self._conversion, self._entry.sources)

    def _is_begun(self) -> bool:
        try:
            with our_errors(self._out):
                return (self._out / BUILDING_NAME).read_bytes() == WORK
        except FileNotFoundError:
            return False

    def is_worth_keeping(self) -> bool:
        """After a failure: whether the same command can go on with what was packed.

        Not where the codec refuses a value, nor where rows that were read may not be there any more. What the system refuses
        (files, permissions, space) is no such reason: it may give it the next time.
        """
        is_in_vain = self._is_refused or any(is_changed(source) for source in self._entry.sources)
        return not is_in_vain and self.can_go_on()

    def run(self) -> ImportReport:
        """Write the store, its manifest last. Raises as `import_checkpoint`."""
        source = self._open(self._entry)
        places = list(sample_places(source.num_rows))
        stored = [source.read_encoded(first, count) for first, count in places]
        sample = np.concatenate([self._recoded(rows, first) for rows, (first, _) in zip(stored, places, strict=True)])
        error = error_of(np.concatenate(stored), self._found.codec, sample, self._target)
        trial = compress.trial(sample)
        base: LayerEntry | ExternalEntry
        if self._is_packed:
            base = self._pack(source, trial.chosen(self._compression), trial.window_log)
        else:
            base = self._entry
            if self._has_checksums:
                base = ExternalEntry(base.sources, base.segments, self._sums(source))
        source.check_unchanged()
        manifest = Manifest(
            spec=self._spec,
            identity=self._identity,
            generation=1,
            release=ngramstore.__version__,
            base=base,
            base_generation=1,
            num_rows=self._entry.num_rows,
            length_counts=(),
            suffix_closed=False,
            journal=numbered("journal", 1),
        )
        fsync_directory(self._out)
        manifest.write(self._out)
        return ImportReport(
            model=self._found.keys.model,
            num_rows=self._entry.num_rows,
            dim=self._target.dim,
            source_codec=self._found.codec.spec(),
            codec=self._target.spec(),
            row_bytes=self._target.row_bytes,
            is_in_place=not self._is_packed,
            is_checked=self._is_packed or self._has_checksums,
            disk_bytes=sum(file.file_bytes for file in base.files),
            zstd_saves=trial.saving,
            is_compressed=base.is_compressed,
            resumed_rows=self._resumed_rows,
            **error,
        )

    def _open(self, entry: ExternalEntry) -> ExternalLayer:
        spec = Spec(addressing="row", dim=self._target.dim, max_n=1, codec=self._found.codec, has_tokens=False)
        return ExternalLayer(self._out, entry, self._stamp, spec, 0, is_trusted=True)

    @property
    def _stamp(self) -> FileStamp:
        return FileStamp.of(self._identity, 1)

    def _recoded(self, rows_MB: np.ndarray, first: int) -> np.ndarray:
        if self._target == self._found.codec:
            return rows_MB
        try:
            return self._target.encode(self._found.codec.decode(rows_MB), first_row=first)
        except UsageError:
            self._is_refused = True
            raise

    def _chunks(self, source: ExternalLayer, what: str, begin: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """All rows from `begin` on in order: (first number, rows (M, B))."""
        step = max(64, _CHUNK_BYTES // source.rows.row_bytes)
        with tqdm(
            total=source.num_rows, initial=begin, desc=what, unit="row", unit_scale=True, disable=not self._progress
        ) as bar:
            for first in range(begin, source.num_rows, step):
                rows = source.read_encoded(first, min(step, source.num_rows - first))
                yield first, rows
                bar.update(len(rows))

    def _sums(self, source: ExternalLayer) -> FileEntry:
        require_space(self._out, source.num_rows * CHECKSUM_BYTES, "the checksums of the rows")
        rows = (rows for _, rows in self._chunks(source, "checksums"))
        return write_sums(self._out / f"{numbered('base', 1)}.sums", self._stamp, rows)

    def _pack(self, source: ExternalLayer, dictionary: bytes | None, window_log: int) -> LayerEntry:
        stored = self._target.row_bytes + CHECKSUM_BYTES
        if is_of(self._rows_path, self._conversion):
            dictionary = dictionary_of(self._rows_path)
        rows = ResumableRows(
            self._rows_path,
            self._target.row_bytes,
            self._conversion,
            dictionary=dictionary,
            progress=self._progress,
            compress=None if dictionary is None else compress.RowCompressor(dictionary, window_log).compress,
        )
        try:
            self._resumed_rows = rows.num_rows
            is_compressed = dictionary is not None
            plan = IndexPlan(source.num_rows, False, is_compressed)
            needed = (source.num_rows - rows.num_rows) * stored + plan.file_bytes + scratch_bytes(plan)
            require_space(self._out, needed, "packing the rows")
            for first, chunk in self._chunks(source, "pack", rows.num_rows):
                rows.write(self._recoded(chunk, first))
            builder = IndexBuilder(plan, scratch=self._out)
            if is_compressed:
                for first, lengths in rows.lengths():
                    builder.set_lengths(first, lengths)
            return LayerEntry(
                num_rows=source.num_rows,
                is_compressed=is_compressed,
                rows=rows.finish(self._stamp),
                tokens=None,
                index=builder.write(self._rows_path.with_suffix(".index"), self._stamp, rows.data_at),
            )
        finally:
            rows.close()


def _entry_of(found: Checkpoint) -> ExternalEntry:
    """The entry of a manifest for the checkpoint as it is now."""
    plan = ExternalEntry((), found.segments)
    sources = tuple(Source(path).entry(plan.ranges(number)) for number, path in enumerate(found.files))
    entry = ExternalEntry(sources, found.segments)
    entry.check()
    return entry
