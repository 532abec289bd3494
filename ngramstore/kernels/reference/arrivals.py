"""What keeping and writing rows that have just been read means.

Shapes: U rows read, X positions that want one of them.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.reference.cache import insert, put_out
from ngramstore.kernels.reference.dequantize import OUT_BYTES, WRITER


def keep_and_write(
    state: np.ndarray,
    rows: np.ndarray,
    rows_at_U: np.ndarray,
    keys_U: np.ndarray,
    plan: np.ndarray,
    which_X: np.ndarray,
    places_X: np.ndarray,
    out: np.ndarray,
) -> None:
    """`insert` U rows into the cache of a state (empty: there is none), then write them: row which[x] to place places[x].

    A row that is damaged, at -1, is not kept, and zeros are written. A plan without a row writer writes nothing.
    """
    if len(state):
        insert(state, rows, rows_at_U, keys_U)
    if plan[WRITER]:
        source, target, out_bytes = rows.ctypes.data, out.ctypes.data, int(plan[OUT_BYTES])
        for which, place in zip(which_X.tolist(), places_X.tolist(), strict=True):
            at = int(rows_at_U[which])
            put_out(plan, 0 if at < 0 else source + at, target + place * out_bytes)
