"""Everything we do to files: whole writes, atomic publication, locks, and one clear error when the disk is full.

All writing goes through this file, so that a test can let the N-th write, fsync or rename fail: `observe` is called with
the operation and the path before each one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ngramstore.errors import DamagedStore, DiskFull, UsageError, WriterLocked

_log = logging.getLogger("ngramstore")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUFFER_BYTES = 1 << 20
_DISK_BLOCK_BYTES = 4096
_DIRECT_BYTES = 4 << 20


def _unobserved(operation: str, path: Path) -> None:
    pass


observe: Callable[[str, Path], None] = _unobserved
"""Called before each "write", "fsync", "rename", "unlink"; tests replace it to inject failures."""


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into an error of ours, where we know what to do next."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (DiskFull, UsageError)):
            raise
        if error.errno in _FULL:
            raise DiskFull(f"no space left while writing {path}: {error.strerror}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"no permission for {path}: {error.strerror}", hint="check the owner and mode of the directory"
            ) from error
        if error.errno in (errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG):  # EEXIST: a link to nothing
            raise UsageError(f"cannot use {path}: {error.strerror}", hint="choose another path") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UsageError(
                f"too many open files to open {path}",
                hint="raise the limit (`ulimit -n`): an open store takes up to 10",
            ) from error
        raise


def write_all(fd: int, data: bytes | memoryview, path: Path) -> None:
    """Write every byte of `data` at the file's position."""
    view = memoryview(data).cast("B")
    with clear_errors(path):
        observe("write", path)
        while view:
            view = view[os.write(fd, view) :]


def fsync(fd: int, path: Path) -> None:
    """Make what was written to fd survive a power cut."""
    with clear_errors(path):
        observe("fsync", path)
        os.fsync(fd)


def fsync_directory(path: Path) -> None:
    """Make creations and renames in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(fd, path)
    finally:
        os.close(fd)


def publish(path: Path, data: bytes) -> None:
    """Replace a small file: a reader sees the old bytes or the new ones, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with clear_errors(temporary):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data, temporary)
        fsync(fd, temporary)
    finally:
        os.close(fd)
    with clear_errors(path):
        observe("rename", path)
        os.replace(temporary, path)
    fsync_directory(path.parent)


def remove(path: Path) -> None:
    """Delete a file or directory tree; fine if it is not there."""
    with clear_errors(path):
        observe("unlink", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_if_possible(path: Path) -> bool:
    """Delete what is of no use any more; what cannot be deleted is logged and stays. True if it is gone."""
    try:
        remove(path)
    except OSError as error:
        _log.warning("%s is of no use any more but cannot be removed: %s", path, str(error))
        return False
    return True


def make_directory(path: Path) -> None:
    """Make a directory and its parents, so that they survive a power cut. Fine if it is there."""
    with clear_errors(path):
        missing = [place for place in (path, *path.parents) if not place.exists()]
        for place in reversed(missing):
            try:
                place.mkdir(exist_ok=True)
            except NotADirectoryError:
                raise UsageError(
                    f"cannot make {path}: {place.parent} is a file", hint="choose a path inside a directory"
                ) from None
            fsync_directory(place.parent)


def require_space(directory: Path, needed_bytes: int, purpose: str) -> None:
    """Raise DiskFull before starting what cannot end."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise DiskFull(f"{purpose} needs about {needed_bytes:,} bytes in {directory}, {free:,} are free")


class FileWriter:
    """A new file, written front to back through a buffer; `finish` makes it durable. Without that it is rubbish to remove.

    `is_direct`: past the page cache, where the filesystem can: for a file too large to stay there. Copying a GiB into the page
    cache cost 2 s of CPU time where this cost 0.06 (docs/design.md); what is written is not in memory afterwards.
    """

    def __init__(self, path: Path, *, is_direct: bool = False) -> None:
        self.path = path
        self.position = 0
        self._buffer = bytearray()
        self._aligned: np.ndarray | None = None  # the buffer of direct writes, and how full it is
        self._used = 0
        self._fd = -1
        with clear_errors(path):
            path.unlink(missing_ok=True)  # never written over: somebody may have it open, or mapped
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if is_direct and _set_direct(self._fd, True):
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
            write_all(self._fd, view, self.path)

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
        begin = os.lseek(self._fd, 0, os.SEEK_CUR)
        try:
            write_all(self._fd, data.data, self.path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the filesystem took the flag and refuses the write
                raise
            _set_direct(self._fd, False)
            os.lseek(self._fd, begin, os.SEEK_SET)
            write_all(self._fd, data.data, self.path)

    def pad(self, unit: int) -> None:
        """Append zeros up to a multiple of `unit` bytes."""
        self.write(bytes(-self.position % unit))

    def rewrite(self, position: int, data: bytes) -> None:
        """Overwrite bytes already written (a header that was kept for the end)."""
        self._drain()
        with clear_errors(self.path):
            observe("write", self.path)
            done = os.pwrite(self._fd, data, position)
        assert done == len(data)

    def read(self, position: int, size: int) -> bytes:
        """Bytes already written."""
        self._drain()
        return os.pread(self._fd, size, position)

    def finish(self) -> int:
        """Flush, fsync and close; returns the file's size in bytes."""
        self._drain()
        fsync(self._fd, self.path)
        self.close()
        return self.position

    def flush(self) -> None:
        """Hand everything to the system; no promise about power cuts."""
        self._drain()

    def close(self) -> None:
        """Close without promising anything; `finish` is the good end."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # first: Ctrl-C between the two must not close a number twice
            os.close(fd)

    def _drain(self) -> None:
        if self._aligned is not None:
            self._end_direct()
        if self._buffer:
            data, self._buffer = self._buffer, bytearray()
            write_all(self._fd, memoryview(data), self.path)

    def _end_direct(self) -> None:
        """What is left does not fill whole blocks of the disk: it goes through the page cache, and so does all behind it."""
        assert self._aligned is not None
        rest = self._aligned[: self._used]
        _set_direct(self._fd, False)
        self._aligned = None
        if rest.size:
            write_all(self._fd, rest.data, self.path)

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


def read_exactly(fd: int, size: int, position: int, path: Path) -> bytes:
    """`size` bytes at `position`, or DamagedStore: never fewer, never a signal."""
    pieces = []
    while size:
        piece = os.pread(fd, size, position)
        if not piece:
            raise DamagedStore(f"{path} ends at byte {position:,}, {size:,} bytes too early")
        pieces.append(piece)
        position += len(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class WriterLock:
    """The one writer of a store: an exclusive flock on a file, released by the system when the process dies.

    A fork lets go of its copy: a worker that outlives its parent must not keep the next writer out.
    """

    def __init__(self, path: Path) -> None:
        self._fd = -1
        while self._fd < 0:
            self._acquire(path)
            if not self._is_still_at(path):  # a build that was given up removed it between our open and our lock
                self.release()
        _locks.add(self)
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk: the lock holds, only who holds it stays unsaid
            _log.info("%s: cannot note the writer's process: %s", path, str(error))

    def _acquire(self, path: Path) -> None:
        with clear_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
            self.release()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise WriterLocked(f"{path.parent} is open for writing in process {holder or 'unknown'}") from error
            raise

    def _is_still_at(self, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let another writer in."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # first: Ctrl-C between the two must not close a number twice
            os.close(fd)

    def __del__(self) -> None:
        self.release()


_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    for lock in _locks:
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_fork)


def lock_shared(fd: int) -> None:
    """Mark an open file as being read, so that a writer does not remove it. Filesystems without locks are fine."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOLCK, errno.ENOTSUP, errno.EBADF):
            raise


def remove_unless_read(path: Path) -> bool:
    """Delete a superseded file unless a reader holds it; True if it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return remove_if_possible(path)
    finally:
        os.close(fd)
