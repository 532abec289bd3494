"""A base layer read in place: the rows of a shipped checkpoint, in its own safetensors files, through pread.

Nothing is copied. A source is known again at open by its size, a digest of its header, a digest of sampled pages (a
fine-tune has the same header) and, where no checksums of ours stand beside it, by inode and time of change. While it is
served, size and time are looked at after every batch of reads: a source that changes is an error, never other rows.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedRows, DamagedStore, UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.files import OwnsFd, our_errors, read_around_holes, read_exactly
from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as native
from ngramstore.kernels.native.memory import HAS_READ_HINT, WILLNEED
from ngramstore.layout import CHECKSUM_BYTES, KIND_SUMS, PAGE_BYTES, SUMS_HEADER
from ngramstore.store.layers.datafile import DataFile, FileEntry, FileStamp, content_digest, finish_file
from ngramstore.store.layers.external_entry import ExternalEntry, SourceEntry
from ngramstore.store.layers.layer import Layer
from ngramstore.store.layers.manifest import Spec

_SAMPLED_PAGES = 64
_MAX_HEADER_BYTES = 100 << 20
_HINT = "the checkpoint is not what it was at import: put it back, or run `ngramstore import` again"

IN_PLACE_HINT = 'put the checkpoint back, or import it again; on_damage="missing" serves the rest'
"""Of damaged rows in a store that reads some in place, which `repair` does not take."""


class Source(OwnsFd):
    """An open file of others. Closed when the last user lets go of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with our_errors(path):
                self.fd = _open(path)
        except FileNotFoundError:
            raise DamagedStore(f"{path} is missing; the manifest reads rows from it", hint=_HINT) from None
        except OSError as error:
            raise DamagedStore(f"cannot open {path}: {error.strerror}", hint=_HINT) from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedStore(f"{path} is not a regular file", hint=_HINT)
        self.file_bytes, self.inode, self.mtime_ns = status.st_size, status.st_ino, status.st_mtime_ns

    def entry(self, ranges: list[tuple[int, int]]) -> SourceEntry:
        """What tells this file from others; `ranges`: where rows lie in it."""
        return SourceEntry(
            path=str(self.path),
            file_bytes=self.file_bytes,
            header_digest=self._header_digest(),
            sample_digest=self._sample_digest(ranges),
            inode=self.inode,
            mtime_ns=self.mtime_ns,
        )

    def require(self, entry: SourceEntry, ranges: list[tuple[int, int]], *, by_time: bool) -> None:
        """DamagedStore unless this is the file that the manifest names."""
        self._require("size", self.file_bytes, entry.file_bytes)
        if by_time:
            self._require("inode", self.inode, entry.inode)
            self._require("time of change (ns)", self.mtime_ns, entry.mtime_ns)
        self._require("digest of the header", self._header_digest(), entry.header_digest)
        self._require("digest of sampled pages", self._sample_digest(ranges), entry.sample_digest)

    def check_unchanged(self) -> None:
        """DamagedStore if the file was cut or written to since it was opened."""
        status = os.fstat(self.fd)
        if status.st_size != self.file_bytes or status.st_mtime_ns != self.mtime_ns:
            raise DamagedStore(
                f"{self.path} was changed while it was being served: {self.file_bytes:,} bytes, now {status.st_size:,}",
                hint=_HINT,
            )

    def _require(self, what: str, got: object, wanted: object) -> None:
        if got != wanted:
            raise DamagedStore(
                f"{self.path} is not the file that was imported: its {what} is {got}, wanted {wanted}", hint=_HINT
            )

    def _header_digest(self) -> str:
        size = int.from_bytes(read_exactly(self.fd, 8, 0, self.path), "little")
        if size > min(_MAX_HEADER_BYTES, self.file_bytes - 8):
            raise DamagedStore(f"{self.path} is not a safetensors file: a header of {size:,} bytes", hint=_HINT)
        return blake2b(read_exactly(self.fd, 8 + size, 0, self.path), digest_size=16).hexdigest()

    def _sample_digest(self, ranges: list[tuple[int, int]]) -> str:
        places = list(_sampled(ranges))
        if HAS_READ_HINT:
            for begin, size in places:
                os.posix_fadvise(self.fd, begin, size, WILLNEED)
        digest = blake2b(digest_size=16)
        for begin, size in places:
            digest.update(read_exactly(self.fd, size, begin, self.path))
        return digest.hexdigest()


def _open(path: Path) -> int:
    """A descriptor for reading. A path that leads nowhere is the manifest's fault, not the system's."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise DamagedStore(f"cannot open {path}: {error.strerror}", hint=_HINT) from error
        raise


def _sampled(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(position, bytes) of pages spread evenly over each range, its first and last among them."""
    each = max(2, _SAMPLED_PAGES // max(1, len(ranges)))
    for begin, end in ranges:
        size = min(PAGE_BYTES, end - begin)
        for i in range(each):
            yield begin + (end - size - begin) * i // (each - 1), size


class ExternalLayer(Layer):
    """An open base layer whose rows are read in place. Threads: any number."""

    def __init__(
        self, directory: Path, entry: ExternalEntry, stamp: FileStamp, spec: Spec, serial: int, *, is_trusted: bool
    ) -> None:
        if not is_trusted:
            raise UsageError(
                f"the rows of {directory} lie in files outside of it, such as {entry.sources[0].path}",
                hint="if you trust who wrote its manifest, open it with trust_external=True (`--trust-external`)",
            )
        if spec.is_ngram or entry.row_bytes != spec.codec.row_bytes:
            raise DamagedStore(
                f"{directory}: rows in place of {entry.row_bytes} bytes, the codec stores {spec.codec.row_bytes}"
            )
        super().__init__(serial, entry.num_rows, is_keyed=False, tokens=None)
        self._entry = entry
        self._sums = None if entry.sums is None else open_sums(directory, entry.sums, stamp, entry.num_rows)
        self.sources = tuple(Source(Path(source.path)) for source in entry.sources)
        for number, (source, wanted) in enumerate(zip(self.sources, entry.sources, strict=True)):
            source.require(wanted, entry.ranges(number), by_time=self._sums is None)
        self.rows = InPlace(entry.row_bytes, Path(entry.sources[0].path))
        self._firsts = np.cumsum([0, *(segment.num_rows for segment in entry.segments)])
        self._lines = self._make_lines()

    @property
    def lines(self) -> np.ndarray:
        return self._lines

    @property
    def files(self) -> list[DataFile]:
        return [self._sums] if self._sums is not None else []

    def check_unchanged(self) -> None:
        """DamagedStore if a source was changed; rows under checksums of ours need no such look."""
        if self._sums is None:
            for source in self.sources:
                source.check_unchanged()

    def _make_lines(self) -> np.ndarray:
        lines = np.zeros((len(self._entry.segments), native.NUM_COLUMNS), np.int64)
        for line, first, segment in zip(lines, self._firsts.tolist(), self._entry.segments, strict=False):
            piece, *rest = segment.pieces
            line[native.SERIAL] = self.serial
            line[native.NUM_ROWS] = segment.num_rows
            line[native.FIRST_RANK] = first
            line[native.ROW_BYTES] = self.rows.row_bytes
            line[native.FIRST_BYTES] = piece.row_bytes
            line[native.ROWS_FD] = self.sources[piece.source].fd
            line[native.ROWS_DATA_AT] = piece.offset
            for second in rest:
                line[native.SECOND_FD] = self.sources[second.source].fd
                line[native.SECOND_AT] = second.offset
            line[native.SUMS_FD] = -1 if self._sums is None else self._sums.fd
            line[native.SUMS_AT] = 0 if self._sums is None else PAGE_BYTES + CHECKSUM_BYTES * first
        return lines

    def read_encoded(self, first: int, count: int, *, bad: list[int] | None = None) -> np.ndarray:
        rows = np.zeros((count, self.rows.row_bytes), np.uint8)
        at = first
        while at < first + count:
            number = int(np.searchsorted(self._firsts, at, "right")) - 1
            step = min(first + count, int(self._firsts[number + 1])) - at
            self._read_part(number, at, rows[at - first : at - first + step], bad)
            at += step
        self.check_unchanged()
        return rows

    def _read_part(self, number: int, first: int, rows_MB: np.ndarray, bad: list[int] | None) -> None:
        """Consecutive rows of one segment, pieces side by side, checked where there are checksums."""
        count, column = len(rows_MB), 0
        is_good = np.ones(count, bool)
        inside = first - int(self._firsts[number])
        for piece in self._entry.segments[number].pieces:
            source, width = self.sources[piece.source], piece.row_bytes
            begin = piece.offset + inside * width
            try:
                data, holes = read_around_holes(source.fd, count * width, begin)
            except OSError as error:  # such as ESTALE, of a network filesystem
                raise OSError(
                    error.errno, f"{error.strerror}, reading from byte {begin:,}", str(source.path)
                ) from error
            if len(data) < count * width and bad is None:
                raise DamagedStore(f"{source.path} ends inside row {first + len(data) // width:,}", hint=_HINT)
            if holes and bad is None:
                raise DamagedStore(f"{source.path}: byte {holes[0][0]:,} cannot be read", hint=_HINT)
            whole = len(data) // width
            rows_MB[:whole, column : column + width] = np.frombuffer(data, np.uint8)[: whole * width].reshape(-1, width)
            is_good[whole:] = False
            for hole, end in holes:
                is_good[(hole - begin) // width : -(-(end - begin) // width)] = False
            column += width
        if self._sums is not None:
            place = PAGE_BYTES + CHECKSUM_BYTES * first
            wanted = np.frombuffer(self._sums.read(place, CHECKSUM_BYTES * count), "<u4")
            is_good &= row_checksums(rows_MB, first) == wanted
        if is_good.all():
            return
        numbers = (np.flatnonzero(~is_good) + first).tolist()
        rows_MB[~is_good] = 0
        if bad is None:
            raise DamagedRows(
                f"{self.path_of(numbers[0])}: {len(numbers)} rows fail their checksum, first row {numbers[0]:,}",
                keys=numbers,
                hint=IN_PLACE_HINT,
            )
        bad.extend(numbers)

    def places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the first piece of each row begins in its source, and the bytes of a row."""
        ranks = np.arange(first, first + count)
        numbers = np.searchsorted(self._firsts, ranks, "right") - 1
        starts = self._lines[numbers, native.ROWS_DATA_AT]
        starts = starts + (ranks - self._firsts[numbers]) * self._lines[numbers, native.FIRST_BYTES]
        return starts, np.full(count, self.rows.row_bytes)

    def path_of(self, rank: int) -> Path:
        """The file that holds the first piece of a row."""
        number = int(np.searchsorted(self._firsts, rank, "right")) - 1
        return self.sources[self._entry.segments[number].pieces[0].source].path


@dataclass(frozen=True)
class InPlace:
    """Stands where a layer keeps its rows file: rows in place are neither compressed nor ours."""

    row_bytes: int
    path: Path
    is_compressed = False
    dictionary = None
    decompressor = None


def row_checksums(rows_MB: np.ndarray, first: int) -> np.ndarray:
    """Checksums of consecutive rows by number, (M, B) u8 -> (M,) u32, as packed rows carry them."""
    count, width = rows_MB.shape
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return checksums(
        np.ascontiguousarray(rows_MB).reshape(-1), np.arange(count) * width, np.full(count, width), numbers
    )


def write_sums(path: Path, stamp: FileStamp, batches: Iterator[np.ndarray]) -> FileEntry:
    """The sidecar of all rows, given in order: one u32 a row, durable."""
    with FileWriter(path) as writer:
        writer.write(bytes(PAGE_BYTES))
        num_rows, content = 0, content_digest()
        for rows_MB in batches:
            sums = row_checksums(rows_MB, num_rows).astype("<u4").view(np.uint8)
            content.update(sums.data)
            writer.write(sums)
            num_rows += len(rows_MB)
        return finish_file(writer, SUMS_HEADER, stamp, KIND_SUMS, content.digest(), num_rows=num_rows)


def open_sums(directory: Path, entry: FileEntry, stamp: FileStamp, num_rows: int) -> DataFile:
    """The sidecar, checked for its size."""
    file = DataFile(directory, entry, SUMS_HEADER, KIND_SUMS, stamp)
    if file.number("num_rows") != num_rows or entry.file_bytes != PAGE_BYTES + CHECKSUM_BYTES * num_rows:
        raise DamagedStore(f"{file.path} holds {file.number('num_rows'):,} checksums for {num_rows:,} rows")
    return file
