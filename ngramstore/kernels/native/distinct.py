"""Which rows a batch has to read: each row key once. Meaning: kernels/reference/distinct.py."""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.hashing import mix64


@kernel
def distinct(seen, keys_M, seeds_M, miss_M, miss_keys_M, miss_seeds_M):
    """List each wanted row key once, in order of appearance; miss[m] = its place, -1 where none is wanted. Returns how many.

    `seen`: zeroed scratch, a power of two of at least 2 M.
    """
    mask = seen.shape[0] - 1
    absent = 0
    for m in range(keys_M.shape[0]):
        key = keys_M[m]
        if key < 0:
            miss_M[m] = -1
            continue
        at = np.int64(mix64(np.uint64(key)) & np.uint64(mask))
        while seen[at] != 0 and miss_keys_M[seen[at] - 1] != key:
            at = (at + 1) & mask
        if seen[at] == 0:
            miss_keys_M[absent] = key
            miss_seeds_M[absent] = seeds_M[m]
            absent += 1
            seen[at] = absent
        miss_M[m] = seen[at] - 1
    return absent
