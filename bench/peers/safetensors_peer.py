"""safetensors: the rows as one tensor of a mapped file, one `get_slice(...)[row]` a key, row numbers by binary search."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import decoder


class Safetensors(Peer):
    """A slice takes one number or range a dimension and no list of them, so a batch is a loop."""

    name = "safetensors"
    layout = "safetensors"
    settings: ClassVar[dict] = {
        "index": "np.searchsorted over IDs in RAM",
        "rows": "one u8 tensor, safe_open(framework='np')",
        "read": "get_slice(name)[row] for each key",
    }
    index_apart = True

    def build(self, source: Dataset, folder: Path) -> None:
        order_N = np.argsort(source.ids_N)
        np.save(folder / "ids.npy", source.ids_N[order_N])
        save_file({"rows": source.stored_NR[order_N]}, folder / "rows.safetensors")

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._ids_N = sorted_rows.read_ids(folder)
        self._file = safe_open(folder / "rows.safetensors", "np")
        self._slice = self._file.get_slice("rows")
        self._zero_R = np.zeros(source.stored_NR.shape[1], np.uint8)
        self._decode = decoder(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        rows, zero_R = self._slice, self._zero_R
        places_B = sorted_rows.find(self._ids_N, batch.ids_B)
        self._decode(np.stack([rows[place] if place >= 0 else zero_R for place in places_B.tolist()]), out_BD)
        return places_B >= 0

    def close(self) -> None:
        del self._slice, self._file  # and with them the map

    def row_files(self, folder: Path) -> list[Path]:
        return [folder / "rows.safetensors"]
