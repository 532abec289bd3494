"""A layer: the index, packed rows and tokens of one sorted set of n-grams (or of all rows by number), written and read.

The base and the overlay of a store are layers of the same format (docs/format.md, section Files).

Shapes: M rows of a chunk, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedRows, DamagedStore
from ngramstore.files import read_around_holes
from ngramstore.hashing import checksums, row_numbers
from ngramstore.kernels.native import index as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES
from ngramstore.store.layers.datafile import DataFile, FileStamp
from ngramstore.store.layers.in_use import unlock
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.index_builder import IndexBuilder, scratch_bytes
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.layers.names import numbered
from ngramstore.store.layers.packed import RowsFile
from ngramstore.store.layers.rows_writer import CHUNK_BYTES, RowsWriter
from ngramstore.store.layers.scattered import ScatteredBatch
from ngramstore.store.layers.stages import Stages
from ngramstore.store.layers.tokens import TokensFile, TokensWriter

_READ_BYTES = 16 << 20
_TOKEN_BYTES = 3  # of ids up to two million


def layer_bytes(
    spec: Spec, num_rows: int, packed_bytes: int, *, is_compressed: bool, is_keyed: bool | None = None
) -> int:
    """Disk that writing a layer takes: packed rows, tokens (were all n-grams as long as they may be), index and what that is made in."""
    plan = IndexPlan(num_rows, spec.is_ngram if is_keyed is None else is_keyed, is_compressed)
    tokens_bytes = num_rows * (2 + _TOKEN_BYTES * spec.max_n) if spec.is_ngram and spec.has_tokens else 0
    return packed_bytes + tokens_bytes + plan.file_bytes + scratch_bytes(plan)


@dataclass(frozen=True)
class Batch:
    """M rows with their keys: ids (M,) u64 (row numbers in a row-addressed store), rows (M, B) u8 encoded,
    tokens (M, N) u32 left-aligned with zeros behind, lengths (M,) u8."""

    ids: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray | slice) -> Batch:
        """Some of the rows, in the order asked for."""
        return Batch(self.ids[which], self.rows[which], self.tokens[which], self.lengths[which])

    @staticmethod
    def join(batches: list[Batch]) -> Batch:
        """One batch after the other."""
        return Batch(
            np.concatenate([batch.ids for batch in batches]),
            np.concatenate([batch.rows for batch in batches]),
            np.concatenate([batch.tokens for batch in batches]),
            np.concatenate([batch.lengths for batch in batches]),
        )


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


class Layer:
    """An open layer. Threads: any number; the files close with the last user."""

    def __init__(
        self,
        directory: Path,
        entry: LayerEntry,
        stamp: FileStamp,
        spec: Spec,
        serial: int,
        *,
        is_keyed: bool,
        lock_index: bool,
    ) -> None:
        self.serial = serial
        self.is_keyed = is_keyed
        self._is_of_numbers = is_keyed and not spec.is_ngram
        self.num_rows = entry.num_rows
        self.index, self._index_file = Index.open(
            directory, entry.index, stamp, is_keyed=is_keyed, is_sized=entry.is_compressed, lock=lock_index
        )
        self.rows = RowsFile(
            directory, entry.rows, stamp, row_bytes=spec.codec.row_bytes, is_compressed=entry.is_compressed
        )
        self.tokens = TokensFile(directory, entry.tokens, stamp) if entry.tokens else None
        for file, num_rows in ((self.index.name, len(self.index)), (self.rows.path, self.rows.num_rows)):
            if num_rows != entry.num_rows:
                raise DamagedStore(f"{file} holds {num_rows:,} rows, the manifest says {entry.num_rows:,}")
        if self.tokens is not None:
            self.tokens.require(entry.num_rows, spec.max_n)
        line = self.index.layer
        line[native.SERIAL] = serial
        line[native.ROWS_FD] = self.rows.file.fd
        line[native.ROWS_DATA_AT] = self.rows.data_at
        line[native.ROW_BYTES] = self.rows.row_bytes

    @property
    def lines(self) -> np.ndarray:
        """This layer in the kernels' LAYERS table: one line, or one for each segment: (n, NUM_COLUMNS) i64."""
        return self.index.layer[None]

    def check_unchanged(self) -> None:
        """DamagedStore if files of others that rows are read from were changed meanwhile; our own files never are."""

    def path_of(self, rank: int) -> Path:
        """The file that holds a row."""
        return self.rows.path

    @property
    def files(self) -> list[DataFile]:
        """The open files of the store."""
        return [self._index_file, self.rows.file, *([self.tokens.file] if self.tokens else [])]

    def close(self) -> None:
        """Let go of the files before the last user does: a writer may remove them. Reads nothing any more."""
        for file in self.files:
            unlock(file.fd)
            file.close()

    def seeds(self, first: int, count: int) -> np.ndarray:
        """What the checksums of consecutive rows are seeded with: their IDs, or their numbers: (count,) u64."""
        if self.is_keyed:
            return self.index.ids(first, count)
        return np.arange(first, first + count, dtype=np.uint64)

    def names(self, seeds: np.ndarray) -> list[int]:
        """What rows are called whose checksums have these seeds: IDs of n-grams, or row numbers."""
        return (row_numbers(seeds) if self._is_of_numbers else seeds).tolist()

    def read_encoded(self, first: int, count: int, *, bad: list[int] | None = None) -> np.ndarray:
        """Encoded rows first .. first + count: (count, B) u8, read in one piece and checked.

        A damaged row raises DamagedRows (`keys`: their `names`); with `bad`, its rank is appended there and its bytes are zeros.
        """
        row_bytes = self.rows.row_bytes
        if count == 0:
            return np.empty((0, row_bytes), np.uint8)
        starts, lengths = self.places(first, count)
        begin, size = int(starts[0]), int(starts[-1] - starts[0] + lengths[-1]) + CHECKSUM_BYTES
        if bad is None:
            data = np.frombuffer(self.rows.file.read(begin, size), np.uint8)
        else:
            data = np.frombuffer(read_around_holes(self.rows.file.fd, size, begin)[0], np.uint8)
        starts = starts - begin
        inside = starts + lengths + CHECKSUM_BYTES <= len(data)
        good = inside.copy()
        sums = data[(starts + lengths)[inside][:, None] + np.arange(CHECKSUM_BYTES)].reshape(-1).view("<u4")
        seeds = self.seeds(first, count)
        good[inside] = sums == checksums(data, starts[inside], lengths[inside], seeds[inside])
        if not good.all():
            numbers = (np.flatnonzero(~good) + first).tolist()
            if bad is None:
                raise DamagedRows(
                    f"{self.rows.path}: {len(numbers)} rows fail their checksum, first row {numbers[0]:,} at byte "
                    f"{int(self.places(numbers[0], 1)[0][0]):,}",
                    keys=self.names(seeds[~good]),
                )
            bad.extend(numbers)
        if not self.rows.is_compressed and good.all():
            return data.reshape(count, row_bytes + CHECKSUM_BYTES)[:, :row_bytes]
        rows = np.zeros((count, row_bytes), np.uint8)
        raw = np.flatnonzero(good & (lengths == row_bytes))
        rows[raw] = data[starts[raw][:, None] + np.arange(row_bytes)]
        packed = np.flatnonzero(good & (lengths < row_bytes))
        if len(packed):
            assert self.rows.decompressor is not None
            rows[packed] = self.rows.decompressor.decompress(data, starts[packed], lengths[packed])
        return rows

    def places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where consecutive rows are stored and their stored bytes without checksums: (count,) i64 each."""
        row_bytes = self.rows.row_bytes
        if not self.rows.is_compressed:
            starts = self.rows.data_at + np.arange(first, first + count) * (row_bytes + CHECKSUM_BYTES)
            return starts, np.full(count, row_bytes)
        starts, lengths = self.index.places(first, count)
        if count and (lengths.max() > row_bytes or starts[0] < self.rows.data_at):
            raise DamagedStore(f"{self.index.name}: impossible places for rows {first:,} to {first + count - 1:,}")
        return starts, lengths

    def batches(self) -> Iterator[Batch]:
        """All rows in order, in batches of some megabytes. DamagedRows; IDs ascend, whatever the index says: DamagedStore."""
        step = max(BLOCK_ROWS, _READ_BYTES // self.rows.row_bytes // BLOCK_ROWS * BLOCK_ROWS)
        last = -1
        for at in range(0, self.num_rows, step):
            batch = self.batch(at, min(step, self.num_rows - at))
            wrong = np.flatnonzero(batch.ids[1:] <= batch.ids[:-1]) + 1
            if int(batch.ids[0]) <= last or len(wrong):
                rank = at + (0 if int(batch.ids[0]) <= last else int(wrong[0]))
                raise DamagedStore(f"{self.index.name}: the ID of rank {rank:,} is not above the one before")
            last = int(batch.ids[-1])
            yield batch

    def batch(self, first: int, count: int, *, bad: list[int] | None = None) -> Batch:
        """Consecutive rows with everything known of them; tokens are empty where the store keeps none."""
        rows = self.read_encoded(first, count, bad=bad)
        tokens, lengths = np.zeros((count, 0), np.uint32), np.zeros(count, np.uint8)
        if self.tokens is not None and count:
            block = first // BLOCK_ROWS
            all_tokens, all_lengths = self.tokens.blocks(block, (first + count - 1) // BLOCK_ROWS - block + 1)
            inside = slice(first - BLOCK_ROWS * block, first - BLOCK_ROWS * block + count)
            tokens, lengths = all_tokens[inside], all_lengths[inside]
        return Batch(self.seeds(first, count), rows, tokens, lengths)
