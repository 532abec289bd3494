"""The store workload's source of truth: keys, stored rows and queries, the same bytes for the same seed.

Keys are 3-grams of token ids drawn at random; rows are Gaussian with one scale a dimension, e**(0.6 N(0, 1)), quantized once
to int8, or to f16 where a case asks for it (bench/rows.py). Every subject stores exactly these bytes. Queries follow
Zipf(1.0) over a random ranking of the keys, a share of them absent keys.

Shapes: N keys, K longest n-gram, M look-ups, B batch, R bytes of a stored row.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench import rows
from ngramstore.hashing import ngram_ids

VOCABULARY = 50_257
ORDER = 3
SCALE_SPREAD = 0.6
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Dataset:
    """Source on disk, in one random order: n-grams (N, K) u32 left-aligned and their lengths (N,), IDs (N,) u64, and the
    stored rows (N, R) u8 as a read-only map."""

    folder: Path
    ngrams_NK: np.ndarray
    lengths_N: np.ndarray
    ids_N: np.ndarray
    stored_NR: np.ndarray
    codec: str = "int8"

    @property
    def num_keys(self) -> int:
        return len(self.ids_N)

    @property
    def dim(self) -> int:
        return rows.dim_of(self.stored_NR, self.codec)

    @cached_property
    def ascending_ids_N(self) -> np.ndarray:
        return np.sort(self.ids_N)

    @cached_property
    def ranking_N(self) -> np.ndarray:
        """Row numbers, the hottest key's first; of the dataset alone, so that hot keys are the same ones for every seed."""
        return np.random.default_rng(self.num_keys).permutation(self.num_keys)

    def holds(self, ids_M: np.ndarray) -> np.ndarray:
        """(M,) bool: which IDs are keys."""
        places_M = np.searchsorted(self.ascending_ids_N, ids_M)
        return self.ascending_ids_N[np.minimum(places_M, self.num_keys - 1)] == ids_M


@dataclass(frozen=True)
class Batch:
    """One call: n-grams (B, K) u32 and lengths (B,) for us, ready-made IDs (B,) u64 for the peers, and the row numbers in the
    source (B,), -1 = absent, for the check."""

    ngrams_BK: np.ndarray
    lengths_B: np.ndarray
    ids_B: np.ndarray
    numbers_B: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_B)

    def expected(self, source: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """What any subject must answer: rows (B, D) f32 with zeros where absent, and the mask (B,) bool."""
        found_B = self.numbers_B >= 0
        want_BD = rows.decode(source.stored_NR[np.maximum(self.numbers_B, 0)], source.codec)
        want_BD[~found_B] = 0
        return want_BD, found_B


def prepare(root: Path, num_keys: int, dim: int, seed: int, codec: str = "int8") -> Path:
    """Folder of the dataset, written unless it is there already; it appears under its name only when it is whole."""
    folder = root / f"source-n{num_keys}-d{dim}-s{seed}{_suffix(codec)}"
    if not folder.exists():
        ngrams_N3 = distinct_ngrams(np.random.default_rng([seed, num_keys]), num_keys)
        write(folder, ngrams_N3, np.full(num_keys, ORDER, np.uint8), dim, seed, codec)
    return folder


def write(folder: Path, ngrams_NK: np.ndarray, lengths_N: np.ndarray, dim: int, seed: int, codec: str = "int8") -> None:
    """Write a dataset of the given distinct n-grams with Gaussian rows; `folder` appears only when all of it is there."""
    part = Path(f"{folder}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    num_keys = len(ngrams_NK)
    rng = np.random.default_rng([seed, num_keys, dim])
    np.save(part / "ngrams.npy", ngrams_NK)
    np.save(part / "lengths.npy", lengths_N)
    np.save(part / "ids.npy", ngram_ids(ngrams_NK, lengths_N))
    scales_D = np.exp(SCALE_SPREAD * rng.standard_normal(dim)).astype(np.float32)
    stored_NR = np.lib.format.open_memmap(
        part / "stored.npy", mode="w+", dtype=np.uint8, shape=(num_keys, rows.row_bytes(dim, codec))
    )
    for start in range(0, num_keys, _CHUNK):
        stop = min(start + _CHUNK, num_keys)
        rows_MD = rng.standard_normal((stop - start, dim), np.float32)
        rows_MD *= scales_D
        stored_NR[start:stop] = rows.encode(rows_MD, codec)
    stored_NR.flush()
    del stored_NR
    (part / "codec").write_text(codec)
    os.replace(part, folder)


def load(folder: Path | str) -> Dataset:
    """The dataset in `folder`; rows stay on disk behind a read-only map."""
    folder = Path(folder)
    return Dataset(
        folder,
        np.load(folder / "ngrams.npy"),
        np.load(folder / "lengths.npy"),
        np.load(folder / "ids.npy"),
        np.load(folder / "stored.npy", mmap_mode="r"),
        (folder / "codec").read_text() if (folder / "codec").exists() else "int8",
    )


def _suffix(codec: str) -> str:
    """Of a folder's name; int8 is the usual one."""
    return "" if codec == "int8" else f"-{codec}"


def queries(source: Dataset, count: int, seed: int, *, absent: float = 0.2, zipf: float | None = 1.0) -> Batch:
    """`count` look-ups as one big batch; zipf=None draws present keys uniformly."""
    rng = np.random.default_rng(seed)
    num = source.num_keys
    if zipf is None:
        numbers_M = rng.integers(0, num, count)
    else:
        weight_N = np.cumsum(np.arange(1, num + 1, dtype=np.float64) ** -zipf)
        ranks_M = np.searchsorted(weight_N, rng.random(count) * weight_N[-1])
        numbers_M = source.ranking_N[ranks_M]
    absent_M = rng.random(count) < absent
    ngrams_MK = source.ngrams_NK[numbers_M]
    lengths_M = source.lengths_N[numbers_M]
    ids_M = source.ids_N[numbers_M]
    strangers = absent_ngrams(source, int(absent_M.sum()), rng)
    ngrams_MK[absent_M, :ORDER] = strangers
    lengths_M[absent_M] = ORDER
    ids_M[absent_M] = ngram_ids(strangers)
    return Batch(ngrams_MK, lengths_M, ids_M, np.where(absent_M, -1, numbers_M).astype(np.int64))


def absent_ngrams(source: Dataset, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) u32 n-grams that the dataset does not hold."""
    drawn = rng.integers(0, VOCABULARY, (2 * count + 64, ORDER)).astype(np.uint32)
    return drawn[~source.holds(ngram_ids(drawn))][:count]


def split(queries: Batch, size: int, limit: int | None = None) -> list[Batch]:
    """Batches of exactly `size` look-ups, in order, `limit` at most; a rest is left out."""
    pieces = [slice(start, start + size) for start in range(0, len(queries) - size + 1, size)][:limit]
    return [Batch(queries.ngrams_BK[p], queries.lengths_B[p], queries.ids_B[p], queries.numbers_B[p]) for p in pieces]


def distinct_ngrams(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) u32, in random order, no two with one ID."""
    drawn = rng.integers(0, VOCABULARY, (count + count // 100 + 64, ORDER)).astype(np.uint32)
    _, first = np.unique(ngram_ids(drawn), return_index=True)
    return drawn[np.sort(first)[:count]]
