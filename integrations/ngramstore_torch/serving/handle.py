"""A store as a module holds it: shared by copies, opened again after a fork or a pickle, with worker threads for look-ups.

Copies of a module (`copy.deepcopy`) share one handle, and so one row cache: rows are constants. A process that inherited
the handle by fork (DataLoader workers) opens the same path for itself on first use and checks the store's identity; a
pickled handle does the same. Workers are daemon threads: a store that never answers cannot keep a program from ending.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeAlias

import ngramstore
from ngramstore.errors import UsageError

_Tasks: TypeAlias = "queue.SimpleQueue[Callable[[], None] | None]"
_NUM_THREADS = 2  # one may be stuck in a slow read while the other serves


class StoreHandle:
    """One open store for this process. Threads: any number; a signal's handler may look up in the middle of a call."""

    _reopening = threading.RLock()
    """Held while a process opens what it inherited: one of its threads does, the others wait."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._queue: _Tasks | None = None

    def store(self) -> Any:
        """The open store; in a forked child it is opened there. Raises StaleStore, NotAStore, .. as opening does."""
        if os.getpid() != self._pid:
            with StoreHandle._reopening:
                if os.getpid() != self._pid:
                    self._reopen()
        return self._store

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` on a worker thread; it must keep its own errors."""
        self.store()  # a fork has no threads: notice it
        with self._lock:
            tasks = self._queue
            if tasks is None:
                tasks = self._queue = self._with_workers(queue.SimpleQueue())
        tasks.put(work)

    def _with_workers(self, tasks: _Tasks) -> _Tasks:
        """The queue, with one thread at least that works it off. UsageError where the system gives none."""
        weakref.finalize(self, _stop, tasks)
        for number in range(_NUM_THREADS):
            name = f"ngramstore-lookup-{number}"
            try:
                threading.Thread(target=_work, args=(tasks,), name=name, daemon=True).start()
            except RuntimeError as error:
                if number == 0:
                    raise UsageError(
                        f"no thread for look-ups: {error}",
                        hint="raise the limit of threads (`ulimit -u`), or look up without tickets and timeout_s",
                    ) from error
        return tasks

    def _reopen(self) -> None:
        inherited = self._store
        self._lock = threading.RLock()  # the parent's may have been held when it forked
        self._queue = None
        options = inherited.options.for_copy(inherited.identity)
        self._store = ngramstore.open(inherited.path, **asdict(options))
        self._pid = os.getpid()  # last: whoever sees it takes the store without a lock

    def __repr__(self) -> str:
        return repr(self._store)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreHandle:
        return self

    def __copy__(self) -> StoreHandle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreHandle, (self.store(),)


def _renew_lock() -> None:
    """In a forked child: a thread of the parent may have held it, and is not there to let it go."""
    StoreHandle._reopening = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _work(tasks: _Tasks) -> None:
    while (work := tasks.get()) is not None:
        work()
        del work  # or its buffers would live until the next task


def _stop(tasks: _Tasks) -> None:
    for _ in range(_NUM_THREADS):
        tasks.put(None)
