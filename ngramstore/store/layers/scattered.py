"""Rows that lie anywhere in memory, in an order of their own: an address each, and what keeps the memory alive.

A build sorts addresses, not rows: a row is touched once, when it is written.

Shapes: M rows, B bytes of an encoded row.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ngramstore.kernels.native import packing


class ScatteredRows:
    """M rows of B bytes by address. Takes slices and index arrays like a (M, B) u8 array; copies nothing."""

    def __init__(self, addresses_M: np.ndarray, row_bytes: int, owners: Sequence[object]) -> None:
        self.addresses = addresses_M
        self.row_bytes = row_bytes
        self._owners = owners

    @classmethod
    def of(cls, rows_MB: np.ndarray) -> ScatteredRows:
        """The rows of an array (M, B) u8, whose rows are contiguous, where they lie."""
        if rows_MB.dtype != np.uint8 or not has_whole_rows(rows_MB):
            raise AssertionError(
                f"rows are read by address: {rows_MB.dtype} {rows_MB.shape}, strides {rows_MB.strides}"
            )
        return cls(addresses_of(rows_MB), rows_MB.shape[1], [rows_MB])

    def __len__(self) -> int:
        return len(self.addresses)

    def __getitem__(self, which: np.ndarray | slice) -> ScatteredRows:
        return ScatteredRows(np.ascontiguousarray(self.addresses[which]), self.row_bytes, self._owners)

    def copied(self, out: np.ndarray | None = None) -> np.ndarray:
        """The rows side by side: (M, B) u8; `out`: into the beginning of a flat u8 buffer."""
        size = len(self) * self.row_bytes
        flat = np.empty(size, np.uint8) if out is None else out[:size]
        if flat.size != size:
            raise AssertionError(f"room for {flat.size:,} bytes, the rows have {size:,}")
        packing.gather_rows(self.addresses, self.row_bytes, flat)
        return flat.reshape(len(self), self.row_bytes)


@dataclass(frozen=True)
class ScatteredBatch:
    """A `Batch` (store/layers/layer.py) whose rows lie anywhere: ids (M,) u64, tokens (M, N) u32, lengths (M,) u8."""

    ids: np.ndarray
    rows: ScatteredRows
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray | slice) -> ScatteredBatch:
        """Some of the rows, in the order asked for."""
        return ScatteredBatch(self.ids[which], self.rows[which], self.tokens[which], self.lengths[which])


def has_whole_rows(rows_MB: np.ndarray) -> bool:
    """Whether the bytes of each row lie side by side."""
    return rows_MB.size == 0 or rows_MB.strides[1] == 1 or rows_MB.shape[1] == 1


def addresses_of(rows_MB: np.ndarray) -> np.ndarray:
    """Where each row of an array begins: (M,) i64."""
    return rows_MB.ctypes.data + np.arange(len(rows_MB), dtype=np.int64) * rows_MB.strides[0]


def cannot_change(array: np.ndarray) -> bool:
    """Whether nobody can write to an array: it and all it is a view of are read-only, down to the memory's owner.

    The owner: an array, bytes, or a read-only memory map. A map of a file changes with the file: whoever writes there while
    a build has references to it gets what is there when the rows are packed.
    """
    owner: object = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        if owner.base is None:
            return True
        owner = owner.base
    return isinstance(owner, bytes) or (isinstance(owner, mmap.mmap) and memoryview(owner).readonly)


def ask_for_pages(array: np.ndarray) -> None:
    """If an array is part of a mapped file, let the system begin to read that part: rows are picked from it in any order."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") and array.size:
        begin = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_WILLNEED, page, begin + array.nbytes - page)
