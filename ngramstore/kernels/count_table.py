"""The tables that the kernels of mining and recording fill: (C, 2) u64, a key and its value, EMPTY where a slot is free."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native.mining import EMPTY


def empty_table(num_slots: int) -> np.ndarray:
    """A table (C, 2) whose slots are all free; values are written with their keys."""
    table_C2 = np.empty((num_slots, 2), np.uint64)
    table_C2[:, 0] = EMPTY
    return table_C2
