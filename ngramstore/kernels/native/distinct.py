"""Which rows a batch has to read: each row key once. Meaning: kernels/reference/distinct.py.

Shapes: M wanted rows, U row keys listed.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.hashing import mix64


@kernel
def distinct(seen, keys_M, seeds_M, place_M, keys_U, seeds_U):
    """List each wanted row key once, with its seed, in order of appearance; place[m] = where in that list, -1 where
    none is wanted.

    Returns how many are listed. `seen`: zeroed scratch, a power of two of at least 2 M.
    """
    mask = seen.shape[0] - 1
    count = 0
    for m in range(keys_M.shape[0]):
        key = keys_M[m]
        if key < 0:
            place_M[m] = -1
            continue
        at = np.int64(mix64(np.uint64(key)) & np.uint64(mask))
        while seen[at] != 0 and keys_U[seen[at] - 1] != key:
            at = (at + 1) & mask
        if seen[at] == 0:
            keys_U[count] = key
            seeds_U[count] = seeds_M[m]
            count += 1
            seen[at] = count
        place_M[m] = seen[at] - 1
    return count
