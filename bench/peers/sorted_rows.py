"""Files that several peers share: IDs in ascending order, and the stored rows in that order, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.data import Dataset

LAYOUT = "sorted-rows"
_CHUNK = 1 << 15


def write(source: Dataset, folder: Path) -> None:
    """ids.npy (N,) u64 ascending and rows.bin, N * R bytes."""
    order_N = np.argsort(source.ids_N)
    np.save(folder / "ids.npy", source.ids_N[order_N])
    with open(folder / "rows.bin", "wb") as file:
        for start in range(0, len(order_N), _CHUNK):
            source.stored_NR[order_N[start : start + _CHUNK]].tofile(file)


def read_ids(folder: Path) -> np.ndarray:
    """(N,) u64, in memory."""
    return np.load(folder / "ids.npy")


def find(ids_N: np.ndarray, wanted_B: np.ndarray) -> np.ndarray:
    """Row numbers (B,) i64 of wanted IDs by binary search, -1 where absent."""
    place_B = np.searchsorted(ids_N, wanted_B)
    np.minimum(place_B, len(ids_N) - 1, out=place_B)
    return np.where(ids_N[place_B] == wanted_B, place_B, -1)
