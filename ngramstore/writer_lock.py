"""One writer at a time: a lock on a file that the system lets go of when its process dies."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from pathlib import Path

from ngramstore.errors import StaleStore, WriterLocked
from ngramstore.files import NO_LOCKS, our_errors, remove_if_possible

_log = logging.getLogger("ngramstore")


class WriterLock:
    """The one writer of a store: an exclusive flock on a file, released by the system when the process dies.

    A fork lets go of its copy: a worker that outlives its parent must not keep the next writer out. A link is refused: the file
    is written to, and a store may come from somebody else.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1
        while self._fd < 0:
            self._acquire(path)
            if not self.is_in_place:  # a build that was given up removed it between our open and our lock
                self.let_go()
        _locks.add(self)
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk: the lock holds, only who holds it stays unsaid
            _log.info("%s: cannot note the writer's process: %s", path, str(error))

    def _acquire(self, path: Path) -> None:
        with our_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
            self.let_go()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                by = f"process {holder}, or if that has ended by a verify" if holder else "a writer, or by a verify"
                raise WriterLocked(f"{path.parent} is held by {by}") from error
            raise

    def require_in_place(self) -> None:
        """StaleStore where another file is at the path by now, or none: we hold the lock of a directory that is
        somewhere else."""
        if not self.is_in_place:
            raise StaleStore(
                f"{self._path.parent} is not the directory any more that this writer locked: it was moved, removed or replaced",
                hint="open it again where it is now; changes that are not published yet are in its journal",
            )

    @property
    def is_in_place(self) -> bool:
        """Whether the file that we hold is the one at the path."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Let another writer in. Our process is not named any more: who holds the lock next may be a reader, who writes
        nothing."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as error:
                _log.info("the lock's file keeps a process that let go of it: %s", str(error))
            finally:
                self.let_go()

    def remove(self) -> None:
        """Let another writer in, and take the file away, if it is still the one that we hold."""
        if self._fd >= 0 and self.is_in_place:
            remove_if_possible(self._path)  # while it is held: who opened it meanwhile sees that it is gone
        self.release()

    def let_go(self) -> None:
        """Close the file, which others may hold."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1  # first: Ctrl-C between the two must not close a number twice
            os.close(fd)

    def __del__(self) -> None:
        if os is not None:  # as in OwnsFd
            self.release()


def lock_where_possible(path: Path) -> WriterLock | None:
    """A WriterLock; None, and no file, on a filesystem without locks."""
    try:
        return WriterLock(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        remove_if_possible(path)
        return None


_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    for lock in _locks:
        lock.let_go()  # the parent still holds it


os.register_at_fork(after_in_child=_let_go_in_fork)
