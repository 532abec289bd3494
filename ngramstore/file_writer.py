"""A new file, written front to back through a buffer; one that is too large for the page cache does not stay there."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from ngramstore.files import OwnsFd, fsync, our_errors, write_all, write_at

_BUFFER_BYTES = 1 << 20
_DISK_BLOCK_BYTES = 4096
_PIECE_BYTES = 4 << 20
_DONTCACHE = 0x80  # RWF_DONTCACHE, Linux 6.14: begin to write at once, and drop the pages when they are written
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


class FileWriter(OwnsFd):
    """A new file, written front to back through a buffer; `finish` makes it durable. Without that it is a leftover to remove.

    `is_uncached`: for a file too large to stay in the page cache: what is written does not stay there, and it reaches the disk
    while more is written, so that little is left to do for the sync. Pages that are dropped once they are written
    (RWF_DONTCACHE), direct writes where the system or the filesystem does not know that, and ordinary ones where it knows
    neither. docs/design.md has the measurements.
    """

    def __init__(self, path: Path, *, is_uncached: bool = False) -> None:
        self.path = path
        self.position = 0
        self._buffer = bytearray()
        self._ways = deque(WAYS if is_uncached else ())
        self._aligned = aligned_bytes(_PIECE_BYTES) if is_uncached else None  # what is not a whole piece yet
        self._used = 0
        with our_errors(path):
            path.unlink(missing_ok=True)  # never written over: somebody may have it open, or mapped
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write(self, data: Any) -> None:
        """Append bytes, or the bytes of a C-contiguous array."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self.position += view.nbytes
        if self._aligned is not None:
            if view.nbytes:
                self._write_uncached(np.frombuffer(view, np.uint8))
            return
        if view.nbytes < _BUFFER_BYTES // 4:
            self._buffer += view
            if len(self._buffer) < _BUFFER_BYTES:
                return
            view = memoryview(b"")
        self._drain()
        if view.nbytes:
            write_all(self.fd, view, self.path)

    def _write_uncached(self, data: np.ndarray) -> None:
        assert self._aligned is not None
        is_aligned = self._used % _DISK_BLOCK_BYTES == 0 and data.ctypes.data % _DISK_BLOCK_BYTES == 0
        if is_aligned and data.size >= _BUFFER_BYTES // 4:  # where it lies
            used, self._used = self._used, 0
            self._write_aligned(self._aligned[:used])
            whole = data.size // _DISK_BLOCK_BYTES * _DISK_BLOCK_BYTES
            self._write_aligned(data[:whole])
            data = data[whole:]
        while data.size:
            count = min(data.size, _PIECE_BYTES - self._used)
            self._aligned[self._used : self._used + count] = data[:count]  # without the GIL
            self._used += count
            data = data[count:]
            if self._used == _PIECE_BYTES:
                self._used = 0
                self._write_aligned(self._aligned)

    def _write_aligned(self, data: np.ndarray) -> None:
        if not data.size:
            return
        begin = os.lseek(self.fd, 0, os.SEEK_CUR)
        while True:
            try:
                return self._ways[0](self.fd, data.data, self.path)
            except OSError as error:
                if error.errno not in _REFUSED or len(self._ways) == 1:
                    raise
            self._ways.popleft()
            os.lseek(self.fd, begin, os.SEEK_SET)

    def pad(self, unit: int) -> None:
        """Append zeros up to a multiple of `unit` bytes."""
        self.write(bytes(-self.position % unit))

    def rewrite(self, position: int, data: bytes | memoryview) -> None:
        """Overwrite bytes already written (a header that was kept for the end)."""
        self._drain()
        write_at(self.fd, data, position, self.path)

    def read(self, position: int, size: int) -> bytes:
        """Bytes already written."""
        self._drain()
        return os.pread(self.fd, size, position)

    def finish(self) -> int:
        """Flush, fsync and close; returns the file's size in bytes."""
        self._drain()
        fsync(self.fd, self.path)
        self.close()
        return self.position

    def flush(self) -> None:
        """Hand everything to the system; no promise about power cuts."""
        self._drain()

    def _drain(self) -> None:
        if self._aligned is not None:
            self._end_uncached()
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            write_all(self.fd, memoryview(data), self.path)

    def _end_uncached(self) -> None:
        """What is left does not fill whole blocks of the disk: it goes through the page cache, and so does all behind it."""
        assert self._aligned is not None
        rest = self._aligned[: self._used]
        self._aligned = None
        _set_direct(self.fd, False)  # also where nothing is left: the header is written over later
        if rest.size:
            cached(self.fd, rest.data, self.path)

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def aligned_bytes(size: int) -> np.ndarray:
    """A zeroed (size,) u8 buffer that begins on a page, as direct writes need it."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def dropped(fd: int, data: memoryview, path: Path) -> None:
    """Through pages that the system writes at once and drops then."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.EOPNOTSUPP, "pages cannot be dropped as they are written")
    try:
        write_all(fd, data, path, _DONTCACHE)
    except NotImplementedError as error:
        raise OSError(errno.EOPNOTSUPP, "this Python was built without pwritev2") from error


def direct(fd: int, data: memoryview, path: Path) -> None:
    """Past the page cache."""
    _set_direct(fd, True)
    write_all(fd, data, path)


def cached(fd: int, data: memoryview, path: Path) -> None:
    """Through the page cache."""
    _set_direct(fd, False)
    write_all(fd, data, path)


def _set_direct(fd: int, is_direct: bool) -> None:
    """Let writes go past the page cache, or not; OSError where that is not possible."""
    flag = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    wanted = flags | flag if is_direct else flags & ~flag
    if wanted != flags:
        fcntl.fcntl(fd, fcntl.F_SETFL, wanted)


Way: TypeAlias = Callable[[int, memoryview, Path], None]
WAYS: tuple[Way, ...] = (dropped, direct, cached)
"""Of writing a piece of an uncached file, (descriptor, bytes, path): each is taken where the one before is refused."""
