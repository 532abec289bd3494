"""Writes the rows file: threads gather, compress and checksum rows chunk by chunk, the caller's thread writes them in order.

Format: docs/format.md, section Rows; read by `rows_file.py`. The bytes are the same whatever the chunks and the threads.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import RowCompressor
from ngramstore.file_writer import FileWriter, aligned_bytes
from ngramstore.kernels.native import packing
from ngramstore.layout import CHECKSUM_BYTES, PAGE_BYTES
from ngramstore.store.layers.datafile import FileEntry, FileStamp, content_digest, finish_rows
from ngramstore.store.layers.scattered import ScatteredRows
from ngramstore.store.layers.stages import Stages

CHUNK_BYTES = 4 << 20
"""What one thread packs at a time. With what is waiting to be written, about 3 (threads + 2) of these are held."""
_EVEN_ROWS = 1024  # as many rows are whole pages, where a row is whole words: chunks can be written where they lie


def default_threads() -> int:
    """Threads that pack rows where nobody says: one a core, up to 4, which is more than a disk takes."""
    return min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class _Chunk:
    """A chunk in its stored layout: the first `size` bytes of a buffer; stored bytes and checksum of each row."""

    buffer: np.ndarray
    size: int
    lengths_M: np.ndarray
    sums_M: np.ndarray


class RowsWriter:
    """Writes encoded rows in order. `dictionary`: None stores rows as they are, else zstd with that dictionary.

    window_log: of the compressor, 0 for its own choice (`compress.window_log_for`). on_lengths: told (first row, stored bytes
    without the checksum (M,) i64) of each chunk, in order. threads: with more than one, rows given to `write` must stay as they
    are until `finish`. is_uncached: see FileWriter.
    """

    def __init__(
        self,
        path: Path,
        row_bytes: int,
        *,
        dictionary: bytes | None,
        window_log: int = 0,
        threads: int = 1,
        is_uncached: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        on_lengths: Callable[[int, np.ndarray], None] | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.row_bytes = row_bytes
        self.num_rows = 0
        self._writer = FileWriter(path, is_uncached=is_uncached)
        self._dictionary = dictionary
        self._window_log = window_log
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[tuple[int, Future[_Chunk]]] = deque()
        self._on_lengths = on_lengths
        self._stages = stages or Stages()
        self._content = content_digest()
        step = max(1, chunk_bytes // row_bytes)
        self._step = step // _EVEN_ROWS * _EVEN_ROWS or step
        self._spare: list[np.ndarray] = []
        self._local = threading.local()
        self._writer.write(bytes(PAGE_BYTES))
        if dictionary:
            self._writer.write(dictionary)
            self._writer.pad(PAGE_BYTES)
        self.data_at = self._writer.position

    def write(self, rows: np.ndarray | ScatteredRows, seeds_M: np.ndarray) -> None:
        """Append M encoded rows, (M, B) u8; seeds: of their checksums, (M,) u64."""
        if isinstance(rows, np.ndarray):
            rows = ScatteredRows.of(np.ascontiguousarray(rows))
        if self._pool is None and self._threads > 1 and len(rows) > self._step:
            self._pool = ThreadPoolExecutor(self._threads, "ngramstore-pack")
        for at in range(0, len(rows), self._step):
            part = slice(at, at + self._step)
            chunk, seeds = rows[part], np.ascontiguousarray(seeds_M[part])
            first = self.num_rows
            self.num_rows += len(chunk)
            if self._pool is None:
                self._append(first, self._pack(chunk, seeds))
                continue
            self._pending.append((first, self._pool.submit(self._pack, chunk, seeds)))
            if len(self._pending) > self._threads + 1:
                self._append_oldest()

    def _append_oldest(self) -> None:
        first, future = self._pending.popleft()
        with self._stages.timed("wait for pack"):
            packed = future.result()
        self._append(first, packed)

    def _append(self, first: int, packed: _Chunk) -> None:
        self._content.update(packed.sums_M.astype("<u4", copy=False).data)
        with self._stages.timed("write"):
            self._writer.write(packed.buffer[: packed.size])
        self._spare.append(packed.buffer)
        if self._on_lengths is not None:
            self._on_lengths(first, packed.lengths_M)

    def _pack(self, rows: ScatteredRows, seeds_M: np.ndarray) -> _Chunk:
        with self._stages.timed("pack"):
            count = len(rows)
            out = self._buffer(count * (self.row_bytes + CHECKSUM_BYTES))
            sums_M = np.empty(count, np.uint32)
            if self._dictionary is None:
                packing.store_rows(rows.addresses, self.row_bytes, seeds_M, out, sums_M)
                return _Chunk(out, count * (self.row_bytes + CHECKSUM_BYTES), np.full(count, self.row_bytes), sums_M)
            if not hasattr(self._local, "compressor"):
                self._local.compressor = RowCompressor(self._dictionary, self._window_log)
                self._local.rows = np.empty(self._step * self.row_bytes, np.uint8)
            rows_MB = rows.copied(self._local.rows)
            frames, sizes_M = self._local.compressor.compress(rows_MB)
            lengths_M = np.empty(count, np.int64)
            size = packing.store_frames(
                frames, sizes_M, rows_MB.reshape(-1), self.row_bytes, seeds_M, out, lengths_M, sums_M
            )
            return _Chunk(out, size, lengths_M, sums_M)

    def _buffer(self, size: int) -> np.ndarray:
        """A buffer of at least that size: one that was used before, so that its memory is touched for the first time once."""
        try:
            buffer = self._spare.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        return buffer if buffer.size >= size else aligned_bytes(size)

    def drain(self) -> None:
        """Write what is still being packed."""
        while self._pending:
            self._append_oldest()

    @property
    def content_digest(self) -> bytes:
        """Digest of all row checksums so far; those are seeded with the IDs, so it stands for keys and rows."""
        self.drain()
        return self._content.digest()

    def finish(self, stamp: FileStamp) -> FileEntry:
        """Make the file durable."""
        content = self.content_digest
        self._end_threads()
        with self._stages.timed("sync rows"):
            return finish_rows(
                self._writer,
                stamp,
                content,
                num_rows=self.num_rows,
                row_bytes=self.row_bytes,
                data_at=self.data_at,
                dictionary=self._dictionary,
            )

    def close(self) -> None:
        """Give up: close without making anything durable."""
        self._end_threads()
        self._writer.close()

    def _end_threads(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
