"""torch.nn.Embedding over int8 codes and scales (or f16 values) in RAM, row numbers by binary search: what a model
without a store does."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import SCALE_BYTES


class NnEmbedding(Peer):
    """Two nn.Embedding (codes int8, scale float32), one more row of zeros for absent keys."""

    name = "nn_embedding"
    layout = sorted_rows.LAYOUT
    settings: ClassVar[dict] = {
        "index": "np.searchsorted over IDs in RAM",
        "rows": "torch.nn.Embedding in RAM, int8 codes and f32 scales, or f16",
        "threads": 1,
    }

    def build(self, source: Dataset, folder: Path) -> None:
        sorted_rows.write(source, folder)

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        torch.set_num_threads(1)
        self._ids_N = sorted_rows.read_ids(folder)
        num, width = source.stored_NR.shape
        stored_NR = np.fromfile(folder / "rows.bin", np.uint8).reshape(num, width)
        self._scales: torch.nn.Embedding | None = None
        if source.codec == "f16":
            values = torch.zeros((num + 1, source.dim), dtype=torch.float16)
            values[:num] = torch.from_numpy(stored_NR.view(np.float16))
            self._codes = torch.nn.Embedding.from_pretrained(values, freeze=True)
            return
        codes = torch.zeros((num + 1, source.dim), dtype=torch.int8)
        codes[:num] = torch.from_numpy(stored_NR[:, :-SCALE_BYTES].view(np.int8))
        scales = torch.zeros((num + 1, 1))
        scales[:num] = torch.from_numpy(stored_NR[:, -SCALE_BYTES:].copy().view(np.float32))
        self._codes = torch.nn.Embedding.from_pretrained(codes, freeze=True)
        self._scales = torch.nn.Embedding.from_pretrained(scales, freeze=True)

    @torch.no_grad()
    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        places_B = sorted_rows.find(self._ids_N, batch.ids_B)
        found_B = places_B >= 0
        which = torch.from_numpy(np.where(found_B, places_B, len(self._ids_N)))
        out = torch.from_numpy(out_BD)
        if self._scales is None:
            out.copy_(self._codes(which))
        else:
            torch.mul(self._codes(which), self._scales(which), out=out)
        return found_B
