"""A layer in files of ours: the index, packed rows and tokens.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedRows, DamagedStore
from ngramstore.files import read_around_holes
from ngramstore.hashing import checksums, row_numbers
from ngramstore.kernels.native import index as native
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.layers.datafile import DataFile, FileStamp
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.layer import Batch, Layer
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.layers.rows_file import RowsFile
from ngramstore.store.layers.tokens import TokensFile


class PackedLayer(Layer):
    """An open layer whose files are the store's own."""

    rows: RowsFile

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
        tokens = TokensFile(directory, entry.tokens, stamp) if entry.tokens else None
        super().__init__(serial, entry.num_rows, is_keyed=is_keyed, tokens=tokens)
        self._is_of_numbers = is_keyed and not spec.is_ngram
        self.index, self._index_file = Index.open(
            directory, entry.index, stamp, is_keyed=is_keyed, is_sized=entry.is_compressed, lock=lock_index
        )
        self.rows = RowsFile(
            directory, entry.rows, stamp, row_bytes=spec.codec.row_bytes, is_compressed=entry.is_compressed
        )
        for file, num_rows in ((self.index.name, len(self.index)), (self.rows.path, self.rows.num_rows)):
            if num_rows != entry.num_rows:
                raise DamagedStore(f"{file} holds {num_rows:,} rows, the manifest says {entry.num_rows:,}")
        if self.tokens is not None:
            self.tokens.require(entry.num_rows, spec.max_n)
        line = self.index.line
        line[native.SERIAL] = serial
        line[native.ROWS_FD] = self.rows.file.fd
        line[native.ROWS_DATA_AT] = self.rows.data_at
        line[native.ROW_BYTES] = self.rows.row_bytes

    @property
    def lines(self) -> np.ndarray:
        return self.index.line[None]

    def path_of(self, rank: int) -> Path:
        return self.rows.path

    @property
    def files(self) -> list[DataFile]:
        return [self._index_file, self.rows.file, *([self.tokens.file] if self.tokens else [])]

    def seeds(self, first: int, count: int) -> np.ndarray:
        return self.index.ids(first, count) if self.is_keyed else super().seeds(first, count)

    def check_unchanged(self) -> None:
        return  # our own files never are

    def _names(self, seeds: np.ndarray) -> list[int]:
        """What rows are called whose checksums have these seeds: IDs of n-grams, or row numbers."""
        return (row_numbers(seeds) if self._is_of_numbers else seeds).tolist()

    def read_encoded(self, first: int, count: int, *, bad: list[int] | None = None) -> np.ndarray:
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
                    keys=self._names(seeds[~good]),
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
        row_bytes = self.rows.row_bytes
        if not self.rows.is_compressed:
            starts = self.rows.data_at + np.arange(first, first + count) * (row_bytes + CHECKSUM_BYTES)
            return starts, np.full(count, row_bytes)
        starts, lengths = self.index.places(first, count)
        if count and (lengths.max() > row_bytes or starts[0] < self.rows.data_at):
            raise DamagedStore(f"{self.index.name}: impossible places for rows {first:,} to {first + count - 1:,}")
        return starts, lengths

    def batches(self) -> Iterator[Batch]:
        """As every layer's; IDs ascend, whatever the index says: DamagedStore."""
        at, last = 0, -1
        for batch in super().batches():
            wrong = np.flatnonzero(batch.ids[1:] <= batch.ids[:-1]) + 1
            if int(batch.ids[0]) <= last or len(wrong):
                rank = at + (0 if int(batch.ids[0]) <= last else int(wrong[0]))
                raise DamagedStore(f"{self.index.name}: the ID of rank {rank:,} is not above the one before")
            at, last = at + len(batch), int(batch.ids[-1])
            yield batch
