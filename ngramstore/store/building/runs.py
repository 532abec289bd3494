"""External sort of a build: rows come in any order, leave in ID order, within a memory budget.

Rows collect in memory (`held.py`). When that is full they are sorted and spilled as a run; at the end the runs are read side
by side, one ID range at a time, each range small enough to sort in memory.

Shapes: M rows, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.store.building.held import HeldRows, sorting_order
from ngramstore.store.layers.scattered import ScatteredBatch, ScatteredRows, addresses_of
from ngramstore.store.layers.stages import Stages
from ngramstore.windows import NgramArrays

BATCH_ROWS = 1 << 14  # of sorted_batches: ids, tokens and addresses in the cache, whole chunks for the rows writer
_SPILL_BYTES = 4 << 20
_TOKEN_ROWS = 1 << 16  # of token_batches
_MIN_HELD_ROWS = 64
_HELD_SHARE = 0.5  # of the budget: the rest is for packing, and for what callers hold while they add

TokensAt = Callable[[np.ndarray], NgramArrays]


class RunSorter:
    """Collects batches, gives them back sorted by ID; rows of equal IDs keep the order they came in."""

    def __init__(
        self, directory: Path, row_bytes: int, max_n: int, memory_bytes: int, stages: Stages | None = None
    ) -> None:
        self._directory = directory
        self._row_bytes = row_bytes
        self._max_n = max_n
        capacity = max(_MIN_HELD_ROWS, int(memory_bytes * _HELD_SHARE) // HeldRows.bytes_of_row(row_bytes, max_n))
        try:
            self._held: HeldRows | None = HeldRows(capacity, row_bytes, max_n)
        except MemoryError as error:
            raise UsageError(f"memory_bytes is {memory_bytes:,}: {error}", hint="give less than is free") from error
        self._capacity = capacity
        self._runs: list[_Run] = []
        self._stages = stages or Stages()
        self.num_rows = 0
        self.num_copied = 0
        """Rows that had to be copied, because their arrays could have changed."""

    def spilled_bytes(self, num_rows: int) -> int:
        """Disk that the runs of `num_rows` rows take, until the build ends."""
        row = np.dtype(np.uint64).itemsize + self._row_bytes + 4 * self._max_n + 1
        return num_rows * row if num_rows >= self._capacity else 0

    def add(
        self, ids_M: np.ndarray, rows_MB: np.ndarray, tokens_MN: np.ndarray, lengths_M: np.ndarray, *, is_ours: bool
    ) -> None:
        """Take M more rows. Everything but the rows is copied; rows are where they can change, unless `is_ours` says that
        nobody else has the array."""
        assert self._held is not None, "sealed"
        at = 0
        while at < len(ids_M):
            part = slice(at, at + self._capacity - len(self._held))
            with self._stages.timed("hold"):
                self.num_copied += self._held.add(
                    ids_M[part], rows_MB[part], tokens_MN[part], lengths_M[part], is_ours=is_ours
                )
            at += len(ids_M[part])
            self.num_rows += len(ids_M[part])
            if len(self._held) == self._capacity:
                self._spill()

    def _spill(self) -> None:
        assert self._held is not None
        with self._stages.timed("spill"):
            stem = self._directory / f"run-{len(self._runs):05d}"
            self._runs.append(_Run.write(stem, self._held.sorted_batches(BATCH_ROWS)))
            self._held.clear()

    def seal(self) -> None:
        """No more rows will come. With more than one run, frees what was held."""
        assert self._held is not None
        if self._runs:
            if len(self._held):
                self._spill()
            self._held = None
            return
        with self._stages.timed("sort"):
            self._held.sort()

    def _ranges(self) -> list[tuple[int, int]]:
        """ID ranges [low, high] that cover all runs, each with at most half of what is held at once (unless one ID has more)."""
        total = sum(len(run.ids) for run in self._runs)
        num_ranges = -(-2 * total // self._capacity)
        sample = np.sort(np.concatenate([run.ids[:: max(1, len(run.ids) // (16 * num_ranges))] for run in self._runs]))
        cuts = np.unique(sample[np.linspace(0, len(sample) - 1, num_ranges + 1).astype(np.int64)[1:-1]])
        bounds = [0, *(int(cut) for cut in cuts), 1 << 64]
        return [(low, high - 1) for low, high in itertools.pairwise(bounds) if high > low]

    def sorted_ids(self) -> Iterator[tuple[np.ndarray, TokensAt]]:
        """IDs in order, a range at a time, and a function from places in that range to their tokens and lengths."""
        if self._held is not None:
            if len(self._held):
                yield self._held.sorted_ids(), self._held.sorted_tokens
            return
        for low, high in self._ranges():
            ids, order, parts = self._range_ids(low, high)
            yield ids[order], lambda at, order=order, parts=parts: self._range_tokens(order[at], parts)  # type: ignore[misc]

    def sorted_batches(self) -> Iterator[ScatteredBatch]:
        """All rows in order, some thousands at a time."""
        if self._held is not None:
            yield from self._held.sorted_batches(BATCH_ROWS)
            return
        for low, high in self._ranges():
            with self._stages.timed("read runs"):
                _, order, parts = self._range_ids(low, high)
                pieces = [run.read(first, last) for run, first, last in parts]
                ids, tokens, lengths = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 2, 3))
                addresses = np.concatenate([addresses_of(piece[1]) for piece in pieces])
                owners = [piece[1] for piece in pieces]
            for at in range(0, len(order), BATCH_ROWS):
                some = order[at : at + BATCH_ROWS]
                rows = ScatteredRows(addresses[some], self._row_bytes, owners)
                yield ScatteredBatch(ids[some], rows, tokens[some], lengths[some])

    def token_batches(self) -> Iterator[NgramArrays]:
        """All n-grams in no particular order: tokens (M, N) u32, lengths (M,) u8."""
        columns = [self._held.tokens_and_lengths()] if self._held is not None else []
        columns += [(run.tokens, run.lengths) for run in self._runs]
        for tokens, lengths in columns:
            for at in range(0, len(lengths), _TOKEN_ROWS):
                yield tokens[at : at + _TOKEN_ROWS], lengths[at : at + _TOKEN_ROWS]

    def _range_ids(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, list[tuple[_Run, int, int]]]:
        parts = []
        for run in self._runs:
            first = int(np.searchsorted(run.ids, np.uint64(low)))
            last = int(np.searchsorted(run.ids, np.uint64(high), side="right"))
            parts.append((run, first, last))
        ids = np.concatenate([run.ids[first:last] for run, first, last in parts])
        return ids, sorting_order(ids), parts

    @staticmethod
    def _range_tokens(at_M: np.ndarray, parts: list[tuple[_Run, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and lengths of M places in all parts, one behind the other; of each run at once, in the order of its file."""
        starts = np.cumsum([0, *(last - first for _, first, last in parts)])
        order_M = np.argsort(at_M)
        cuts = np.searchsorted(at_M[order_M], starts)
        tokens_MN = np.empty((len(at_M), parts[0][0].tokens.shape[1]), np.uint32)
        lengths_M = np.empty(len(at_M), np.uint8)
        for number, (run, first, _) in enumerate(parts):
            here = order_M[cuts[number] : cuts[number + 1]]
            rows = at_M[here] - starts[number] + first
            tokens_MN[here], lengths_M[here] = run.tokens[rows], run.lengths[rows]
        return tokens_MN, lengths_M


class _Run:
    """A sorted run on disk: one plain file per column, mapped back."""

    def __init__(self, stem: Path, num_rows: int, row_bytes: int, max_n: int) -> None:
        self._rows_path = stem.with_suffix(".rows")
        self._row_bytes = row_bytes
        self.ids = np.memmap(stem.with_suffix(".ids"), np.uint64, "r", shape=(num_rows,))
        self.tokens = np.memmap(stem.with_suffix(".tokens"), np.uint32, "r", shape=(num_rows, max_n))
        self.lengths = np.memmap(stem.with_suffix(".lengths"), np.uint8, "r", shape=(num_rows,))

    @classmethod
    def write(cls, stem: Path, batches: Iterator[ScatteredBatch]) -> _Run:
        """Spill sorted batches. A build that dies starts anew; files are synced since only that tells of writes that failed later,
        and rows read back wrong would be stored under good checksums."""
        columns = {name: FileWriter(stem.with_suffix(f".{name}")) for name in ("ids", "rows", "tokens", "lengths")}
        num_rows, row_bytes, max_n = 0, 0, 0
        gathered = np.empty(0, np.uint8)
        try:
            for batch in batches:
                row_bytes, max_n = batch.rows.row_bytes, batch.tokens.shape[1]
                step = max(1, _SPILL_BYTES // row_bytes)
                if not gathered.size:
                    gathered = np.empty(min(step, len(batch)) * row_bytes, np.uint8)
                columns["ids"].write(batch.ids)
                for at in range(0, len(batch), gathered.size // row_bytes):
                    part = batch.rows[at : at + gathered.size // row_bytes]
                    columns["rows"].write(part.copied(gathered).reshape(-1))
                columns["tokens"].write(batch.tokens.reshape(-1))
                columns["lengths"].write(batch.lengths)
                num_rows += len(batch)
            for writer in columns.values():
                writer.finish()
        finally:
            for writer in columns.values():
                writer.close()
        return cls(stem, num_rows, row_bytes, max_n)

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """IDs, rows, tokens, lengths of rows first .. last, read (not mapped), so that what is held in memory is what was
        asked for."""
        rows = np.fromfile(
            self._rows_path, np.uint8, count=(last - first) * self._row_bytes, offset=first * self._row_bytes
        ).reshape(last - first, self._row_bytes)
        part = slice(first, last)
        return np.array(self.ids[part]), rows, np.array(self.tokens[part]), np.array(self.lengths[part])
