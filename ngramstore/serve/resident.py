"""All rows of a view's files in memory, encoded.

Shapes: N rows of a layer, B bytes of an encoded row.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.store.layers.layer import Layer
from ngramstore.store.view import View

STAGING_BYTES = 16 << 20
"""Read at a time."""


class Resident:
    """All rows of a view's files in memory, encoded: no reads, no cache, no bookkeeping.

    A damaged row raises DamagedRows; with `allow_damage` its key is in `damaged`: looking it up reads the file, which
    reports the damage.
    """

    def __init__(self, view: View, previous: Resident | None = None, *, allow_damage: bool = False) -> None:
        self.serials = [layer.serial for layer in view.file_layers]
        known = dict(zip(previous.serials, previous.rows, strict=True)) if previous else {}
        bad: list[int] = previous.damaged.tolist() if previous else []
        self.rows: list[np.ndarray] = [
            known[layer.serial] if layer.serial in known else _load(layer, bad if allow_damage else None)
            for layer in view.file_layers
        ]
        damaged = np.array(bad, np.int64)
        self.damaged: np.ndarray = damaged[np.isin(damaged >> RANK_BITS, self.serials)]

    @property
    def is_one_whole_layer(self) -> bool:
        """No overlay, no damaged row: a row's place follows from its rank."""
        return len(self.rows) == 1 and not len(self.damaged)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(rows.nbytes for rows in self.rows)


def _load(layer: Layer, damaged: list[int] | None) -> np.ndarray:
    """All encoded rows of a layer, one after the other: (N * B,) u8; row keys of damaged ones go to `damaged`, if given."""
    rows = np.empty((layer.num_rows, layer.rows.row_bytes), np.uint8)
    step = max(64, STAGING_BYTES // layer.rows.row_bytes)
    for at in range(0, layer.num_rows, step):
        count = min(step, layer.num_rows - at)
        bad: list[int] | None = None if damaged is None else []
        rows[at : at + count] = layer.read_encoded(at, count, bad=bad)
        if damaged is not None and bad:
            damaged.extend(layer.serial << RANK_BITS | rank for rank in bad)
    return rows.reshape(-1)
