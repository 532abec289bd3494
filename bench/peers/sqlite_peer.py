"""SQLite: the ID as the rowid of one table, a batch asked for by `IN (?, ...)`, read through its memory map."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.data import Batch, Dataset
from bench.peers.base import Peer
from bench.rows import decoder


class Sqlite(Peer):
    """IDs are u64; SQLite's integers are signed, so the same 64 bits are read as i64."""

    name = "sqlite"
    layout = "sqlite"
    settings: ClassVar[dict] = {
        "table": "rowid = ID, one blob",
        "query": "IN (?, ...)",
        "mmap_size": "8 GiB asked for; the library may grant less (fact: mapped_bytes)",
        "cache_size": "as large as the part of the file that is not mapped",
        "load": "one transaction, key order",
    }

    def build(self, source: Dataset, folder: Path) -> None:
        keys_N = source.ids_N.view(np.int64)
        db = sqlite3.connect(folder / "rows.sqlite")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        order_N = np.argsort(keys_N)
        step = 1 << 15
        for start in range(0, len(order_N), step):
            part_M = order_N[start : start + step]
            stored_MR = source.stored_NR[part_M]
            pairs = zip(keys_N[part_M].tolist(), (row_R.tobytes() for row_R in stored_MR), strict=True)
            db.executemany("INSERT INTO t VALUES (?, ?)", pairs)
        db.commit()
        db.close()

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._db = sqlite3.connect(f"file:{folder / 'rows.sqlite'}?mode=ro", uri=True)
        (self._mapped_bytes,) = self._db.execute(f"PRAGMA mmap_size = {8 << 30}").fetchone()
        rest = max(0, (folder / "rows.sqlite").stat().st_size - self._mapped_bytes)
        self._db.execute(f"PRAGMA cache_size = -{max(2048, rest * 5 // 4 >> 10)}")  # in KiB; 2 MB by default
        self._zero = bytes(source.stored_NR.shape[1])
        self._decode = decoder(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        zero = self._zero
        keys = batch.ids_B.view(np.int64).tolist()
        marks = ",".join("?" * len(keys))
        held = dict(self._db.execute(f"SELECT k, v FROM t WHERE k IN ({marks})", keys))
        values = [held.get(key, zero) for key in keys]
        self._decode(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1), out_BD)
        return np.array([value is not zero for value in values], np.bool_)

    def facts(self) -> dict[str, Any]:
        return {"mapped_bytes": self._mapped_bytes}

    def close(self) -> None:
        self._db.close()
