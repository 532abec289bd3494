"""Packed rows: the file that holds every encoded row, each under its own checksum, readable alone.

Format: docs/format.md, section Rows. Rows lie in ID order (or by number). A stored row is its bytes, or one zstd frame of
them where that is smaller, and behind it the checksum of what is stored, seeded with the row's ID (or number): a row that
lies in the wrong place fails like a damaged one.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import RowCompressor, RowDecompressor
from ngramstore.errors import DamagedStore
from ngramstore.files import FileWriter
from ngramstore.hashing import checksums
from ngramstore.layout import CHECKSUM_BYTES, KIND_ROWS, MAX_ROW_BYTES, PAGE_BYTES, ROWS_HEADER
from ngramstore.store.datafile import DataFile, FileEntry, FileStamp, content_digest, finish_file

_CHUNK_BYTES = 8 << 20


class RowsWriter:
    """Writes encoded rows in order. `dictionary`: None stores rows as they are, else zstd with that dictionary."""

    def __init__(self, path: Path, row_bytes: int, *, dictionary: bytes | None, threads: int = 1) -> None:
        self.row_bytes = row_bytes
        self.num_rows = 0
        self._writer = FileWriter(path)
        self._dictionary = dictionary
        self._compressor = None if dictionary is None else RowCompressor(dictionary, threads)
        self._content = content_digest()
        self._writer.write(bytes(PAGE_BYTES))
        if dictionary:
            self._writer.write(dictionary)
            self._writer.pad(PAGE_BYTES)
        self.data_at = self._writer.position

    def write(self, rows_MB: np.ndarray, seeds_M: np.ndarray) -> np.ndarray:
        """Append M encoded rows; returns their stored bytes without the checksums, (M,) i64."""
        pieces = [
            self._write_chunk(rows_MB[at : at + step], seeds_M[at : at + step])
            for step in [max(1, _CHUNK_BYTES // self.row_bytes)]
            for at in range(0, len(rows_MB), step)
        ]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def _write_chunk(self, rows_MB: np.ndarray, seeds_M: np.ndarray) -> np.ndarray:
        count = len(rows_MB)
        self.num_rows += count
        if self._compressor is None:
            stored = np.empty((count, self.row_bytes + CHECKSUM_BYTES), np.uint8)
            stored[:, : self.row_bytes] = rows_MB
            starts = np.arange(count) * stored.shape[1]
            lengths = np.full(count, self.row_bytes)
            sums = checksums(stored.reshape(-1), starts, lengths, seeds_M)
            self._content.update(sums.data)
            stored[:, self.row_bytes :] = sums.astype("<u4").view(np.uint8).reshape(count, CHECKSUM_BYTES)
            self._writer.write(stored.reshape(-1))
            return lengths
        frames = [
            frame if len(frame) < self.row_bytes else row.tobytes()
            for frame, row in zip(self._compressor.frames(rows_MB), rows_MB, strict=True)
        ]
        lengths = np.fromiter(map(len, frames), np.int64, count)
        gap = bytes(CHECKSUM_BYTES)
        flat = np.frombuffer(bytearray(b"".join(part for frame in frames for part in (frame, gap))), np.uint8)
        ends = np.cumsum(lengths + CHECKSUM_BYTES)
        sums = checksums(flat, ends - lengths - CHECKSUM_BYTES, lengths, seeds_M)
        self._content.update(sums.data)
        flat[(ends - CHECKSUM_BYTES)[:, None] + np.arange(CHECKSUM_BYTES)] = (
            sums.astype("<u4").view(np.uint8).reshape(count, -1)
        )
        self._writer.write(flat)
        return lengths

    @property
    def content_digest(self) -> bytes:
        """Digest of all row checksums so far; those are seeded with the IDs, so it stands for keys and rows."""
        return self._content.digest()

    def finish(self, stamp: FileStamp) -> FileEntry:
        """Make the file durable."""
        dictionary = self._dictionary or b""
        return finish_file(
            self._writer,
            ROWS_HEADER,
            stamp,
            KIND_ROWS,
            self.content_digest,
            num_rows=self.num_rows,
            row_bytes=self.row_bytes,
            compression=0 if self._dictionary is None else 1,
            data_at=self.data_at,
            dictionary_at=PAGE_BYTES if dictionary else 0,
            dictionary_bytes=len(dictionary),
            dictionary_crc=zlib.crc32(dictionary),
        )

    def close(self) -> None:
        """Give up: close without making anything durable."""
        self._writer.close()


class RowsFile:
    """An open rows file: what the read kernels need to know of it, and the decompressor of its frames."""

    def __init__(
        self, directory: Path, entry: FileEntry, stamp: FileStamp, *, row_bytes: int, is_compressed: bool
    ) -> None:
        self.file = file = DataFile(directory, entry, ROWS_HEADER, KIND_ROWS, stamp)
        self.path = file.path
        self.num_rows = file.number("num_rows")
        self.row_bytes = file.number("row_bytes")
        self.data_at = file.number("data_at")
        self.is_compressed = is_compressed
        dictionary_bytes = file.number("dictionary_bytes")
        wanted_at = PAGE_BYTES + -(-dictionary_bytes // PAGE_BYTES) * PAGE_BYTES
        if (
            self.row_bytes != row_bytes
            or not 0 < row_bytes <= MAX_ROW_BYTES
            or file.number("compression") != int(is_compressed)
            or file.number("dictionary_at") != (PAGE_BYTES if dictionary_bytes else 0)
            or self.data_at != wanted_at
            or wanted_at > entry.file_bytes
            or (not is_compressed and entry.file_bytes != self.data_at + self.num_rows * (row_bytes + CHECKSUM_BYTES))
        ):
            raise DamagedStore(f"{file.path}: impossible sizes in the header: {file.header}")
        dictionary = file.read(PAGE_BYTES, dictionary_bytes)
        if zlib.crc32(dictionary) != file.number("dictionary_crc"):
            raise DamagedStore(f"{file.path}: the zstd dictionary at byte {PAGE_BYTES:,} fails its checksum")
        self.dictionary = dictionary if is_compressed else None
        self.decompressor = RowDecompressor(dictionary, row_bytes) if is_compressed else None
