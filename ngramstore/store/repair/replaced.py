"""Rows that changes have replaced, by ID, in a file: what the repair of a row-addressed store puts over its base.

Shapes: M rows of a call, B bytes of an encoded row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ngramstore.files import fsync, our_errors, write_all
from ngramstore.store.layers.merge import is_in


class Replaced:
    """Rows by ID, later ones first, held in an unnamed file: the overlay of a row-addressed store may be large."""

    def __init__(self, directory: Path, row_bytes: int) -> None:
        self._directory = directory
        with our_errors(directory):
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - lives as long as this object
        self._row_bytes = row_bytes
        self._layers: list[tuple[np.ndarray, int]] = []
        self._num_rows = 0
        self._is_synced = True

    def add(self, ids_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Rows of M IDs; they go before all rows added earlier."""
        if len(ids_M) == 0:
            return
        order_M = np.argsort(ids_M, kind="stable")  # those of an index that lies do not ascend
        write_all(self._file.fileno(), np.ascontiguousarray(rows_MB[order_M]).data, self._directory)
        self._is_synced = False
        self._layers.append((ids_M[order_M], self._num_rows))
        self._num_rows += len(ids_M)

    def into(self, ids_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Overwrite those of M rows that were replaced."""
        if self._num_rows == 0:
            return
        if not self._is_synced:  # only that tells of writes that failed
            fsync(self._file.fileno(), self._directory)
            self._is_synced = True
        held = np.memmap(self._file, np.uint8, "r", shape=(self._num_rows, self._row_bytes))
        for ids, first in self._layers:
            at = np.flatnonzero(is_in(ids_M, ids))
            if len(at):
                rows_MB[at] = held[first + np.searchsorted(ids, ids_M[at])]
