"""The rows that the cases of workload `store` share: a million of 1,024 values, unless the command line says otherwise."""

from __future__ import annotations

from pathlib import Path

from bench import data
from bench.rows import row_bytes
from bench.setup import Setup

DIM = 1024
KEYS_NOTE = "peers get ready-made u64 keys; ngramstore hashes token ids inside the timed call"
OUT_NOTE = "every call fills one float32 (B, D) array given by the caller and returns a bool mask; one thread"


def num_keys(setup: Setup) -> int:
    """How many rows."""
    return setup.num_keys or setup.pick(1_000_000, 40_000)


def dim(setup: Setup) -> int:
    """How wide they are."""
    return setup.dim or DIM


def source(setup: Setup, codec: str = "int8") -> Path:
    """Folder of the data, written unless it is there."""
    return data.prepare(setup.root, num_keys(setup), dim(setup), setup.seed, codec)


def tiny(setup: Setup, dim: int) -> Path:
    """Folder of a few rows, to import and compile with before anything is timed."""
    return data.prepare(setup.root, 2000, dim, setup.seed)


def tenth_bytes(setup: Setup) -> int:
    """Of a cache for a tenth of the rows."""
    return num_keys(setup) * row_bytes(dim(setup)) // 10
