"""An index is written: sorted IDs, a chunk at a time, cut in three planes; then the sections in file order, page by page.

Format: docs/format.md, section Index.

Shapes: N rows of the index, M rows of a chunk.
"""

from __future__ import annotations

import errno
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ngramstore import files
from ngramstore.file_writer import FileWriter
from ngramstore.files import our_errors, write_at
from ngramstore.kernels.native import index as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, INDEX_HEADER, KIND_INDEX, PAGE_BYTES
from ngramstore.store.layers.datafile import FileEntry, FileStamp, finish_file
from ngramstore.store.layers.index_plan import IndexPlan, index_content, page_checksums

_CHUNK_ROWS = 1 << 16
_CHUNK_BUCKETS = 1 << 16  # a whole number of pages in the directory
_SIZED_ROWS = 1 << 18  # whole blocks, whose places fill whole pages
_WRITE_BYTES = 4 << 20
_LARGE_BYTES = 64 << 20


class IndexBuilder:
    """Turns sorted IDs (and stored sizes) into the sections of an index, a chunk at a time.

    Held until written: the sizes of the buckets (up to 0.5 B a row) and the planes (6 to 8 B a row), in memory or, when they
    are large and `scratch` is a directory, in unnamed files there. Raises DiskFull.
    """

    def __init__(self, plan: IndexPlan, scratch: Path | None = None) -> None:
        self.plan = plan
        self._scratch = scratch
        self._remainders, self._low_bits, self._counts, self._lengths = (
            _plane(dtype, count, scratch) for dtype, count in _planes(plan)
        )
        self._pending: list[np.ndarray] = []
        self._done = 0
        self._last_id = -1

    def add(self, ids_M: np.ndarray) -> None:
        """The next M IDs, (M,) u64, ascending and above all before."""
        if len(ids_M) == 0:
            return
        if int(ids_M[0]) <= self._last_id or (ids_M[1:] <= ids_M[:-1]).any():
            raise AssertionError("IDs must ascend")
        self._last_id = int(ids_M[-1])
        self._pending.append(ids_M)
        if sum(map(len, self._pending)) >= _CHUNK_ROWS:
            self._take(full_bytes=True)

    def set_lengths(self, first: int, lengths_M: np.ndarray) -> None:
        """Stored bytes (without the checksum) of rows first, first + 1, ..."""
        self._lengths[first : first + len(lengths_M)] = lengths_M

    def _take(self, *, full_bytes: bool) -> None:
        ids = np.concatenate(self._pending) if self._pending else np.empty(0, np.uint64)
        count = len(ids) // 8 * 8 if full_bytes else len(ids)
        self._pending = [ids[count:]]
        ids = np.ascontiguousarray(ids[:count])
        if count == 0:
            return
        plan, low = self.plan, self.plan.low_bits
        buckets = (ids >> np.uint64(64 - plan.bucket_bits)).astype(np.int64)
        first = int(buckets[0])  # IDs ascend: counting from here costs what the chunk spans, not what the index has
        counts = np.bincount(buckets - first)
        self._counts[first : first + len(counts)] += counts.astype(np.uint32)
        self._remainders[self._done : self._done + count] = (ids >> np.uint64(low)).astype(np.uint32)
        if low:
            native.pack_low_bits(ids, low, self._low_bits[self._done * low // 8 :])
        self._done += count

    def pages(self, data_at: int) -> Iterator[np.ndarray]:
        """The sections in file order, padded, as whole pages some megabytes at a time; data_at: where the first row is."""
        plan = self.plan
        if plan.is_keyed:
            self._take(full_bytes=False)
            if self._done != plan.num_rows:
                raise AssertionError(f"{self._done:,} rows were added, {plan.num_rows:,} were announced")
            step = 1 << plan.group_bits
            groups = np.concatenate([starts[-first % step :: step] for first, starts in self._starts()])
            yield from _pages(groups.astype("<u8"))
            for first, starts in self._starts():
                group = np.arange(first, first + len(starts)) >> plan.group_bits
                yield from _pages((starts - groups[group]).astype("<u4"))
            yield from _pages(self._read_back(self._remainders))
            yield from _pages(self._read_back(self._low_bits))
        if plan.is_sized:
            self._read_back(self._lengths)
            for places in self._block_places(data_at):
                yield from _pages(places.astype("<u8"))
            yield from _pages(self._lengths)

    def _read_back(self, plane: np.ndarray) -> np.ndarray:
        """A plane that is to be written for good. Of one on disk only a sync tells whether all of it came there: pages that were
        lost would be written under good checksums."""
        if self._scratch is not None and isinstance(plane, np.memmap):
            with our_errors(self._scratch):
                plane.flush()
        return plane

    def _block_places(self, place: int) -> Iterator[np.ndarray]:
        """Where each block of rows begins in the rows file, the first one at `place`: (M,) i64, some megabytes of rows
        at a time."""
        for first in range(0, self.plan.num_rows, _SIZED_ROWS):
            lengths = self._lengths[first : min(self.plan.num_rows, first + _SIZED_ROWS)]
            sizes = np.add.reduceat(lengths, np.arange(0, len(lengths), BLOCK_ROWS), dtype=np.int64)
            ends = np.cumsum(sizes + CHECKSUM_BYTES * BLOCK_ROWS) + place
            yield np.concatenate([[place], ends[:-1]])
            place = int(ends[-1])

    def _starts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first bucket, ranks at which it and the following begin (M,) i64), some thousand buckets at a time."""
        start = 0
        for first in range(0, len(self._counts), _CHUNK_BUCKETS):
            counts = self._counts[first : first + _CHUNK_BUCKETS].astype(np.int64)
            ends = np.cumsum(counts) + start
            yield first, ends - counts
            start = int(ends[-1])

    def write(self, path: Path, stamp: FileStamp, data_at: int = 0) -> FileEntry:
        """The whole index as a durable file."""
        with FileWriter(path) as writer:
            writer.write(bytes(PAGE_BYTES))
            sums = []
            page = 1
            for pages in self.pages(data_at):
                writer.write(pages)
                sums.append(page_checksums(pages, page))
                page += len(pages) // PAGE_BYTES
            table = np.concatenate([*sums, np.empty(0, np.uint32)]).astype("<u4").tobytes()
            if writer.position != (planned := self.plan.sections()["checksums"][0]):
                raise AssertionError(f"{path}: the checksums would be at byte {writer.position:,}, not {planned:,}")
            writer.write(table)
            writer.write(zlib.crc32(table).to_bytes(4, "little"))
            return finish_file(
                writer, INDEX_HEADER, stamp, KIND_INDEX, index_content(table), **self.plan.header_fields()
            )


def _pages(section: np.ndarray) -> Iterator[np.ndarray]:
    """A section as whole pages, the last one padded with zeros."""
    data = section.reshape(-1).view(np.uint8)
    whole = len(data) // PAGE_BYTES * PAGE_BYTES
    for at in range(0, whole, _WRITE_BYTES):
        yield data[at : min(whole, at + _WRITE_BYTES)]
    if whole < len(data):
        yield np.concatenate([data[whole:], np.zeros(-len(data) % PAGE_BYTES, np.uint8)])


def scratch_bytes(plan: IndexPlan) -> int:
    """What an IndexBuilder with a `scratch` directory takes there, until the index is written."""
    sizes = [count * np.dtype(dtype).itemsize for dtype, count in _planes(plan)]
    return sum(size for size in sizes if _is_large(size))


def _planes(plan: IndexPlan) -> list[tuple[type, int]]:
    """Type and length of what is held until it is written: remainders, low bits, sizes of the buckets, stored sizes."""
    sections = plan.sections()
    return [
        (np.uint32, sections["remainders"][1] // 4),
        (np.uint8, sections["low_bits"][1]),
        (np.uint32, (1 << plan.bucket_bits) + 1 if plan.is_keyed else 0),
        (np.uint16, sections["lengths"][1] // 2),
    ]


def _is_large(num_bytes: int) -> bool:
    return num_bytes > 0 and num_bytes >= _LARGE_BYTES


def _plane(dtype: type, count: int, scratch: Path | None) -> np.ndarray:
    """A zeroed array, on disk if it is large and may be."""
    num_bytes = count * np.dtype(dtype).itemsize
    if scratch is None or not _is_large(num_bytes):
        return np.zeros(count, dtype)
    with our_errors(scratch), tempfile.TemporaryFile(dir=scratch) as file:
        _take_room(file.fileno(), num_bytes, scratch)
        return np.memmap(file, dtype, "w+", shape=(count,))


def _take_room(fd: int, num_bytes: int, path: Path) -> None:
    """Let an empty file hold that many zeros that the disk has room for.

    Storing into a map of a hole that it has no room for is SIGBUS, which no `except` sees.
    """
    files.observe("write", path)
    try:
        os.posix_fallocate(fd, 0, num_bytes)
        return
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of a filesystem that cannot
            raise
    zeros = bytes(_WRITE_BYTES)
    for at in range(0, num_bytes, _WRITE_BYTES):
        write_at(fd, zeros[: num_bytes - at], at, path)
