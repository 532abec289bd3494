"""Rows end to end in one file, row numbers known: what the disk can give, hinted ahead or one read at a time."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
from numba import types

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import decoder
from ngramstore.kernels.jit import kernel

_pread = types.ExternalFunction("pread", types.intp(types.int32, types.voidptr, types.uintp, types.int64))
_fadvise = types.ExternalFunction("posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32))
_WILLNEED = 3  # POSIX_FADV_WILLNEED on Linux


class _FlatFile(Peer):
    layout = sorted_rows.LAYOUT
    index_apart = True

    def build(self, source: Dataset, folder: Path) -> None:
        sorted_rows.write(source, folder)

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._place_N = np.empty(source.num_keys + 1, np.int64)
        self._place_N[np.argsort(source.ids_N)] = np.arange(source.num_keys)
        self._place_N[-1] = -1
        self._width = source.stored_NR.shape[1]
        self._decode = decoder(source.codec, source.dim)
        self._fd = os.open(folder / "rows.bin", os.O_RDONLY)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        places_B = self._place_N[batch.numbers_B]
        stored_BR = np.zeros((len(places_B), self._width), np.uint8)
        self._read(places_B, stored_BR)
        self._decode(stored_BR, out_BD)
        return places_B >= 0

    @abstractmethod
    def _read(self, places_B: np.ndarray, stored_BR: np.ndarray) -> None: ...

    def close(self) -> None:
        os.close(self._fd)

    def row_files(self, folder: Path) -> list[Path]:
        return [folder / "rows.bin"]


class HintThenPread(_FlatFile):
    """posix_fadvise(WILLNEED) for every row, then os.preadv for every row, in Python."""

    name = "flat_hint_pread"
    settings: ClassVar[dict] = {
        "index": "row numbers known",
        "read": "posix_fadvise WILLNEED each row, then os.preadv each row",
    }

    def _read(self, places_B: np.ndarray, stored_BR: np.ndarray) -> None:
        fd, width = self._fd, self._width
        wanted = [(b, place * width) for b, place in enumerate(places_B.tolist()) if place >= 0]
        for _, offset in wanted:
            os.posix_fadvise(fd, offset, width, os.POSIX_FADV_WILLNEED)
        for b, offset in wanted:
            got = os.preadv(fd, [stored_BR[b]], offset)
            assert got == width, (got, width)


class PlainPread(_FlatFile):
    """os.preadv for every row and no hint: one read in flight."""

    name = "flat_pread"
    settings: ClassVar[dict] = {"index": "row numbers known", "read": "os.preadv each row, no hint"}

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        super().open(folder, source, cache_bytes)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead

    def _read(self, places_B: np.ndarray, stored_BR: np.ndarray) -> None:
        for b, place in enumerate(places_B.tolist()):
            if place >= 0:
                os.preadv(self._fd, [stored_BR[b]], place * self._width)


class HintThenPreadNumba(_FlatFile):
    """The same two passes in one compiled function, in the order of the file: the disk's floor."""

    name = "flat_hint_pread_numba"
    settings: ClassVar[dict] = {
        "index": "row numbers known",
        "read": "WILLNEED each row, then pread each row, in the order of the file, compiled",
    }

    def _read(self, places_B: np.ndarray, stored_BR: np.ndarray) -> None:
        missed = _hint_and_read(np.int32(self._fd), places_B, np.argsort(places_B), stored_BR)
        assert missed == 0, f"{missed} short reads"


@kernel
def _hint_and_read(fd: int, places_B: np.ndarray, order_B: np.ndarray, stored_BR: np.ndarray) -> int:
    """Number of rows that could not be read whole."""
    width = stored_BR.shape[1]
    for b in order_B:
        if places_B[b] >= 0:
            _fadvise(fd, places_B[b] * width, width, _WILLNEED)
    missed = 0
    for b in order_B:
        if places_B[b] >= 0 and _pread(fd, stored_BR[b].ctypes, width, places_B[b] * width) != width:
            missed += 1
    return missed
