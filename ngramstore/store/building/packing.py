"""The end of a build: all rows that were taken, in ID order, packed into a base layer and published.

Shapes: M rows of a batch, B bytes of an encoded row.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

import ngramstore
from ngramstore.codec import compress
from ngramstore.errors import UsageError
from ngramstore.files import fsync_directory, remove_if_possible, require_space
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.building.distinct import last_of_equal, num_distinct
from ngramstore.store.building.runs import RunSorter
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.layer_writer import LayerWriter, layer_bytes
from ngramstore.store.layers.manifest import BUILDING_NAME, Manifest, Spec
from ngramstore.store.layers.names import RUN_FILE, RUNS_NAME, numbered
from ngramstore.store.layers.rows_writer import CHUNK_BYTES
from ngramstore.store.layers.stages import Stages
from ngramstore.store.layers.suffixes import is_closed

_SAMPLE_ROWS = 4096
_UNCACHED_FROM_BYTES = 64 << 20  # rows files from here on do not stay in the page cache
_CHUNKS = 64  # shares of the memory budget that packing works in
_MIN_CHUNK_BYTES = 64 << 10


def needed_bytes(spec: Spec, sorter: RunSorter, num_rows: int, duplicates: str) -> int:
    """Disk that a build of `num_rows` rows takes at most: its runs, and beside them the store; of rows that may be the
    same, the runs."""
    packed_bytes = num_rows * (spec.codec.row_bytes + CHECKSUM_BYTES)
    store = layer_bytes(spec, num_rows, packed_bytes, is_compressed=False) if duplicates == "error" else 0
    return sorter.spilled_bytes(num_rows) + store


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What was taken, and how it is to be stored; the options are those of a build."""

    path: Path
    spec: Spec
    sorter: RunSorter
    stages: Stages
    compression: str
    duplicates: str
    threads: int
    memory_bytes: int
    progress: bool

    def publish(self) -> None:
        """Write the files and then the manifest; what only the build needed is removed.

        Raises UsageError (nothing added, a row number left out), HashCollision, DuplicateKey, DiskFull.
        """
        sorter, spec, stages = self.sorter, self.spec, self.stages
        with stages.timed("find duplicates"):
            num_rows = num_distinct(sorter, spec, may_repeat=self.duplicates == "last")
        if num_rows == 0:
            raise UsageError("nothing was added to the build", hint="add at least one n-gram and its row")
        packed_bytes = num_rows * (spec.codec.row_bytes + CHECKSUM_BYTES)
        with stages.timed("train dictionary"):
            dictionary, window_log = self._dictionary(num_rows)
        needed = layer_bytes(spec, num_rows, packed_bytes, is_compressed=dictionary is not None)
        require_space(self.path, needed, "finishing the build")
        writer = LayerWriter(
            self.path,
            "base",
            1,
            spec,
            num_rows,
            is_keyed=spec.is_ngram,
            dictionary=dictionary,
            window_log=window_log,
            threads=self.threads,
            is_uncached=packed_bytes >= _UNCACHED_FROM_BYTES,
            chunk_bytes=max(_MIN_CHUNK_BYTES, min(CHUNK_BYTES, self.memory_bytes // _CHUNKS)),
            stages=stages,
        )
        try:
            with tqdm(total=num_rows, desc="pack", unit="row", unit_scale=True, disable=not self.progress) as bar:
                batches = sorter.sorted_batches()
                for batch in last_of_equal(batches) if self.duplicates == "last" else batches:
                    writer.add(batch)
                    bar.update(len(batch))
            identity = self._identity(writer.content_digest)
            stamp = FileStamp.of(identity, 1)
            base = writer.finish(stamp)
        finally:
            writer.close()
        length_counts = tuple(writer.length_counts.tolist()) if spec.is_ngram else ()
        with stages.timed("find suffixes"):
            is_suffix_closed = spec.is_ngram and self._is_closed(base, stamp, length_counts)
        with stages.timed("publish"):
            fsync_directory(self.path)
            Manifest(
                spec=spec,
                identity=identity,
                generation=1,
                release=ngramstore.__version__,
                base=base,
                base_generation=1,
                num_rows=num_rows,
                length_counts=length_counts,
                suffix_closed=is_suffix_closed,
                journal=numbered("journal", 1),
            ).write(self.path)
            remove_if_possible(self.path / RUNS_NAME, only=RUN_FILE)
            remove_if_possible(self.path / BUILDING_NAME)

    def _dictionary(self, num_rows: int) -> tuple[bytes | None, int]:
        """The zstd dictionary of the rows, or None to store them as they are; and the window of the compressor."""
        row_bytes = self.spec.codec.row_bytes
        if self.compression == "none" or row_bytes > compress.MAX_COMPRESSED_ROW_BYTES:
            return None, 0
        trial = compress.trial(self._sample(num_rows))
        return trial.chosen(self.compression), trial.window_log

    def _sample(self, num_rows: int) -> np.ndarray:
        """The first rows in ID order: IDs are hashes, so that is a random choice, and the same for any order of adding."""
        rows: list[np.ndarray] = []
        for batch in self.sorter.sorted_batches():
            rows.append(batch.rows[: _SAMPLE_ROWS - sum(map(len, rows))].copied())
            if sum(map(len, rows)) >= min(num_rows, _SAMPLE_ROWS):
                break
        return np.concatenate(rows)

    def _is_closed(self, base: LayerEntry, stamp: FileStamp, length_counts: tuple[int, ...]) -> bool:
        index, file = Index.open(self.path, base.index, stamp, is_keyed=True, is_sized=base.is_compressed, lock=False)
        try:
            return is_closed(index, self.sorter.token_batches(), length_counts, self.spec.seed)
        finally:
            file.close()

    def _identity(self, content: bytes) -> str:
        """A UUID made from what the store holds, so that equal builds give equal bytes."""
        spec = self.spec
        names = [spec.addressing, spec.dim, spec.max_n, spec.codec.spec(), spec.seed, spec.metadata, content.hex()]
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "ngramstore:" + json.dumps(names, sort_keys=True)))
