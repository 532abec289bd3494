"""The rows of a build that are in memory: what is sorted (IDs, tokens, addresses) in columns, rows where they came from.

Rows of arrays that cannot change stay where they are; others are copied once, into pieces of memory that are used again
after each spill. Touching memory for the first time can cost more than all the rest of a build (3 s a GiB were seen on a
virtual machine).

Shapes: M rows, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.store.layers.scattered import (
    ScatteredBatch,
    ScatteredRows,
    addresses_of,
    ask_for_pages,
    cannot_change,
    has_whole_rows,
)

_PIECE_BYTES = 4 << 20
_WORTH_HOLDING_BYTES = 64 << 10  # a smaller array costs more to keep than to copy


class HeldRows:
    """Up to `capacity` rows, then `clear`. Every row counts in full, also where it is not copied: the sort picks rows in any
    order, so the pages of a mapped file must stay in memory as well."""

    def __init__(self, capacity: int, row_bytes: int, max_n: int) -> None:
        self._row_bytes = row_bytes
        self._ids = np.empty(capacity, np.uint64)  # pages not used cost nothing
        self._addresses = np.empty(capacity, np.int64)
        self._tokens = np.empty((capacity, max_n), np.uint32)
        self._lengths = np.empty(capacity, np.uint8)
        self._order = np.empty(0, np.int64)
        self._used = 0
        self._piece_rows = max(1, min(capacity, _PIECE_BYTES // row_bytes))
        self._pieces: list[np.ndarray] = []
        self._piece = 0  # the one being filled, and how full it is
        self._piece_used = 0
        self._owners: list[np.ndarray] = []

    @staticmethod
    def bytes_of_row(row_bytes: int, max_n: int) -> int:
        """What one row takes: itself, ID, address, place in the order, tokens, length."""
        return row_bytes + 8 + 8 + 8 + 4 * max_n + 1

    def __len__(self) -> int:
        return self._used

    def add(
        self, ids_M: np.ndarray, rows_MB: np.ndarray, tokens_MN: np.ndarray, lengths_M: np.ndarray, *, is_ours: bool
    ) -> int:
        """Hold M more rows; returns how many were copied."""
        count = len(ids_M)
        to = slice(self._used, self._used + count)
        self._ids[to] = ids_M
        self._tokens[to] = 0
        self._tokens[to, : tokens_MN.shape[1]] = tokens_MN
        self._lengths[to] = lengths_M
        stays = has_whole_rows(rows_MB) and (is_ours or cannot_change(rows_MB))
        if stays and rows_MB.nbytes >= _WORTH_HOLDING_BYTES:
            ask_for_pages(rows_MB)
            self._owners.append(rows_MB)
            self._addresses[to] = addresses_of(rows_MB)
            self._used += count
            return 0
        at = 0
        while at < count:
            if self._piece == len(self._pieces):
                self._pieces.append(np.empty((self._piece_rows, self._row_bytes), np.uint8))
            room = self._pieces[self._piece][self._piece_used :][: count - at]
            room[:] = rows_MB[at : at + len(room)]
            self._addresses[self._used : self._used + len(room)] = addresses_of(room)
            self._used += len(room)
            self._piece_used += len(room)
            at += len(room)
            if self._piece_used == self._piece_rows:
                self._piece, self._piece_used = self._piece + 1, 0
        return count

    def clear(self) -> None:
        """Forget all rows; the memory that rows were copied into is kept for the next ones."""
        self._used = self._piece = self._piece_used = 0
        self._order = np.empty(0, np.int64)
        self._owners = []

    def sort(self) -> None:
        """Find the order of the IDs, once."""
        if len(self._order) != self._used:
            self._order = sorting_order(self._ids[: self._used])

    def sorted_ids(self) -> np.ndarray:
        """All IDs in order: (M,) u64."""
        self.sort()
        return self._ids[self._order]

    def sorted_tokens(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and lengths of places in the order."""
        self.sort()
        return self._tokens[self._order[at]], self._lengths[self._order[at]]

    def sorted_batches(self, step: int) -> Iterator[ScatteredBatch]:
        """All rows in order, `step` at a time."""
        self.sort()
        owners = [*self._pieces, *self._owners]
        for at in range(0, self._used, step):
            some = self._order[at : at + step]
            rows = ScatteredRows(self._addresses[some], self._row_bytes, owners)
            tokens = np.take(self._tokens, some, axis=0)  # three times as fast as indexing
            yield ScatteredBatch(self._ids[some], rows, tokens, self._lengths[some])

    def tokens_and_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (M, N) u32 and lengths (M,) u8, as they came."""
        return self._tokens[: self._used], self._lengths[: self._used]


def sorting_order(ids_M: np.ndarray) -> np.ndarray:
    """Places of the IDs in ascending order, equal ones in the order they came: (M,) i64."""
    order = np.argsort(ids_M)  # half the time of a stable sort, and the same where no two are equal
    in_order = ids_M[order]
    if (in_order[1:] == in_order[:-1]).any():
        return np.argsort(ids_M, kind="stable")
    return order
