"""Reading files whatever state they are in: missing bytes read as zeros, every fault is written down, no damage raises.

What `verify` and `repair` stand on. Nothing is mapped that was not read before: a sector that cannot be read is an error of
`pread`, and a signal to who maps it. What the manifest says of a file decides what its header must be, byte for byte; so a
damaged header costs nothing. A file that is there but is kept from us (its mode, a link, too many open files) is not damaged:
UsageError, or a repair would give up rows that are well.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.errors import FormatError, UsageError
from ngramstore.files import OwnsFd, read_around_holes
from ngramstore.hashing import checksums
from ngramstore.layout import CHECKSUM_BYTES, PAGE_BYTES, Layout
from ngramstore.store.layers.datafile import FileEntry, FileStamp, check_header, header_crc, header_page
from ngramstore.store.layers.in_use import lock_shared

_PIECE_BYTES = 1 << 20
_DAMAGE = (errno.ENOENT, errno.EIO)
"""What the system says of a file that is lost; all else may be well tomorrow."""
_MISSING = "the file is missing"
_HINTS = {
    errno.EACCES: "check its owner and mode, or work as its owner",
    errno.EPERM: "check its owner and mode, or work as its owner",
    errno.ELOOP: "it is a link: put the file itself in its place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the whole system has too many open files: close some",
}


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written: file name, byte position where there is one, and what is wrong."""

    file: str
    offset: int | None
    what: str

    @property
    def is_missing(self) -> bool:
        """Whether there is no such file."""
        return self.what == _MISSING

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.offset is None else f"{self.file} at byte {self.offset}: {self.what}"


class RawFile(OwnsFd):
    """A file as the manifest names it, readable in any state; what is wrong with it as a whole goes to `faults`."""

    def __init__(self, directory: Path, entry: FileEntry, faults: list[Fault]) -> None:
        self.path = directory / entry.name
        self.entry = entry
        self.size = 0
        self._faults = faults
        self._unreadable = range(0)  # bytes, of the fault written down last
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(self.fd)
        except OSError as error:
            self.close()
            self.fault(None, damage_of(self.path, error))
            return
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{self.path} is not a regular file", hint="put the file itself in its place, or move this away"
            )
        lock_shared(self.fd)
        self.size = status.st_size
        if self.size != entry.file_bytes:
            at = min(self.size, entry.file_bytes)
            self.fault(at, f"the file has {self.size} bytes, the manifest says {entry.file_bytes}")

    def fault(self, offset: int | None, what: str) -> None:
        """Write down a fault."""
        self._faults.append(Fault(self.entry.name, offset, what))

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes at `position`; those that cannot be read are zeros. `size` is for the caller to bound."""
        return self.array(position, size).tobytes()

    def array(self, position: int, size: int) -> np.ndarray:
        """As `read`, as numbers that may be changed: (size,) u8."""
        count = max(0, min(size, self.size - position)) if position >= 0 else 0
        try:
            data, holes = read_around_holes(self.fd, count, position)
        except OSError as error:
            damage_of(self.path, error)
            raise
        for begin, end in holes:
            self._fault_hole(begin, end)
        data += bytes(max(0, size) - len(data))
        return np.frombuffer(data, np.uint8)

    def is_readable(self) -> bool:
        """Whether every byte can be read now: what is mapped then raises no signal, unless a sector goes bad meanwhile."""
        at = 0
        while at < self.size:
            try:
                piece = os.pread(self.fd, _PIECE_BYTES, at)
            except OSError:
                return False
            if not piece:
                return False
            at += len(piece)
        return True

    def _fault_hole(self, begin: int, end: int) -> None:
        """Write down what cannot be read, once where it goes on from, or lies in, what was met before."""
        known = self._unreadable
        if known and known.start <= begin <= known.stop:
            self._unreadable = range(known.start, max(end, known.stop))
            return
        self.fault(begin, damage_of(self.path, OSError(errno.EIO, os.strerror(errno.EIO))))
        self._unreadable = range(begin, end)

    def check_zeros(self, begin: int, end: int) -> None:
        """Fault where padding is not zeros, as far as there is any."""
        for at in range(begin, min(end, self.size), _PIECE_BYTES):
            data = self.array(at, min(end, self.size, at + _PIECE_BYTES) - at)
            if data.any():
                self.fault(at + int(np.flatnonzero(data)[0]), "padding is not zeros")
                return

    def header(
        self, layout: Layout, kind: int, stamp: FileStamp, choices: Iterable[dict[str, int]]
    ) -> tuple[dict[str, int], bool]:
        """The fields this file's header has, and whether they are certain.

        choices: what the fields may be, as far as the manifest does not say; the one whose page has the checksum that the
        manifest names is the header that was written, whatever is there now.
        """
        page = self.read(0, PAGE_BYTES)
        fields: dict[str, int] = {}
        for choice in choices:
            fields = fields or choice
            wanted = header_page(layout, stamp, kind, self.entry.file_bytes, self.entry.content, **choice)
            if header_crc(wanted) == self.entry.header_crc:
                if page != wanted and self.size:
                    at = next(i for i, (got, right) in enumerate(zip(page, wanted, strict=True)) if got != right)
                    self.fault(at, "the header is not as it was written")
                return choice, True
        try:
            found = check_header(page, layout, kind, self.path)
            self.fault(0, f"this is not the file that the manifest names: its header says {found}")
        except FormatError as error:
            self.fault(0, error.message)
        return fields, False


def damage_of(path: Path, error: OSError) -> str:
    """What is wrong with a file that is damaged. Raises UsageError where the error does not say that it is."""
    if error.errno not in _DAMAGE:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            hint=f"{_HINTS.get(error.errno or 0, 'try again when it can be read')}; nothing has changed",
        ) from error
    return _MISSING if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"


def find_length(data: np.ndarray, seed: int) -> int | None:
    """How long the piece at the start of `data` (u8) is whose checksum, seeded with `seed`, stands behind it."""
    most = len(data) - CHECKSUM_BYTES
    if most < 1:
        return None
    sizes = np.arange(1, most + 1)
    sums = checksums(data, np.zeros(most, np.int64), sizes, np.full(most, seed, np.uint64))
    stored = np.lib.stride_tricks.sliding_window_view(data[1:], CHECKSUM_BYTES)
    hits = np.flatnonzero(sums == np.ascontiguousarray(stored).view("<u4").reshape(-1))
    return int(sizes[hits[0]]) if len(hits) else None
