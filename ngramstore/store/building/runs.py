"""External sort of a build: rows come in any order, leave in ID order, within a memory budget.

Rows collect in memory (`held.py`). When that is full they are sorted and spilled as a run; at the end the runs are read side
by side, one ID range at a time, each range small enough to sort in memory (`ranges.py`).

Shapes: M rows, B bytes of an encoded row, N tokens of the longest n-gram (K), R runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore, UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.files import our_errors
from ngramstore.store.building.held import HeldRows, sorting_order
from ngramstore.store.building.ranges import IdRange, id_ranges
from ngramstore.store.layers.scattered import ScatteredBatch, ScatteredRows, addresses_of
from ngramstore.store.layers.stages import Stages
from ngramstore.windows import NgramArrays

BATCH_ROWS = 1 << 14  # of sorted_batches: ids, tokens and addresses in the cache, whole chunks for the rows writer
_SPILL_BYTES = 4 << 20
_TOKEN_ROWS = 1 << 16  # of token_batches
_MIN_HELD_ROWS = 64
_HELD_SHARE = 0.5  # of the budget: the rest is for packing, and for what callers hold while they add

TokensAt = Callable[[np.ndarray], NgramArrays]
Columns = dict[str, tuple[type, tuple[int, ...]]]
"""Of the files of a run: name, and dtype and shape of what one row has there."""


class RunSorter:
    """Collects batches, gives them back sorted by ID; rows of equal IDs keep the order they came in."""

    def __init__(
        self, directory: Path, row_bytes: int, max_n: int, memory_bytes: int, stages: Stages | None = None
    ) -> None:
        self._directory = directory
        self._row_bytes = row_bytes
        self._max_n = max_n
        self._columns: Columns = {
            "ids": (np.uint64, ()),
            "rows": (np.uint8, (row_bytes,)),
            "tokens": (np.uint32, (max_n,)),
            "lengths": (np.uint8, ()),
        }
        capacity = max(_MIN_HELD_ROWS, int(memory_bytes * _HELD_SHARE) // HeldRows.bytes_of_row(row_bytes, max_n))
        try:
            self._held: HeldRows | None = HeldRows(capacity, row_bytes, max_n)
        except MemoryError as error:
            raise UsageError(f"memory_bytes is {memory_bytes:,}: {error}", hint="give less than is free") from error
        self._capacity = capacity
        self._runs: list[_Run] = []
        self._stages = stages or Stages()
        self.is_torn = False
        """Whether an `add_pieces` ended part way: how many of its rows are here is not known."""
        self.num_rows = 0
        self.num_copied = 0
        """Rows that had to be copied, because their arrays could have changed."""

    def spilled_bytes(self, num_rows: int) -> int:
        """Disk that the runs of `num_rows` rows take, until the build ends."""
        row = np.dtype(np.uint64).itemsize + self._row_bytes + 4 * self._max_n + 1
        return num_rows * row if num_rows >= self._capacity else 0

    def add_pieces(
        self,
        ids_M: np.ndarray,
        pieces: list[np.ndarray],
        tokens_MN: np.ndarray,
        lengths_M: np.ndarray,
        *,
        is_ours: bool,
    ) -> None:
        """As `add`, with the rows in several arrays, one behind the other. Where it raises, `is_torn` stays true."""
        self.is_torn = True  # until all are held: the disk may be full, Ctrl-C may come
        at = 0
        for rows in pieces:
            part = slice(at, at + len(rows))
            self.add(ids_M[part], rows, tokens_MN[part], lengths_M[part], is_ours=is_ours)
            at += len(rows)
        self.is_torn = False

    def add(
        self, ids_M: np.ndarray, rows_MB: np.ndarray, tokens_MN: np.ndarray, lengths_M: np.ndarray, *, is_ours: bool
    ) -> None:
        """Take M more rows. Everything but the rows is copied; rows are where they can change, unless `is_ours` says that
        nobody else has the array."""
        assert self._held is not None, "sealed"
        at = 0
        while at < len(ids_M):
            room = self._capacity - len(self._held)
            part = slice(at, at + room)
            is_held = is_ours and (len(ids_M) - at >= room or 2 * (len(ids_M) - at) >= len(ids_M))
            with self._stages.timed("hold"):  # a small rest is copied: it would keep all of its array in memory
                self.num_copied += self._held.add(
                    ids_M[part], rows_MB[part], tokens_MN[part], lengths_M[part], is_ours=is_held
                )
            at += len(ids_M[part])
            self.num_rows += len(ids_M[part])
            if len(self._held) == self._capacity:
                self._spill()

    def _spill(self) -> None:
        assert self._held is not None
        with self._stages.timed("spill"):
            stem = self._directory / f"run-{len(self._runs):05d}"
            self._runs.append(_Run.write(stem, self._columns, self._held.sorted_batches(BATCH_ROWS)))
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

    @cached_property
    def _ranges(self) -> list[IdRange]:
        """ID ranges that cover all runs, each with about half of what is held at once and at most 9/16 (unless one ID has more).

        Half: a row that was read takes what a held one does, and a range is still there while the next one is read.
        """
        num_rows_R = np.array([run.num_rows for run in self._runs], np.int64)
        half, spare = self._capacity // 2, self._capacity // 16
        return id_ranges(num_rows_R, lambda r: self._runs[r].mapped("ids"), aim_rows=half, most_rows=half + spare)

    def sorted_ids(self) -> Iterator[tuple[np.ndarray, TokensAt]]:
        """IDs in order, a range at a time, and a function from places in that range to their tokens and lengths."""
        if self._held is not None:
            if len(self._held):
                yield self._held.sorted_ids(), self._held.sorted_tokens
            return
        for part in self._ranges:
            ids = self._read("ids", part)
            order = sorting_order(ids)
            yield ids[order], lambda at, order=order, part=part: self._range_tokens(order[at], part)  # type: ignore[misc]

    def sorted_batches(self) -> Iterator[ScatteredBatch]:
        """All rows in order, some thousands at a time."""
        if self._held is not None:
            yield from self._held.sorted_batches(BATCH_ROWS)
            return
        for part in self._ranges:
            with self._stages.timed("read runs"):
                ids, rows = self._read("ids", part), self._pieces("rows", part)
                tokens, lengths = self._read("tokens", part), self._read("lengths", part)
                order = sorting_order(ids)
                addresses = np.concatenate([addresses_of(piece) for piece in rows])
            for at in range(0, len(order), BATCH_ROWS):
                some = order[at : at + BATCH_ROWS]
                scattered = ScatteredRows(addresses[some], self._row_bytes, rows)
                yield ScatteredBatch(ids[some], scattered, tokens[some], lengths[some])

    def token_batches(self) -> Iterator[NgramArrays]:
        """All n-grams in no particular order: tokens (M, N) u32, lengths (M,) u8."""
        if self._held is not None:
            tokens, lengths = self._held.tokens_and_lengths()
            for at in range(0, len(lengths), _TOKEN_ROWS):
                yield tokens[at : at + _TOKEN_ROWS], lengths[at : at + _TOKEN_ROWS]
        for run in self._runs:
            for at in range(0, run.num_rows, _TOKEN_ROWS):
                count = min(_TOKEN_ROWS, run.num_rows - at)
                tokens, lengths = self._empty("tokens", count), self._empty("lengths", count)
                run.read_into(tokens, "tokens", at)
                run.read_into(lengths, "lengths", at)
                yield tokens, lengths

    def _empty(self, column: str, num_rows: int) -> np.ndarray:
        """Room for some rows of a column."""
        dtype, shape = self._columns[column]
        return np.empty((num_rows, *shape), dtype)

    def _pieces(self, column: str, part: IdRange) -> list[np.ndarray]:
        """A column of a range, an array for each run: malloc uses small blocks again, and keeps freed ones of a whole
        range beside new ones (36 MiB in a build of 32 that holds 21 so)."""
        pieces = []
        for run, first, last in zip(self._runs, part.firsts_R.tolist(), part.lasts_R.tolist(), strict=True):
            pieces.append(self._empty(column, last - first))
            run.read_into(pieces[-1], column, first)
        return pieces

    def _read(self, column: str, part: IdRange) -> np.ndarray:
        """A column of a range, the runs one behind the other."""
        out = self._empty(column, part.num_rows)
        at = 0
        for run, first, last in zip(self._runs, part.firsts_R.tolist(), part.lasts_R.tolist(), strict=True):
            run.read_into(out[at : at + last - first], column, first)
            at += last - first
        return out

    def _range_tokens(self, at_M: np.ndarray, part: IdRange) -> NgramArrays:
        """Tokens and lengths of M places in the runs of a range, one behind the other; of each run at once, in the
        order of its file."""
        starts = np.cumsum([0, *(part.lasts_R - part.firsts_R)])
        order_M = np.argsort(at_M)
        cuts = np.searchsorted(at_M[order_M], starts)
        tokens_MN, lengths_M = self._empty("tokens", len(at_M)), self._empty("lengths", len(at_M))
        for number in np.flatnonzero(cuts[1:] > cuts[:-1]).tolist():  # no other run need be opened
            here = order_M[cuts[number] : cuts[number + 1]]
            rows = at_M[here] - starts[number] + part.firsts_R[number]
            run = self._runs[number]
            tokens_MN[here], lengths_M[here] = run.mapped("tokens")[rows], run.mapped("lengths")[rows]
        return tokens_MN, lengths_M


class _Run:
    """A sorted run on disk: one plain file per column, open only while it is used.

    A build may have more runs than a process may have open files, and a map keeps its file open for as long as it is there.
    """

    def __init__(self, stem: Path, columns: Columns, num_rows: int) -> None:
        self.num_rows = num_rows
        self._stem = stem
        self._columns = columns

    @classmethod
    def write(cls, stem: Path, columns: Columns, batches: Iterator[ScatteredBatch]) -> _Run:
        """Spill sorted batches. A build that dies starts anew; files are synced since only that tells of writes that
        failed later, and rows read back wrong would be stored under good checksums."""
        writers = {name: FileWriter(_column_path(stem, name)) for name in columns}
        num_rows = 0
        gathered = np.empty(0, np.uint8)
        try:
            for batch in batches:
                row_bytes = batch.rows.row_bytes
                step = max(1, _SPILL_BYTES // row_bytes)
                if not gathered.size:
                    gathered = np.empty(min(step, len(batch)) * row_bytes, np.uint8)
                writers["ids"].write(batch.ids)
                for at in range(0, len(batch), gathered.size // row_bytes):
                    part = batch.rows[at : at + gathered.size // row_bytes]
                    writers["rows"].write(part.copied(gathered).reshape(-1))
                writers["tokens"].write(batch.tokens.reshape(-1))
                writers["lengths"].write(batch.lengths)
                num_rows += len(batch)
            for writer in writers.values():
                writer.finish()
        finally:
            for writer in writers.values():
                writer.close()
        return cls(stem, columns, num_rows)

    def mapped(self, column: str) -> np.ndarray:
        """All rows of a column, of which only the pages that are touched are read."""
        path = _column_path(self._stem, column)
        dtype, shape = self._columns[column]
        with our_errors(path):
            return np.memmap(path, dtype, "r", shape=(self.num_rows, *shape))

    def read_into(self, out: np.ndarray, column: str, first: int) -> None:
        """Fill `out`, a contiguous array of some rows of a column, with those from `first` on.

        Read, not mapped, so that what is held in memory is what was asked for.
        """
        if not len(out):
            return
        path = _column_path(self._stem, column)
        view = out.data.cast("B")
        with our_errors(path), open(path, "rb", buffering=0) as file:
            file.seek(first * (len(view) // len(out)))
            while view:
                count = file.readinto(view)
                if not count:
                    raise DamagedStore(f"{path} ends {len(view):,} bytes too early", hint="start the build again")
                view = view[count:]


def _column_path(stem: Path, column: str) -> Path:
    return stem.with_suffix(f".{column}")
