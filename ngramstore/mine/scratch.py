"""A folder that is written beside its place and renamed there once it is whole; what killed processes left of such goes.

Each is held by an flock on the folder itself, which moves with it, and which the system lets go of when its process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ngramstore.files import make_directory, our_errors, remove_if_possible

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def folder_beside(entry: Path) -> Iterator[Path]:
    """A new folder, to be renamed to `entry`; it is removed where that does not happen. Others of `entry` that nobody
    holds go first."""
    ours = re.compile(re.escape(entry.name) + r"\.tmp-[0-9a-f]{16}")  # and nothing that a user has called so
    for name in os.listdir(entry.parent) if entry.parent.is_dir() else []:
        if ours.fullmatch(name):
            _remove_unless_held(entry.with_name(name))
    folder, fd = _new_folder(entry)
    try:
        yield folder
    finally:
        try:
            remove_if_possible(folder)
        finally:
            os.close(fd)


def _new_folder(entry: Path) -> tuple[Path, int]:
    while True:
        folder, fd = entry.with_name(f"{entry.name}.tmp-{secrets.token_hex(8)}"), -1
        try:
            make_directory(folder)
            with our_errors(folder), suppress(FileNotFoundError):  # another process took it for a left-over
                fd = os.open(folder, _FOLDER)
            if fd >= 0 and _is_locked(fd) is not False and _is_at(folder, fd):
                return folder, fd
        except BaseException:
            if fd >= 0:
                os.close(fd)
            remove_if_possible(folder)
            raise
        if fd >= 0:
            os.close(fd)


def _remove_unless_held(folder: Path) -> None:
    try:
        fd = os.open(folder, _FOLDER)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if _is_locked(fd):
            remove_if_possible(folder)
    finally:
        os.close(fd)


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
