"""Files that somebody reads are marked, so that a writer does not remove them."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from ngramstore.files import NO_LOCKS, remove_if_possible

_log = logging.getLogger("ngramstore")


def lock_shared(fd: int) -> None:
    """Mark an open file as being read, so that a writer does not remove it. Filesystems without locks are fine."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EBADF, *NO_LOCKS):
            raise


def unlock(fd: int) -> None:
    """Take the mark of `lock_shared` back, from all duplicates of the descriptor too: a map holds one. Not in a fork,
    where it is the parent's."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in (errno.EBADF, *NO_LOCKS):
            raise


def remove_unless_read(path: Path) -> None:
    """Delete a superseded file unless a reader holds it, or may hold it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for a writer
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("%s is of no use any more but cannot be opened to see who reads it: %s", path, str(error))
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass  # a reader holds it, or nobody can tell
    else:
        remove_if_possible(path)
    finally:
        os.close(fd)
