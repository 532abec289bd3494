"""External sort of a build: rows come in any order, leave in ID order, within a memory budget.

Rows collect in one preallocated buffer. A full buffer is sorted and spilled as a run; at the end the runs are read side by
side, one ID range at a time, each range small enough to sort in memory.

Shapes: M rows, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ngramstore.files import FileWriter
from ngramstore.store.layer import Batch

_GATHER_BYTES = 16 << 20
_MIN_BUFFER_ROWS = 64


class RunSorter:
    """Collects batches, gives them back sorted by ID; rows of equal IDs keep the order they came in."""

    def __init__(self, directory: Path, row_bytes: int, max_n: int, memory_bytes: int) -> None:
        self._directory = directory
        self._row_bytes = row_bytes
        self._max_n = max_n
        per_row = row_bytes + 4 * max_n + 9
        self._capacity = max(_MIN_BUFFER_ROWS, int(memory_bytes * 0.5) // per_row)
        self._buffer: Batch | None = None
        self._used = 0
        self._runs: list[_Run] = []
        self.num_rows = 0

    def add(self, batch: Batch) -> None:
        """Take M more rows."""
        at = 0
        while at < len(batch):
            if self._buffer is None:
                self._buffer = self._empty(self._capacity)  # untouched pages cost nothing
            count = min(len(batch) - at, self._capacity - self._used)
            to, source = slice(self._used, self._used + count), slice(at, at + count)
            self._buffer.ids[to] = batch.ids[source]
            self._buffer.rows[to] = batch.rows[source]
            self._buffer.tokens[to] = 0
            self._buffer.tokens[to, : batch.tokens.shape[1]] = batch.tokens[source]
            self._buffer.lengths[to] = batch.lengths[source]
            self._used += count
            self.num_rows += count
            at += count
            if self._used == self._capacity:
                self._spill()

    def _empty(self, count: int) -> Batch:
        return Batch(
            np.empty(count, np.uint64),
            np.empty((count, self._row_bytes), np.uint8),
            np.empty((count, self._max_n), np.uint32),
            np.empty(count, np.uint8),
        )

    def _spill(self) -> None:
        assert self._buffer is not None
        self._runs.append(
            _Run.write(self._directory / f"run-{len(self._runs):05d}", self._in_order(self._buffer, self._used))
        )
        self._used = 0

    def _in_order(self, buffer: Batch, used: int) -> Iterator[Batch]:
        order = np.argsort(buffer.ids[:used], kind="stable")
        step = max(1, _GATHER_BYTES // self._row_bytes)
        for at in range(0, used, step):
            yield buffer.take(order[at : at + step])

    def seal(self) -> None:
        """No more rows will come. With more than one run, frees the buffer."""
        if self._runs and self._used:
            self._spill()
        if self._runs:
            self._buffer = None

    def _ranges(self) -> list[tuple[int, int]]:
        """ID ranges [low, high] that cover all runs, each with at most half a buffer of rows (unless one ID has more)."""
        total = sum(len(run.ids) for run in self._runs)
        num_ranges = -(-2 * total // self._capacity)
        sample = np.sort(np.concatenate([run.ids[:: max(1, len(run.ids) // (16 * num_ranges))] for run in self._runs]))
        cuts = np.unique(sample[np.linspace(0, len(sample) - 1, num_ranges + 1).astype(np.int64)[1:-1]])
        bounds = [0, *(int(cut) for cut in cuts), 1 << 64]
        return [(low, high - 1) for low, high in itertools.pairwise(bounds) if high > low]

    def sorted_ids(self) -> Iterator[tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]]]:
        """IDs in order, a range at a time, and a function from places in that range to their tokens and lengths."""
        if not self._runs:
            if self._buffer is not None:
                buffer, used = self._buffer, self._used
                order = np.argsort(buffer.ids[:used], kind="stable")
                yield buffer.ids[:used][order], lambda at: (buffer.tokens[order[at]], buffer.lengths[order[at]])
            return
        for low, high in self._ranges():
            ids, order, parts = self._range_ids(low, high)
            yield ids[order], lambda at, order=order, parts=parts: self._range_tokens(order[at], parts)  # type: ignore[misc]

    def sorted_batches(self) -> Iterator[Batch]:
        """All rows in order, a batch of some megabytes (or one range) at a time."""
        if not self._runs:
            if self._buffer is not None:
                yield from self._in_order(self._buffer, self._used)
            return
        for low, high in self._ranges():
            _, order, parts = self._range_ids(low, high)
            joined = Batch.join([run.read(first, last) for run, first, last in parts])
            step = max(1, _GATHER_BYTES // self._row_bytes)
            for at in range(0, len(order), step):
                yield joined.take(order[at : at + step])

    def token_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All n-grams in no particular order: tokens (M, N) u32, lengths (M,) u8."""
        step = 1 << 16
        if not self._runs and self._buffer is not None:
            for at in range(0, self._used, step):
                yield (
                    self._buffer.tokens[at : min(self._used, at + step)],
                    self._buffer.lengths[at : min(self._used, at + step)],
                )
        for run in self._runs:
            for at in range(0, len(run.ids), step):
                yield run.tokens[at : at + step], run.lengths[at : at + step]

    def _range_ids(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, list[tuple[_Run, int, int]]]:
        parts = []
        for run in self._runs:
            first = int(np.searchsorted(run.ids, np.uint64(low)))
            last = int(np.searchsorted(run.ids, np.uint64(high), side="right"))
            parts.append((run, first, last))
        ids = np.concatenate([run.ids[first:last] for run, first, last in parts])
        return ids, np.argsort(ids, kind="stable"), parts

    @staticmethod
    def _range_tokens(at: np.ndarray, parts: list[tuple[_Run, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        starts = np.cumsum([0, *(last - first for _, first, last in parts)])
        of_part = np.searchsorted(starts, at, side="right") - 1
        places = [
            (parts[part][0], int(parts[part][1] + place - starts[part]))
            for part, place in zip(of_part, at, strict=True)
        ]
        return np.stack([run.tokens[row] for run, row in places]), np.array([run.lengths[row] for run, row in places])


class _Run:
    """A sorted run on disk: one plain file per column, mapped back."""

    def __init__(self, stem: Path, num_rows: int, row_bytes: int, max_n: int) -> None:
        self._rows_path = stem.with_suffix(".rows")
        self._row_bytes = row_bytes
        self.ids = np.memmap(stem.with_suffix(".ids"), np.uint64, "r", shape=(num_rows,))
        self.tokens = np.memmap(stem.with_suffix(".tokens"), np.uint32, "r", shape=(num_rows, max_n))
        self.lengths = np.memmap(stem.with_suffix(".lengths"), np.uint8, "r", shape=(num_rows,))

    @classmethod
    def write(cls, stem: Path, batches: Iterator[Batch]) -> _Run:
        """Spill sorted batches. Not made durable: a build that dies starts anew."""
        columns = {name: FileWriter(stem.with_suffix(f".{name}")) for name in ("ids", "rows", "tokens", "lengths")}
        num_rows, row_bytes, max_n = 0, 0, 0
        try:
            for batch in batches:
                columns["ids"].write(batch.ids)
                columns["rows"].write(batch.rows.reshape(-1))
                columns["tokens"].write(batch.tokens.reshape(-1))
                columns["lengths"].write(batch.lengths)
                num_rows, row_bytes, max_n = num_rows + len(batch), batch.rows.shape[1], batch.tokens.shape[1]
            for writer in columns.values():
                writer.flush()
        finally:
            for writer in columns.values():
                writer.close()
        return cls(stem, num_rows, row_bytes, max_n)

    def read(self, first: int, last: int) -> Batch:
        """Rows first .. last, read (not mapped), so that what is held in memory is what was asked for."""
        rows = np.fromfile(
            self._rows_path, np.uint8, count=(last - first) * self._row_bytes, offset=first * self._row_bytes
        ).reshape(last - first, self._row_bytes)
        part = slice(first, last)
        return Batch(np.array(self.ids[part]), rows, np.array(self.tokens[part]), np.array(self.lengths[part]))
