"""A folder that is written beside its place and renamed there once it is whole; what killed processes left of such goes.

Each is held by an flock on the folder itself, which moves with it, and which the system lets go of when its process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.files import make_directory, remove_if_possible


@contextmanager
def folder_beside(entry: Path) -> Iterator[Path]:
    """A new folder, to be renamed to `entry`; it is removed where that does not happen. Others of `entry` that nobody holds go first."""
    for left in entry.parent.glob(f"{entry.name}.tmp-*"):
        _remove_unless_held(left)
    folder, fd = _new_folder(entry)
    try:
        yield folder
    finally:
        remove_if_possible(folder)
        os.close(fd)


def _new_folder(entry: Path) -> tuple[Path, int]:
    while True:
        folder = entry.with_name(f"{entry.name}.tmp-{secrets.token_hex(8)}")
        try:
            make_directory(folder)
            fd = _open_folder(folder)
        except BaseException:
            remove_if_possible(folder)
            raise
        if fd is not None:
            if _is_locked(fd) is not False and _is_at(folder, fd):  # else another process took it for a left-over
                return folder, fd
            os.close(fd)


def _remove_unless_held(folder: Path) -> None:
    fd = _open_folder(folder)
    if fd is not None:
        if _is_locked(fd):
            remove_if_possible(folder)
        os.close(fd)


def _open_folder(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _is_locked(fd: int) -> bool | None:
    """We hold the folder; False: somebody else does; None: the filesystem has no such locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is_at(folder: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(folder))
    except FileNotFoundError:
        return False
