"""Everything we do to files: whole writes, atomic publication, and one clear error when the disk is full.

All writing goes through this file (new files through file_writer.py, which uses it; locks are in writer_lock.py), so
that a test can let the N-th write,
fsync or rename fail: `observe` is called with the operation and the path before each one.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore, DiskFull, UsageError
from ngramstore.layout import PAGE_BYTES

_log = logging.getLogger("ngramstore")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, an exhausted quota, a file over the limit."""
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
"""What flock says on a filesystem that has no locks."""
_READ_BYTES = 16 << 20


def _unobserved(operation: str, path: Path) -> None:
    pass


observe: Callable[[str, Path], None] = _unobserved
"""Called before each "write", "truncate", "fsync", "rename", "unlink"; tests replace it to inject failures."""


@contextmanager
def our_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a path into an error of ours, where we know what to do next."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFull):
            raise
        if error.errno in FULL_DISK:
            raise DiskFull(f"no space left while writing {path}: {error.strerror}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"no permission for {path}: {error.strerror}", hint="check the owner and mode of the directory"
            ) from error
        if error.errno in (errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR):  # EEXIST: a link to nothing
            raise UsageError(f"cannot use {path}: {error.strerror}", hint="choose another path") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UsageError(
                f"too many open files to open {path}",
                hint="raise the limit (`ulimit -n`): a store takes up to 10, and one for each file of others that it reads rows from",
            ) from error
        if error.errno is not None and error.filename is None:  # calls on a descriptor do not say which file
            error.filename = str(path)
        raise


def write_all(fd: int, data: bytes | memoryview, path: Path, flags: int = 0) -> None:
    """Write every byte of `data` at the file's position; flags: of the system's pwritev2."""
    view = memoryview(data).cast("B")
    with our_errors(path):
        observe("write", path)
        while view:
            view = view[os.pwritev(fd, [view], -1, flags) if flags else os.write(fd, view) :]


def write_at(fd: int, data: bytes | memoryview, position: int, path: Path) -> None:
    """Write every byte of `data` at a position; the file's own stays."""
    view = memoryview(data).cast("B")
    with our_errors(path):
        observe("write", path)
        while view:
            done = os.pwrite(fd, view, position)
            view, position = view[done:], position + done


def truncate(fd: int, size: int, path: Path) -> None:
    """Cut an open file to `size` bytes."""
    with our_errors(path):
        observe("truncate", path)
        os.ftruncate(fd, size)


def fsync(fd: int, path: Path) -> None:
    """Make what was written to fd survive a power cut."""
    with our_errors(path):
        observe("fsync", path)
        if not _is_synced_by_drive(fd):
            os.fsync(fd)


def _is_synced_by_drive(fd: int) -> bool:
    """macOS, whose fsync leaves data in the drive's own cache: True where the file system can empty that, and has."""
    command = getattr(fcntl, "F_FULLFSYNC", None)
    if command is None:
        return False
    try:
        fcntl.fcntl(fd, command)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
            raise
        return False
    return True


def fsync_directory(path: Path) -> None:
    """Make creations and renames in a directory survive a power cut."""
    with our_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(fd, path)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Give a file or directory another name, in the place of a file that has it; durable after `fsync_directory`."""
    with our_errors(target):
        observe("rename", target)
        os.replace(source, target)


def publish(path: Path, data: bytes) -> None:
    """Replace a small file: a reader sees the old bytes or the new ones, also after a power cut."""
    publish_pieces(path, (data,))


def publish_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """As `publish`, for what need not be in memory at once."""
    _publish(path, path.with_name(path.name + ".tmp"), pieces)


def publish_unlocked(path: Path, data: bytes) -> None:
    """As `publish`, where several processes may publish one path at once: each is whole, and the last one stays.

    A killed process leaves its temporary file behind, whose name no other one takes.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        _publish(path, temporary, (data,))
    except BaseException:
        remove_if_possible(temporary)
        raise


def _publish(path: Path, temporary: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with our_errors(temporary):
        temporary.unlink(missing_ok=True)  # what a killed process left, or a link that leads out of here
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for piece in pieces:
            write_all(fd, piece, temporary)
        fsync(fd, temporary)
    finally:
        os.close(fd)
    rename(temporary, path)
    fsync_directory(path.parent)


def remove(path: Path, *, only: re.Pattern[str] | None = None) -> None:
    """Delete a file or directory tree; fine if it is not there.

    only: of a directory that others may use as well, the files with such names, and itself if it is empty then.
    """
    with our_errors(path):
        if only is not None:
            if path.is_symlink() or not path.is_dir():
                return
            for name in sorted(os.listdir(path)):
                if only.fullmatch(name) and not (path / name).is_dir():
                    remove(path / name)
            if not os.listdir(path):
                observe("unlink", path)
                path.rmdir()  # and nothing that came meanwhile
            return
        observe("unlink", path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_if_possible(path: Path, *, only: re.Pattern[str] | None = None) -> bool:
    """Delete what is of no use any more, as `remove`; what cannot be deleted is logged and stays. True if it is gone."""
    try:
        remove(path, only=only)
    except (OSError, UsageError) as error:
        _log.warning("%s is of no use any more but cannot be removed: %s", path, str(error))
        return False
    return True


def make_directory(path: Path) -> None:
    """Make a directory and its parents, so that they survive a power cut. Fine if it is there."""
    with our_errors(path):
        if path.exists() and not path.is_dir():
            raise UsageError(f"cannot make {path}: it is a file", hint="choose another path")
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


def read_exactly(fd: int, size: int, position: int, path: Path) -> bytes:
    """`size` bytes at `position`, or DamagedStore: never fewer, never a signal."""
    pieces = []
    while size:
        try:
            piece = os.pread(fd, size, position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise DamagedStore(f"{path}: byte {position:,} cannot be read: {error.strerror}") from error
        if not piece:
            raise DamagedStore(f"{path} ends at byte {position:,}, {size:,} bytes too early")
        pieces.append(piece)
        position += len(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_around_holes(fd: int, size: int, position: int) -> tuple[bytearray, list[tuple[int, int]]]:
    """`size` bytes at `position`, fewer where the file ends; zeros in place of pages that cannot be read: (begin, end)
    of each run."""
    data = bytearray()
    holes: list[tuple[int, int]] = []
    while left := size - len(data):
        at = position + len(data)
        try:
            piece = os.pread(fd, min(left, _READ_BYTES), at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            piece = bytes(min(left, PAGE_BYTES - at % PAGE_BYTES))
            begin = holes.pop()[0] if holes and holes[-1][1] == at else at
            holes.append((begin, at + len(piece)))
        if not piece:
            break
        data += piece
    return data, holes


def read_into(fd: int, out_B: np.ndarray, position: int, path: Path) -> None:
    """Fill out (B,) u8 from `position` on, in pieces, or DamagedStore."""
    for begin in range(0, len(out_B), _READ_BYTES):
        piece = out_B[begin : begin + _READ_BYTES]
        piece[:] = np.frombuffer(read_exactly(fd, len(piece), position + begin, path), np.uint8)


class OwnsFd:
    """Base of what holds one open descriptor, `fd`, and lets go of it once: on `close`, or with its last user."""

    fd = -1

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1  # first: Ctrl-C between the two must not close a number twice
            os.close(fd)

    def __del__(self) -> None:
        if os is not None:  # as the interpreter ends modules may go first; then the system closes the file
            self.close()
