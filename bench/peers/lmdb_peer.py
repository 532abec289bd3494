"""LMDB as SCONE used it: a B+-tree from 8-byte keys to stored rows, read through its memory map."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import lmdb
import numpy as np

from bench.data import Batch, Dataset
from bench.peers.base import Peer, big_endian_keys
from bench.rows import decoder
from bench.text import Positions
from ngramstore.hashing import ngram_ids


class Lmdb(Peer):
    """One `get` a key in one long read transaction: faster than `getmulti`, which drops the missing keys."""

    name = "lmdb"
    layout = "lmdb"
    settings: ClassVar[dict] = {
        "keys": "8 bytes big-endian",
        "load": "append in key order, one sync at the end",
        "readahead": False,
        "lock": False,
        "buffers": True,
    }

    def build(self, source: Dataset, folder: Path) -> None:
        order_N = np.argsort(source.ids_N)
        keys = big_endian_keys(source.ids_N[order_N])
        env = lmdb.open(str(folder), map_size=4 * source.stored_NR.nbytes + (256 << 20), sync=False)
        step = 1 << 15
        for start in range(0, len(keys), step):
            stored_MR = source.stored_NR[order_N[start : start + step]]
            with env.begin(write=True) as txn, txn.cursor() as cursor:
                pairs = zip(keys[start : start + step], map(memoryview, stored_MR), strict=True)
                cursor.putmulti(((key, bytes(row)) for key, row in pairs), append=True)
        env.sync(True)
        env.close()

    def build_encoded(
        self, ngrams_NK: np.ndarray, stored_NR: np.ndarray, dim: int, codec: str, folder: Path
    ) -> dict[str, int]:
        """Store rows of any codec; bytes on disk by part."""
        del dim, codec
        ids_N = ngram_ids(ngrams_NK)
        lengths_N = np.full(len(ids_N), ngrams_NK.shape[1], np.uint8)
        self.build(Dataset(folder, ngrams_NK, lengths_N, ids_N, stored_NR), folder)
        return {"data": (folder / "data.mdb").stat().st_size}

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._env = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
        self._txn = self._env.begin(buffers=True)
        self._zero = bytes(source.stored_NR.shape[1])
        self._decode = decoder(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        get, zero = self._txn.get, self._zero
        values = [get(key, zero) for key in big_endian_keys(batch.ids_B)]
        self._decode(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1), out_BD)
        return np.array([value is not zero for value in values], np.bool_)

    def longest(self, stretch: Positions, out_TD: np.ndarray) -> np.ndarray:
        """Probe length 2, 3, ... until the first miss: the set is suffix-closed."""
        get, zero = self._txn.get, self._zero
        keys = big_endian_keys(stretch.ids_TN.reshape(-1))
        absent = bytes(8)
        width = stretch.ids_TN.shape[1]
        values, lengths = [], []
        for start in range(0, len(keys), width):
            value, length = zero, 0
            for n in range(width):
                key = keys[start + n]
                if key == absent or (longer := get(key)) is None:
                    break
                value, length = longer, n + 2
            values.append(value)
            lengths.append(length)
        self._decode(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1), out_TD)
        return np.array(lengths, np.int64)

    def close(self) -> None:
        self._txn.abort()
        self._env.close()

    def files(self, folder: Path) -> list[Path]:
        return [folder / "data.mdb"]
