"""ngramstore: token ids in, rows out; the IDs are hashed inside each call."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

import ngramstore as ngs
from bench.data import Batch, Dataset
from bench.peers.base import Peer
from bench.text import Positions

_CHUNK = 1 << 16


class Plain(Peer):
    """int8 rows as they are, a row cache of the given budget."""

    name = "ngramstore"
    layout = "ngramstore-none"
    compression = "none"
    resident = False
    settings: ClassVar[dict] = {
        "codec": "that of the rows",
        "compression": "none",
        "cache": "the budget of the case",
        "resident": False,
    }
    index_apart = True
    has_cache = True

    def build(self, source: Dataset, folder: Path) -> None:
        max_n = source.ngrams_NK.shape[1]
        with ngs.build(
            folder / "store", dim=source.dim, max_n=max_n, codec=source.codec, compression=self.compression
        ) as b:
            for start in range(0, source.num_keys, _CHUNK):
                part = slice(start, start + _CHUNK)
                b.add_encoded((source.ngrams_NK[part], source.lengths_N[part]), self._rows(source.stored_NR[part]))
        self.build_stats = b.stats()

    def _rows(self, stored_MR: np.ndarray) -> np.ndarray:
        """Rows as the build gets them: part of a read-only map, which it need not copy."""
        return stored_MR

    def build_facts(self) -> dict:
        stats = self.build_stats
        seconds = {stage: round(value, 4) for stage, value in stats["seconds"].items()}
        return {
            "budget_mib": round(stats["memory_bytes"] / 2**20, 1),
            "rows_copied": stats["rows_copied"],
            "stages": seconds,
        }

    def build_encoded(
        self, ngrams_NK: np.ndarray, stored_NR: np.ndarray, dim: int, codec: str, folder: Path
    ) -> dict[str, int]:
        """Store rows of any codec; bytes on disk by part."""
        with ngs.build(
            folder / "store", dim=dim, max_n=ngrams_NK.shape[1], codec=codec, compression=self.compression
        ) as b:
            b.add_encoded(ngrams_NK, stored_NR)
        parts = dict.fromkeys(("index", "tokens", "rows", "other"), 0)
        for path in self.files(folder):
            parts[_part(path)] += path.stat().st_size
        return parts

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        self._max_n = source.ngrams_NK.shape[1]
        self._folder, self._cache_bytes = folder, cache_bytes
        self._store = ngs.open(folder / "store", cache_bytes=cache_bytes, resident=self.resident)

    def split(self, threads: int) -> None:
        """From here on large calls are split over so many threads; the cache is empty again."""
        self._store.close()
        self._store = ngs.open(
            self._folder / "store", cache_bytes=self._cache_bytes, resident=self.resident, threads=threads
        )

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        if self._max_n == 3:  # the exact look-ups: all keys are 3-grams
            _, found_B = self._store.get(batch.ngrams_BK, out=out_BD)
        else:
            _, found_B = self._store.get((batch.ngrams_BK, batch.lengths_B), out=out_BD)
        return found_B

    def longest(self, stretch: Positions, out_TD: np.ndarray) -> np.ndarray:
        hit = self._store.lookup(stretch.tokens_T[None, :], out=out_TD[None])
        return hit.length[0]

    def tails(self, windows_BK: np.ndarray, stretch: Positions, out_BD: np.ndarray) -> np.ndarray:
        room_B1 = np.full((len(windows_BK), 1), windows_BK.shape[1], np.uint8)
        return self._store.lookup_tail(windows_BK, room_B1, out=out_BD[:, None])[:, 0]

    def close(self) -> None:
        self._store.close()
        del self._store  # and with it the maps of the index

    def row_files(self, folder: Path) -> list[Path]:
        return [path for path in self.files(folder) if _part(path) == "rows"]

    def facts(self) -> dict:
        """Its counters; nothing that names this machine's paths."""
        stats = self._store.stats()
        return {"stats": {name: value for name, value in stats.items() if isinstance(value, (int, float))}}


class Zstd(Plain):
    """One zstd frame a row with a trained dictionary."""

    name = "ngramstore_zstd"
    layout = "ngramstore-zstd"
    compression = "zstd"
    settings: ClassVar[dict] = {**Plain.settings, "compression": "zstd"}


class Copied(Plain):
    """For bulk loading: rows that come in one buffer of the caller's, which is filled again for each call."""

    name = "ngramstore_copied"
    layout = "ngramstore-copied"
    settings: ClassVar[dict] = {**Plain.settings, "rows": "in a buffer that is used again, so that they must be copied"}

    def _rows(self, stored_MR: np.ndarray) -> np.ndarray:
        if not hasattr(self, "_buffer"):
            self._buffer = np.empty_like(stored_MR, subok=False)
        rows_MR = self._buffer[: len(stored_MR)]
        rows_MR[:] = stored_MR
        return rows_MR


class Resident(Plain):
    """All rows read into memory at open; no cache to keep."""

    name = "ngramstore_resident"
    resident = True
    settings: ClassVar[dict] = {**Plain.settings, "resident": True, "cache": "none"}


class Exact(Plain):
    """Longest match without the match: told which n-grams match, an exact get of as many keys."""

    name = "ngramstore_exact"
    probes = False
    longest = Peer.longest


def _part(path: Path) -> str:
    """What a file of a store holds, by its name."""
    return next((part for part in ("index", "tokens", "rows") if part in path.name), "other")
