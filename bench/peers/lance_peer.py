"""Lance: the rows as one fixed-size binary column, a batch by `take` of row numbers, which come from binary search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import lance
import numpy as np
import pyarrow as pa

from bench.data import Batch, Dataset
from bench.peers import sorted_rows
from bench.peers.base import Peer
from bench.rows import decoder

_CHUNK = 1 << 14


class Lance(Peer):
    """Row numbers are Lance's fastest address; its indices answer filters, not batches of keys."""

    name = "lance"
    layout = "lance"
    settings: ClassVar[dict] = {
        "index": "np.searchsorted over IDs in RAM",
        "rows": "one fixed-size binary column, default encodings",
        "read": "dataset.take(row numbers)",
        "threads": "its own, as many as cores",
    }
    index_apart = True

    def build(self, source: Dataset, folder: Path) -> None:
        order_N = np.argsort(source.ids_N)
        np.save(folder / "ids.npy", source.ids_N[order_N])
        schema = pa.schema([("row", pa.binary(source.stored_NR.shape[1]))])

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(order_N), _CHUNK):
                stored_MR = source.stored_NR[order_N[start : start + _CHUNK]]
                column = pa.Array.from_buffers(schema.types[0], len(stored_MR), [None, pa.py_buffer(stored_MR)])
                yield pa.RecordBatch.from_arrays([column], schema=schema)

        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(folder / "rows.lance"))

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._ids_N = sorted_rows.read_ids(folder)
        self._rows = lance.dataset(str(folder / "rows.lance"))
        self._width = source.stored_NR.shape[1]
        self._decode = decoder(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        places_B = sorted_rows.find(self._ids_N, batch.ids_B)
        found_B = places_B >= 0
        stored_BR = np.zeros((len(places_B), self._width), np.uint8)
        if found_B.any():
            column = self._rows.take(places_B[found_B], columns=["row"])["row"].combine_chunks()
            values = np.frombuffer(column.buffers()[1], np.uint8)
            start = column.offset * self._width
            stored_BR[found_B] = values[start : start + len(column) * self._width].reshape(-1, self._width)
        self._decode(stored_BR, out_BD)
        return found_B

    def close(self) -> None:
        del self._rows

    def row_files(self, folder: Path) -> list[Path]:
        return [path for path in self.files(folder) if path.name != "ids.npy"]
