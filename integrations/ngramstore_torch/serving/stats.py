"""What serving costs: calls, positions, how many were found, and how long callers waited."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any

import numpy as np

_KEPT_WAITS = 4096
_COUNTERS = (
    *("calls", "positions", "found", "tickets", "tickets_used", "tickets_outdated", "timeouts"),
    *("candidate_calls", "candidate_rows", "candidates_skipped", "candidate_errors"),
)
_ALIVE: weakref.WeakSet[ServingStats] = weakref.WeakSet()


class ServingStats:
    """Counters of one module since it was made or `reset`. Waits are percentiles of the last 4,096 calls.

    calls, positions (tokens looked up), found (of them with rows from the store); wait: what callers waited for rows.
    tickets begun by `prefetch`, tickets_used, tickets_outdated (the store was refreshed since, or the ticket was
    used before, not done when the process forked, or of a store open for changes: looked up again), timeouts. candidate_calls
    and candidate_rows of `prefetch_candidates`, candidates_skipped (one was still under way), candidate_errors and the
    last one's text.

    Threads: any number may add; adding takes a lock for well under a microsecond. Fork: the child counts on by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may look up, or ask, in the middle of a call
        _ALIVE.add(self)
        self.reset()

    def reset(self) -> None:
        """All counters to zero, the clock starts now."""
        with self._lock:
            self._waits = [0] * _KEPT_WAITS  # a list: an array takes twice as long to write one number
            self._since = time.perf_counter()
            self.calls = self.positions = self.found = self.wait_ns = 0
            self.tickets = self.tickets_used = self.tickets_outdated = self.timeouts = 0
            self.candidate_calls = self.candidate_rows = self.candidates_skipped = self.candidate_errors = 0
            self.last_candidate_error = ""

    def add_call(self, positions: int, found: int, wait_ns: int) -> None:
        """One answered call: its positions, those with an n-gram, and how long the caller waited for its rows."""
        with self._lock:
            self._waits[self.calls % _KEPT_WAITS] = wait_ns
            self.calls += 1
            self.positions += positions
            self.found += found
            self.wait_ns += wait_ns

    def count(self, **more: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, value in more.items():
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values; times in microseconds, rates per second since the last reset."""
        with self._lock:
            waits = self._waits[: min(self.calls, _KEPT_WAITS)]
            seconds = time.perf_counter() - self._since
            counted = {name: getattr(self, name) for name in _COUNTERS}
            wait_ns, last_error = self.wait_ns, self.last_candidate_error
        p50, p99 = np.percentile(np.array(waits) / 1e3, (50, 99)).tolist() if waits else (0.0, 0.0)
        positions, found = counted["positions"], counted["found"]
        return {
            **counted,
            "found_share": found / positions if positions else 0.0,
            "positions_per_s": positions / seconds if seconds > 0 else 0.0,
            "wait_p50_us": p50,
            "wait_p99_us": p99,
            "wait_total_s": wait_ns / 1e9,
            "last_candidate_error": last_error,
        }


def _renew_locks() -> None:
    """In a forked child: a thread of the parent may have held them, and is not there to let them go."""
    for stats in _ALIVE:
        stats._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)
