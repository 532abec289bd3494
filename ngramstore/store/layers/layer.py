"""An open layer: rows of one sorted set of n-grams, or all rows by number, in files of the store or in those of others.

The base and the overlay of a store are layers of the same format (docs/format.md, section Files).

Shapes: M rows of a chunk, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ngramstore.codec.compress import RowDecompressor
from ngramstore.layout import BLOCK_ROWS
from ngramstore.store.layers.datafile import DataFile
from ngramstore.store.layers.in_use import unlock
from ngramstore.store.layers.tokens import TokensFile

_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Batch:
    """M rows with their keys: ids (M,) u64 (row numbers in a row-addressed store), rows (M, B) u8 encoded,
    tokens (M, N) u32 left-aligned with zeros behind, lengths (M,) u8."""

    ids: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray | slice) -> Batch:
        """Some of the rows, in the order asked for."""
        return Batch(self.ids[which], self.rows[which], self.tokens[which], self.lengths[which])

    @staticmethod
    def join(batches: list[Batch]) -> Batch:
        """One batch after the other."""
        return Batch(
            np.concatenate([batch.ids for batch in batches]),
            np.concatenate([batch.rows for batch in batches]),
            np.concatenate([batch.tokens for batch in batches]),
            np.concatenate([batch.lengths for batch in batches]),
        )


class Rows(Protocol):
    """What is known of the rows of every layer. `dictionary`, `decompressor`: None where they are stored as they are."""

    @property
    def row_bytes(self) -> int: ...
    @property
    def is_compressed(self) -> bool: ...
    @property
    def dictionary(self) -> bytes | None: ...
    @property
    def decompressor(self) -> RowDecompressor | None: ...


class Layer(ABC):
    """An open layer. Threads: any number; the files close with the last user."""

    rows: Rows

    def __init__(self, serial: int, num_rows: int, *, is_keyed: bool, tokens: TokensFile | None) -> None:
        self.serial = serial
        self.num_rows = num_rows
        self.is_keyed = is_keyed
        self.tokens = tokens

    @property
    @abstractmethod
    def lines(self) -> np.ndarray:
        """This layer in the kernels' LAYERS table: one line, or one for each segment: (n, NUM_COLUMNS) i64."""

    @property
    @abstractmethod
    def files(self) -> list[DataFile]:
        """The open files of the store."""

    @abstractmethod
    def path_of(self, rank: int) -> Path:
        """The file that holds a row."""

    @abstractmethod
    def places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where consecutive rows begin, and their stored bytes without checksums: (count,) i64 each."""

    @abstractmethod
    def read_encoded(self, first: int, count: int, *, bad: list[int] | None = None) -> np.ndarray:
        """Encoded rows first .. first + count: (count, B) u8, read in one piece and checked.

        A damaged row raises DamagedRows (`keys`: IDs of n-grams, or row numbers); with `bad`, its rank is appended there and
        its bytes are zeros.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """DamagedStore if files of others that rows are read from were changed meanwhile."""

    def seeds(self, first: int, count: int) -> np.ndarray:
        """What the checksums of consecutive rows are seeded with: their IDs, or their numbers: (count,) u64."""
        return np.arange(first, first + count, dtype=np.uint64)

    def close(self) -> None:
        """Let go of the files before the last user does: a writer may remove them. Reads nothing any more."""
        for file in self.files:
            unlock(file.fd)
            file.close()

    def batches(self) -> Iterator[Batch]:
        """All rows in order, in batches of some megabytes. DamagedRows."""
        step = max(BLOCK_ROWS, _READ_BYTES // self.rows.row_bytes // BLOCK_ROWS * BLOCK_ROWS)
        for at in range(0, self.num_rows, step):
            yield self.batch(at, min(step, self.num_rows - at))

    def batch(self, first: int, count: int, *, bad: list[int] | None = None) -> Batch:
        """Consecutive rows with everything known of them; tokens are empty where the store keeps none."""
        rows = self.read_encoded(first, count, bad=bad)
        tokens, lengths = np.zeros((count, 0), np.uint32), np.zeros(count, np.uint8)
        if self.tokens is not None and count:
            block = first // BLOCK_ROWS
            all_tokens, all_lengths = self.tokens.blocks(block, (first + count - 1) // BLOCK_ROWS - block + 1)
            inside = slice(first - BLOCK_ROWS * block, first - BLOCK_ROWS * block + count)
            tokens, lengths = all_tokens[inside], all_lengths[inside]
        return Batch(self.seeds(first, count), rows, tokens, lengths)
