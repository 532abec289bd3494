"""A rows file that a killed conversion goes on with: rows by number, appended, found again and verified.

Format: docs/format.md, section Rows; the bytes are those that `RowsWriter` writes. Until the file is finished its header page is
zeros. What a rows file does not say of itself lies in `runs/` beside it: which conversion it is of, the zstd dictionary, and the
stored bytes of each compressed row. Found again, every row is read and checked; from the first that fails on it is written anew.
Of all this only the first two are durable before the end: after a power cut anything may stand in the rows file, also before its
first row.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ngramstore.files import (
    fsync,
    make_directory,
    our_errors,
    publish,
    read_around_holes,
    remove,
    truncate,
    write_all,
)
from ngramstore.hashing import checksums
from ngramstore.layout import CHECKSUM_BYTES, PAGE_BYTES
from ngramstore.store.layers.datafile import FileEntry, FileStamp, content_digest, finish_rows
from ngramstore.store.layers.names import RUN_FILE, RUNS_NAME

_STATE, _DICTIONARY, _LENGTHS = "state.json", "dictionary", "lengths"
_CHUNK_ROWS = 1 << 16
_CHUNK_BYTES = 16 << 20
Compress = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Rows (M, B) u8 -> a frame of each, end to end, u8, and their sizes (M,) i64."""


class ResumableRows:
    """Appends encoded rows; `num_rows` are there. `conversion`: JSON that must be the same for the work to be gone on with.

    dictionary, compress: of compressed rows; a row that is not smaller as a frame is stored as it is. progress: a bar on stderr
    while rows that are there are verified.
    """

    def __init__(
        self,
        path: Path,
        row_bytes: int,
        conversion: dict[str, Any],
        *,
        dictionary: bytes | None,
        compress: Compress | None = None,
        progress: bool = False,
    ) -> None:
        self.path = path
        self.row_bytes = row_bytes
        self.num_rows = 0
        self._runs = path.parent / RUNS_NAME
        self._dictionary = dictionary
        self._compress = compress
        self._content = content_digest()
        self._files: list[int] = []
        head = bytes(PAGE_BYTES) + (dictionary or b"")
        head += bytes(-len(head) % PAGE_BYTES)
        self.data_at = self.position = len(head)
        is_new = not is_of(path, conversion)
        if is_new:
            remove(path)
            remove(self._runs, only=RUN_FILE)
            make_directory(self._runs)
        try:
            self._fd = self._open(path)
            self._lengths_fd = self._open(self._runs / _LENGTHS)
            if is_new:
                write_all(self._fd, head, path)
                publish(self._runs / _DICTIONARY, b"none" if dictionary is None else b"zstd" + dictionary)
                publish(self._runs / _STATE, _as_json(conversion))
            else:
                if self._found(len(head), 0) != head:
                    write_all(self._fd, head, path)
                self._find(progress)
        except BaseException:
            self.close()
            raise

    def write(self, rows_MB: np.ndarray) -> None:
        """Append the next M rows."""
        seeds = np.arange(self.num_rows, self.num_rows + len(rows_MB), dtype=np.uint64)
        flat, lengths = self._stored(rows_MB)
        ends = np.cumsum(lengths + CHECKSUM_BYTES)
        sums = checksums(flat, ends - lengths - CHECKSUM_BYTES, lengths, seeds).astype("<u4")
        flat[(ends - CHECKSUM_BYTES)[:, None] + np.arange(CHECKSUM_BYTES)] = sums.view(np.uint8).reshape(len(sums), -1)
        write_all(self._fd, flat.data, self.path)
        if self._compress is not None:  # behind the rows: what has no length does not count
            write_all(self._lengths_fd, lengths.astype("<u2").tobytes(), self._runs / _LENGTHS)
        self._content.update(sums.data)
        self.num_rows += len(rows_MB)
        self.position += len(flat)

    def lengths(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and stored bytes without checksums, (M,) u16, chunk by chunk; of compressed rows only."""
        for first in range(0, self.num_rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, self.num_rows - first)
            yield first, np.fromfile(self._runs / _LENGTHS, "<u2", count, offset=2 * first)

    def finish(self, stamp: FileStamp) -> FileEntry:
        """Write the header and make the file durable. `runs/` is then of no use any more."""
        return finish_rows(
            _Ending(self),
            stamp,
            self._content.digest(),
            num_rows=self.num_rows,
            row_bytes=self.row_bytes,
            data_at=self.data_at,
            dictionary=self._dictionary,
        )

    def close(self) -> None:
        """Let go of the files; what is written stays, to be gone on with."""
        while self._files:
            os.close(self._files.pop())

    def _open(self, path: Path) -> int:
        with our_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._files.append(fd)
        return fd

    def _stored(self, rows_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows as they are stored, end to end with room for a checksum behind each, and their bytes without it."""
        count = len(rows_MB)
        if self._compress is None:
            stored = np.empty((count, self.row_bytes + CHECKSUM_BYTES), np.uint8)
            stored[:, : self.row_bytes] = rows_MB
            return stored.reshape(-1), np.full(count, self.row_bytes)
        frames, sizes = self._compress(rows_MB)
        view, ends = memoryview(frames), np.cumsum(sizes).tolist()  # type: ignore[arg-type]
        gap = bytes(CHECKSUM_BYTES)
        parts = []
        for row, end, size in zip(rows_MB, ends, sizes.tolist(), strict=True):
            parts += [view[end - size : end] if size < self.row_bytes else row.data, gap]
        return np.frombuffer(bytearray(b"".join(parts)), np.uint8), np.minimum(sizes, self.row_bytes)

    def _find(self, progress: bool) -> None:
        """Count the rows that are there and well; what follows them is cut off."""
        known = os.fstat(self._lengths_fd).st_size // 2 if self._compress is not None else None
        stored = self.row_bytes + CHECKSUM_BYTES
        total = (os.fstat(self._fd).st_size - self.position) // stored if known is None else known
        step = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // stored))
        is_whole = True
        with tqdm(total=total, desc="verify", unit="row", unit_scale=True, disable=not progress) as bar:
            while is_whole and (known is None or self.num_rows < known):
                lengths = self._found_lengths(step)
                good = self._take_good(lengths)
                is_whole = good == len(lengths)
                bar.update(good)
        truncate(self._fd, self.position, self.path)
        truncate(self._lengths_fd, 2 * self.num_rows if known is not None else 0, self._runs / _LENGTHS)
        os.lseek(self._fd, 0, os.SEEK_END)
        os.lseek(self._lengths_fd, 0, os.SEEK_END)

    def _found_lengths(self, count: int) -> np.ndarray:
        """Stored bytes of the next rows, up to `count`; 0, which no row has, where they cannot be."""
        if self._compress is None:
            return np.full(count, self.row_bytes)
        lengths = np.fromfile(self._runs / _LENGTHS, "<u2", count, offset=2 * self.num_rows).astype(np.int64)
        return np.where(lengths <= self.row_bytes, lengths, 0)

    def _take_good(self, lengths: np.ndarray) -> int:
        """Go past those of the next rows that are there and well, up to the first that is not; how many they are."""
        ends = np.cumsum(lengths + CHECKSUM_BYTES)
        flat = np.frombuffer(self._found(int(ends[-1]), self.position), np.uint8)
        count = int(np.searchsorted(ends, len(flat), "right"))
        ends, lengths = ends[:count], lengths[:count]
        seeds = np.arange(self.num_rows, self.num_rows + count, dtype=np.uint64)
        sums = checksums(flat, ends - lengths - CHECKSUM_BYTES, lengths, seeds).astype("<u4")
        there = flat[(ends - CHECKSUM_BYTES)[:, None] + np.arange(CHECKSUM_BYTES)].reshape(-1).view("<u4")
        bad = np.flatnonzero((sums != there) | (lengths == 0))
        good = int(bad[0]) if len(bad) else count
        self._content.update(sums[:good].data)
        self.num_rows += good
        self.position += int(ends[good - 1]) if good else 0
        return good

    def _found(self, size: int, position: int) -> bytearray:
        """`size` bytes of the rows file, or as many as there are; zeros for what cannot be read: those rows fail their
        checksum."""
        return read_around_holes(self._fd, size, position)[0]


class _Ending:
    """What `finish_file` needs of a writer."""

    def __init__(self, rows: ResumableRows) -> None:
        self.path, self.position, self._rows = rows.path, rows.position, rows

    def rewrite(self, position: int, data: bytes) -> None:
        os.lseek(self._rows._fd, position, os.SEEK_SET)
        write_all(self._rows._fd, data, self.path)

    def finish(self) -> int:
        fsync(self._rows._fd, self.path)
        self._rows.close()
        return self.position


def is_of(path: Path, conversion: dict[str, Any]) -> bool:
    """Whether an unfinished rows file of this conversion is there to go on with; what cannot be read is an error, not a no."""
    try:
        with our_errors(path.parent):
            state = (path.parent / RUNS_NAME / _STATE).read_bytes()
            return state == _as_json(conversion) and stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def saved_conversion(path: Path) -> Any:
    """Of which conversion the unfinished rows at `path` are, whatever is saved of it; None: there are no rows to go on with."""
    try:
        with our_errors(path.parent):
            os.stat(path)
            state = (path.parent / RUNS_NAME / _STATE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(state)
    except (ValueError, RecursionError):
        return state.decode("utf-8", "replace")


def dictionary_of(path: Path) -> bytes | None:
    """The dictionary that the unfinished rows at `path` are compressed with; None: they are stored as they are."""
    data = (path.parent / RUNS_NAME / _DICTIONARY).read_bytes()
    return None if data == b"none" else data[4:]


def _as_json(conversion: dict[str, Any]) -> bytes:
    return json.dumps(conversion, sort_keys=True, indent=1).encode() + b"\n"
