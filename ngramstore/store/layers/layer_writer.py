"""Writing a layer: index, packed rows and tokens of one sorted set of n-grams (or of all rows by number).

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index_builder import IndexBuilder, scratch_bytes
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.layers.names import numbered
from ngramstore.store.layers.rows_writer import CHUNK_BYTES, RowsWriter
from ngramstore.store.layers.scattered import ScatteredBatch
from ngramstore.store.layers.stages import Stages
from ngramstore.store.layers.tokens import TokensWriter

_TOKEN_BYTES = 3  # of ids up to two million


def layer_bytes(
    spec: Spec, num_rows: int, packed_bytes: int, *, is_compressed: bool, is_keyed: bool | None = None
) -> int:
    """Disk that writing a layer takes: packed rows, tokens (were all n-grams as long as they may be), index and what
    that is made in."""
    plan = IndexPlan(num_rows, spec.is_ngram if is_keyed is None else is_keyed, is_compressed)
    tokens_bytes = num_rows * (2 + _TOKEN_BYTES * spec.max_n) if spec.is_ngram and spec.has_tokens else 0
    return packed_bytes + tokens_bytes + plan.file_bytes + scratch_bytes(plan)


class LayerWriter:
    """Writes a layer from batches in ascending ID order (or row order); unreadable until a manifest names its files."""

    def __init__(
        self,
        directory: Path,
        prefix: str,
        generation: int,
        spec: Spec,
        num_rows: int,
        *,
        is_keyed: bool,
        dictionary: bytes | None = None,
        window_log: int = 0,
        threads: int = 1,
        is_uncached: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        stages: Stages | None = None,
    ) -> None:
        self._spec = spec
        self._stages = stages or Stages()
        self._stem = directory / numbered(prefix, generation)
        self._is_compressed = dictionary is not None
        self._builder = IndexBuilder(IndexPlan(num_rows, is_keyed, self._is_compressed), scratch=directory)
        self._is_keyed = is_keyed
        self._num_rows = num_rows
        self._rows = RowsWriter(
            self._stem.with_suffix(".rows"),
            spec.codec.row_bytes,
            dictionary=dictionary,
            window_log=window_log,
            threads=threads,
            is_uncached=is_uncached,
            chunk_bytes=chunk_bytes,
            on_lengths=self._builder.set_lengths if self._is_compressed else None,
            stages=self._stages,
        )
        self._tokens = (
            TokensWriter(self._stem.with_suffix(".tokens"), spec.max_n) if spec.has_tokens and spec.is_ngram else None
        )
        self.length_counts = np.zeros(spec.max_n + 1, np.int64)

    def add(self, batch: Batch | ScatteredBatch) -> None:
        """The next rows. With more than one thread they must stay as they are until `finish`."""
        self._rows.write(batch.rows, batch.ids)
        with self._stages.timed("index and tokens"):
            if self._is_keyed:
                self._builder.add(batch.ids)
            if self._spec.is_ngram:
                self.length_counts += np.bincount(batch.lengths, minlength=self._spec.max_n + 1)
            if self._tokens is not None:
                self._tokens.write(batch.tokens, batch.lengths)

    @property
    def content_digest(self) -> bytes:
        """Stands for the keys and rows written so far."""
        return self._rows.content_digest

    def finish(self, stamp: FileStamp) -> LayerEntry:
        """Make all files durable."""
        if self._rows.num_rows != self._num_rows:
            raise AssertionError(f"{self._rows.num_rows:,} rows were added, {self._num_rows:,} were announced")
        data_at = self._rows.data_at
        return LayerEntry(
            num_rows=self._num_rows,
            is_compressed=self._is_compressed,
            rows=self._rows.finish(stamp),
            tokens=self._tokens.finish(stamp) if self._tokens else None,
            index=self._builder.write(self._stem.with_suffix(".index"), stamp, data_at),
        )

    def close(self) -> None:
        """Give up; what was written is not part of any store."""
        self._rows.close()
        if self._tokens is not None:
            self._tokens.close()
