"""What a handle has done since it was opened, counted exactly from any number of threads."""

from __future__ import annotations

import threading

import numpy as np


class Counts:
    """What a handle has done since it was opened: exact. `shared` is added to by kernels, the rest under one lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may ask for the numbers in the middle of a call
        self.shared = np.zeros(5, np.int64)
        """Calls, positions, found, rows and bytes read of look-ups that one kernel served."""
        self.calls = 0
        self.positions = 0
        self.found = 0
        self.rows_read = 0
        self.bytes_read = 0

    def add_call(self, positions: int, found: int) -> None:
        """One look-up call of so many positions, of which so many were found."""
        with self._lock:
            self.calls += 1
            self.positions += positions
            self.found += found

    def add_read(self, rows: int, num_bytes: int) -> None:
        """Rows read from files."""
        with self._lock:
            self.rows_read += rows
            self.bytes_read += num_bytes

    def as_dict(self) -> dict[str, int]:
        """For `stats`."""
        with self._lock:
            calls, positions, found, rows_read, bytes_read = self.shared.tolist()
            return {
                "calls": self.calls + calls,
                "positions": self.positions + positions,
                "found": self.found + found,
                "rows_read": self.rows_read + rows_read,
                "bytes_read": self.bytes_read + bytes_read,
            }
