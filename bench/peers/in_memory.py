"""Everything in RAM: the floor, which is told the row numbers, and a Python dict from ID to row number."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import copier, gatherer
from bench.text import Positions


class _InMemory(Peer):
    layout = sorted_rows.LAYOUT

    def build(self, source: Dataset, folder: Path) -> None:
        sorted_rows.write(source, folder)

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._stored_NR = np.fromfile(folder / "rows.bin", np.uint8).reshape(-1, source.stored_NR.shape[1])
        self._gather = gatherer(source.codec, source.dim)
        self._prepare(sorted_rows.read_ids(folder), source)

    @abstractmethod
    def _prepare(self, ids_N: np.ndarray, source: Dataset) -> None: ...


class Floor(_InMemory):
    """No key is searched for: the time of one gather and dequantize kernel."""

    name = "floor"
    probes = False
    settings: ClassVar[dict] = {
        "rows": "in RAM, in ID order, row numbers known",
        "decode": "numba gather and dequantize in one pass",
    }

    def _prepare(self, ids_N: np.ndarray, source: Dataset) -> None:
        self._place_N = np.empty(source.num_keys + 1, np.int64)  # source row number -> place; the last entry answers -1
        self._place_N[np.argsort(source.ids_N)] = np.arange(source.num_keys)
        self._place_N[-1] = -1
        self._known: dict[int, tuple[Batch, np.ndarray]] = {}

    def know(self, batches: list[Batch]) -> None:
        """Take the row numbers of batches to come; this is not timed."""
        self._known = {id(batch): (batch, self._place_N[batch.numbers_B]) for batch in batches}

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        known, places_B = self._known.get(id(batch), (None, None))
        if known is not batch:  # a number is given again when its batch is gone
            places_B = self._place_N[batch.numbers_B]
        self._gather(self._stored_NR, places_B, out_BD)
        return places_B >= 0


class FloorAhead(Floor):
    """As `floor`, with the fastest gather there is here: the product's kernel, which asks for rows ahead of time."""

    name = "floor_ahead"
    settings: ClassVar[dict] = {**Floor.settings, "decode": "the product's own kernel: gather, prefetch and dequantize"}

    def _prepare(self, ids_N: np.ndarray, source: Dataset) -> None:
        """Places are offsets here, made before anything is timed."""
        super()._prepare(ids_N, source)
        self._place_N[:-1] *= self._stored_NR.shape[1]
        self._stored_NR = self._stored_NR.reshape(-1)
        self._gather = copier(source.codec, source.dim)


class DictOfRows(_InMemory):
    """A dict from int to row number, then one gather: SCONE's own RAM store."""

    name = "dict"
    settings: ClassVar[dict] = {
        "index": "dict[int, int]",
        "rows": "in RAM, in ID order",
        "decode": "numba gather and dequantize",
    }

    def _prepare(self, ids_N: np.ndarray, source: Dataset) -> None:
        del source
        self._place = dict(zip(ids_N.tolist(), range(len(ids_N)), strict=True))

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        find = self._place.get
        places_B = np.array([find(key, -1) for key in batch.ids_B.tolist()], np.int64)
        self._gather(self._stored_NR, places_B, out_BD)
        return places_B >= 0

    def longest(self, stretch: Positions, out_TD: np.ndarray) -> np.ndarray:
        """Probe length 2, 3, ... until the first miss: the set is suffix-closed."""
        find = self._place.get
        places, lengths = [], []
        for ids in stretch.ids_TN.tolist():
            place, length = -1, 0
            for n, key in enumerate(ids):
                if key == 0 or (longer := find(key)) is None:
                    break
                place, length = longer, n + 2
            places.append(place)
            lengths.append(length)
        self._gather(self._stored_NR, np.array(places, np.int64), out_TD)
        return np.array(lengths, np.int64)
