"""A plain memory map: binary search over sorted IDs in RAM, then rows gathered through the map; no checksum, no compression."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import SCALE_BYTES, gatherer
from bench.text import Positions


class Memmap(Peer):
    """What one writes in ten lines of numpy."""

    name = "memmap"
    layout = sorted_rows.LAYOUT
    settings: ClassVar[dict] = {
        "index": "np.searchsorted over IDs in RAM",
        "rows": "np.memmap, MADV_RANDOM",
        "decode": "numpy",
    }
    index_apart = True

    def build(self, source: Dataset, folder: Path) -> None:
        sorted_rows.write(source, folder)

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._ids_N = sorted_rows.read_ids(folder)
        with open(folder / "rows.bin", "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # the default's readahead costs 644 us a cold row
        self._stored_NR = np.frombuffer(self._map, np.uint8).reshape(-1, source.stored_NR.shape[1])
        self._codec, self._gather = source.codec, gatherer(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        places_B = sorted_rows.find(self._ids_N, batch.ids_B)
        return self._decode(places_B, out_BD)

    def longest(self, stretch: Positions, out_TD: np.ndarray) -> np.ndarray:
        """One binary search a length, for the positions that matched so far: the set is suffix-closed."""
        places_T = np.full(len(stretch), -1, np.int64)
        lengths_T = np.zeros(len(stretch), np.int64)
        alive = np.arange(len(stretch))
        for n in range(stretch.ids_TN.shape[1]):
            ids = stretch.ids_TN[alive, n]
            found = sorted_rows.find(self._ids_N, ids)
            hit = (found >= 0) & (ids != 0)
            alive = alive[hit]
            places_T[alive] = found[hit]
            lengths_T[alive] = n + 2
        self._decode(places_T, out_TD)
        return lengths_T

    def _decode(self, places_B: np.ndarray, out_BD: np.ndarray) -> np.ndarray:
        found_B = places_B >= 0
        stored_BR = self._stored_NR[places_B]  # -1 reads the last row, zeroed below
        if self._codec == "f16":
            out_BD[:] = stored_BR.view("<f2")
            out_BD[~found_B] = 0
            return found_B
        scale_B = stored_BR[:, -SCALE_BYTES:].copy().view(np.float32)[:, 0]
        scale_B[~found_B] = 0
        np.multiply(stored_BR[:, :-SCALE_BYTES].view(np.int8), scale_B[:, None], out=out_BD)
        return found_B

    def close(self) -> None:
        del self._stored_NR
        self._map.close()

    def row_files(self, folder: Path) -> list[Path]:
        return [folder / "rows.bin"]


class MemmapNumba(Memmap):
    """The same map with gather and dequantize in one compiled pass: the strongest form of it."""

    name = "memmap_numba"
    settings: ClassVar[dict] = {**Memmap.settings, "decode": "numba gather and dequantize in one pass"}

    def _decode(self, places_B: np.ndarray, out_BD: np.ndarray) -> np.ndarray:
        self._gather(self._stored_NR, places_B, out_BD)
        return places_B >= 0
