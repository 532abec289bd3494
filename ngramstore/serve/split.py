"""Large look-ups over several threads: parts of one batch side by side, each answered as if it were all there is.

Kernels hold no GIL and the row cache takes many threads, so a part needs nothing but its own slice of the caller's arrays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

LEAST_PART = 2048
"""Positions that are worth a hand-over to another thread, which takes some 50 us."""
Result = TypeVar("Result")


class Workers:
    """The threads that a handle splits its large look-ups over, beside each caller's own. Started when first needed."""

    def __init__(self, threads: int) -> None:
        self._threads = int(threads)
        self._lock = threading.RLock()  # as in `Counts`
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def parts(self, count: int) -> list[slice]:
        """Positions 0 .. count in parts of about equal length: one, where more would not pay."""
        number = self._number(count)
        return [slice(count * i // number, count * (i + 1) // number) for i in range(number)]

    def splits(self, count: int) -> bool:
        """Whether `parts` would be more than one."""
        return self._number(count) > 1

    def _number(self, count: int) -> int:
        return max(1, min(self._threads, count // LEAST_PART))

    def run(self, work: Callable[[slice], Result], parts: list[slice]) -> list[Result]:
        """What `work` gives for each part, in order. Returns, or raises the first part's error, when nothing runs any more.

        The caller takes parts too, all that nobody else is free for. Ctrl-C is raised when nothing runs any more, wherever it
        comes, and if it comes again while the caller waits. (Two of them, each in the few instructions before a wait
        begins, are not held back; one inside the standard library's hand-over to its threads can leave a lock of theirs taken.)
        """
        share = _Share(work, parts)
        try:
            try:
                if len(parts) > 1:
                    self._ask_for_help(share, len(parts) - 1)
                share.work_on()
            finally:
                share.end()  # parts write into the caller's arrays
        except BaseException:
            share.end()  # Ctrl-C may come on the way into the first one
            raise
        results, error = share.take()
        try:
            if error is not None:
                raise error
            return results
        finally:
            del error  # else it and its traceback, which knows the handle, would hold each other

    def close(self) -> None:
        """Let the threads end with what they are at."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def _ask_for_help(self, share: _Share[Any], number: int) -> None:
        with self._lock:
            if self._pool is None and not self._closed:
                self._pool = ThreadPoolExecutor(self._threads - 1, "ngramstore-look-up")
            pool = self._pool
        if pool is not None:
            try:
                for _ in range(number):
                    pool.submit(share.help)
            except RuntimeError:  # closed meanwhile, or no more threads to be had: the caller does the rest
                pass


class _Share(Generic[Result]):
    """The parts of one call, claimed in order by whoever is free.

    Plain locks: `with` takes them and is sure to give them back, wherever Ctrl-C comes. A Condition takes its lock in Python.
    """

    def __init__(self, work: Callable[[slice], Result], parts: list[slice]) -> None:
        self._work: Callable[[slice], Result] | None = work
        self._parts = parts
        self._results: list[Any] = [None] * len(parts)
        self._errors: dict[int, BaseException] = {}
        self._claimed = 0
        self._helpers = 0  # at work; the caller, who alone can be interrupted, is not counted
        self._lock = threading.Lock()
        self._helped = threading.Lock()  # taken by the first helper to come, given back by the last to leave

    def help(self) -> None:
        """For other threads: as `work_on`, counted."""
        with self._lock:
            if self._work is None:
                return
            if self._helpers == 0:
                self._helped.acquire()
            self._helpers += 1
        try:
            self.work_on()
        finally:
            with self._lock:
                self._helpers -= 1
                if self._helpers == 0:
                    self._helped.release()

    def work_on(self) -> None:
        """Work on parts until none is left, or one has failed."""
        while True:
            with self._lock:
                work, number = self._work, self._claimed
                if work is None or number == len(self._parts) or self._errors:
                    return
                self._claimed += 1
            result = error = None
            try:
                result = work(self._parts[number])
            except BaseException as caught:
                error = caught
            del work  # whoever waits may close what it knows
            with self._lock:
                self._results[number] = result
                if error is not None:
                    self._errors[number] = error
            del result, error

    def end(self) -> None:
        """Nobody begins another part, and nobody is at one any more. For the caller; what a signal raises comes afterwards."""
        raised: BaseException | None = None
        while True:
            try:
                with self._lock:
                    self._work = None
                with self._helped:
                    break
            except BaseException as caught:
                raised = caught
        if raised is not None:
            try:
                raise raised
            finally:
                del raised  # it knows this frame

    def take(self) -> tuple[list[Result], BaseException | None]:
        """The results, and the error of the first part that had one. The share keeps neither."""
        (results, self._results), (errors, self._errors) = (self._results, []), (self._errors, {})
        return results, errors[min(errors)] if errors else None
