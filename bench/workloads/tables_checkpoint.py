"""The files of the synthetic Engram checkpoint: random codes and scales, written; and a store's rows compared with them.

Shapes: M rows asked for, R bytes of a row.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

import ngramstore as ngs
from bench import check

_CODES, _SCALES = 256, 8
"""Bytes of a row."""
_WRITE_BYTES = 1 << 26


def write_layer(path: Path, layer: int, num_rows: int, seed: int) -> None:
    codes, end = num_rows * 256, num_rows * 264
    stem = f"layers.{layer}.engram.embed"
    header = json.dumps(
        {
            f"{stem}.weight": {"dtype": "F8_E4M3", "shape": [num_rows, _CODES], "data_offsets": [0, codes]},
            f"{stem}.scale": {"dtype": "F8_E8M0", "shape": [num_rows, 8], "data_offsets": [codes, end]},
        }
    ).encode()
    rng = np.random.default_rng([seed, layer])
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for at in range(0, end, _WRITE_BYTES):
            file.write(rng.integers(0, 126, min(_WRITE_BYTES, end - at), np.uint8).tobytes())
        os.fsync(file.fileno())


def must_be_the_checkpoint_s(store: ngs.Store, checkpoint: Path, numbers_M: np.ndarray) -> int:
    """Compare rows with the checkpoint's bytes, as they are stored and as they are served; returns how many. Raises WrongAnswer.

    The files are read, not mapped: a map would keep their pages in memory.
    """
    want_MR = np.empty((len(numbers_M), _CODES + _SCALES), np.uint8)
    first = 0
    for path in sorted(checkpoint.glob("*.safetensors"), key=lambda path: int(path.stem.partition("-")[2])):
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            num_rows = (path.stat().st_size - start) // (_CODES + _SCALES)
            for m in np.flatnonzero((numbers_M >= first) & (numbers_M < first + num_rows)):
                row = int(numbers_M[m]) - first
                for at, width, begin in ((0, _CODES, start), (_CODES, _SCALES, start + num_rows * _CODES)):
                    file.seek(begin + row * width)
                    want_MR[m, at : at + width] = np.frombuffer(file.read(width), np.uint8)
        first += num_rows
    differs_M = (store.rows_encoded(numbers_M) != want_MR).any(axis=1)
    if differs_M.any():
        raise check.WrongAnswer(f"{store.path}: row {numbers_M[int(differs_M.argmax())]} is not the checkpoint's")
    all_M = np.ones(len(numbers_M), np.bool_)
    return check.must_match(str(store.path), store.rows(numbers_M), all_M, store.spec.codec.decode(want_MR), all_M)
