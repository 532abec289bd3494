"""Small stores and n-grams for tests of the core, made the same way everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ngramstore.store.building.build import Builder


def some_ngrams(count: int, max_n: int = 3, seed: int = 0, vocabulary: int = 50) -> list[tuple[int, ...]]:
    """Distinct n-grams of 1 .. max_n tokens, in no order."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        length = int(rng.integers(1, max_n + 1))
        found[tuple(rng.integers(0, vocabulary, length).tolist())] = None
    return list(itertools.islice(found, count))


def some_rows(count: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Gaussian rows (count, dim) f32."""
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def build(path: Path, ngrams: list[tuple[int, ...]], rows: np.ndarray, *, step: int = 10_000, **options) -> Path:
    """A finished store of those rows, added `step` at a time."""
    defaults = {"dim": rows.shape[1], "max_n": 3, "codec": "f32", "compression": "none", "threads": 1}
    with Builder(path, **{**defaults, **options}) as builder:
        for at in range(0, len(ngrams), step):
            builder.add(ngrams[at : at + step], rows[at : at + step])
    return path


def build_rows(path: Path, rows: np.ndarray, **options) -> Path:
    """A finished row-addressed store."""
    defaults = {"dim": rows.shape[1], "codec": "f32", "compression": "none", "addressing": "row", "threads": 1}
    with Builder(path, **{**defaults, **options}) as builder:
        builder.add_rows(rows)
    return path


def files_of(path: Path) -> dict[str, bytes]:
    """All files of a store but the lock, which holds a process number."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != "LOCK"}
