"""A new file, written front to back: through a buffer, or past the page cache where it is too large to stay there."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ngramstore.files import OwnsFd, clear_errors, fsync, write_all, write_at

_BUFFER_BYTES = 1 << 20
_DISK_BLOCK_BYTES = 4096
_DIRECT_BYTES = 4 << 20


class FileWriter(OwnsFd):
    """A new file, written front to back through a buffer; `finish` makes it durable. Without that it is a leftover to remove.

    `is_direct`: past the page cache, where the filesystem can: for a file too large to stay there. Copying a GiB into the page
    cache cost 2 s of CPU time where this cost 0.06 (docs/design.md); what is written is not in memory afterwards.
    """

    def __init__(self, path: Path, *, is_direct: bool = False) -> None:
        self.path = path
        self.position = 0
        self._buffer = bytearray()
        self._aligned: np.ndarray | None = None  # the buffer of direct writes, and how full it is
        self._used = 0
        with clear_errors(path):
            path.unlink(missing_ok=True)  # never written over: somebody may have it open, or mapped
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if is_direct and _set_direct(self.fd, True):
            self._aligned = aligned_bytes(_DIRECT_BYTES)

    def write(self, data: Any) -> None:
        """Append bytes, or the bytes of a C-contiguous array."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self.position += view.nbytes
        if self._aligned is not None:
            if view.nbytes:
                self._write_direct(np.frombuffer(view, np.uint8))
            return
        if view.nbytes < _BUFFER_BYTES // 4:
            self._buffer += view
            if len(self._buffer) < _BUFFER_BYTES:
                return
            view = memoryview(b"")
        self._drain()
        if view.nbytes:
            write_all(self.fd, view, self.path)

    def _write_direct(self, data: np.ndarray) -> None:
        assert self._aligned is not None
        if self._used == 0 and data.ctypes.data % _DISK_BLOCK_BYTES == 0:
            whole = data.size // _DISK_BLOCK_BYTES * _DISK_BLOCK_BYTES
            self._write_aligned(data[:whole])
            data = data[whole:]
        while data.size:
            count = min(data.size, _DIRECT_BYTES - self._used)
            self._aligned[self._used : self._used + count] = data[:count]  # without the GIL
            self._used += count
            data = data[count:]
            if self._used == _DIRECT_BYTES:
                self._used = 0
                self._write_aligned(self._aligned)

    def _write_aligned(self, data: np.ndarray) -> None:
        if not data.size:
            return
        begin = os.lseek(self.fd, 0, os.SEEK_CUR)
        try:
            write_all(self.fd, data.data, self.path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the filesystem took the flag and refuses the write
                raise
            _set_direct(self.fd, False)
            os.lseek(self.fd, begin, os.SEEK_SET)
            write_all(self.fd, data.data, self.path)

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
            self._end_direct()
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            write_all(self.fd, memoryview(data), self.path)

    def _end_direct(self) -> None:
        """What is left does not fill whole blocks of the disk: it goes through the page cache, and so does all behind it."""
        assert self._aligned is not None
        rest = self._aligned[: self._used]
        _set_direct(self.fd, False)
        self._aligned = None
        if rest.size:
            write_all(self.fd, rest.data, self.path)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def aligned_bytes(size: int) -> np.ndarray:
    """A zeroed (size,) u8 buffer that begins on a page, as direct writes need it."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def _set_direct(fd: int, is_direct: bool) -> bool:
    """Let writes go past the page cache, or not; False where that is not possible."""
    flag = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if is_direct else flags & ~flag)
    except OSError:
        return False
    return bool(flag)
