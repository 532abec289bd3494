"""FBGEMM's CPU table for serving: IntNBitTableBatchedEmbeddingBagsCodegen with f16 rows in RAM, unpooled, row numbers
by binary search."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import fbgemm_gpu  # noqa: F401 - loads the operators
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer


class Fbgemm(Peer):
    """One table, one more row of zeros for absent keys. Its int8 rows have a scale and a bias of 16 bits, so they cannot hold
    int8 rows with a float32 scale exactly: only f16 rows are compared."""

    name = "fbgemm"
    layout = sorted_rows.LAYOUT
    settings: ClassVar[dict] = {
        "index": "np.searchsorted over IDs in RAM",
        "rows": "IntNBitTableBatchedEmbeddingBagsCodegen, FP16 weights, HOST",
        "pooling": "none",
        "output": "FP32, copied into the caller's array",
        "threads": 1,
    }

    def build(self, source: Dataset, folder: Path) -> None:
        sorted_rows.write(source, folder)

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        if source.codec != "f16":
            raise ValueError("FBGEMM's int8 rows have a 16-bit scale: it runs with f16 rows")
        torch.set_num_threads(1)
        self._ids_N = sorted_rows.read_ids(folder)
        num = source.num_keys
        self._table = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("rows", num + 1, source.dim, SparseType.FP16, EmbeddingLocation.HOST)],
            pooling_mode=PoolingMode.NONE,
            output_dtype=SparseType.FP32,
            device="cpu",
        )
        self._table.initialize_weights()
        weights = self._table.split_embedding_weights()[0][0]  # (N + 1, bytes of a row), maybe wider than 2 * D
        stored_NR = np.fromfile(folder / "rows.bin", np.uint8).reshape(num, -1)
        weights.zero_()
        weights[:num, : stored_NR.shape[1]] = torch.from_numpy(stored_NR)

    @torch.no_grad()
    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        places_B = sorted_rows.find(self._ids_N, batch.ids_B)
        found_B = places_B >= 0
        which = torch.from_numpy(np.where(found_B, places_B, len(self._ids_N)).astype(np.int32))
        offsets = torch.arange(len(which) + 1, dtype=torch.int32)
        torch.from_numpy(out_BD).copy_(self._table(which, offsets)[: len(which)])
        return found_B
