"""Rows that have just been read: kept in the row cache and written where they are wanted. Meaning:
kernels/reference/arrivals.py."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.cache import insert
from ngramstore.kernels.native.dequantize import WRITER, scatter


@kernel
def keep_and_write(state, rows, rows_at_U, keys_U, plan, which_X, places_X, out):
    """`insert` U rows into the cache of a state (empty: there is none), then write them: row which[x] to place places[x].

    A row that is damaged, at -1, is not kept, and zeros are written. A plan without a row writer writes nothing.
    """
    if state.shape[0] > 0:
        insert(state, rows, rows_at_U, keys_U)
    if plan[WRITER] == 0:
        return
    offsets_X = np.empty(which_X.shape[0], np.int64)
    for x in range(which_X.shape[0]):
        offsets_X[x] = rows_at_U[which_X[x]]
    scatter(plan, rows, offsets_X, places_X, out)
