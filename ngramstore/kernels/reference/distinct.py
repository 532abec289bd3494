"""What listing each row key of a batch once means.

Shapes: M wanted rows.
"""

from __future__ import annotations

import numpy as np


def distinct(
    seen: np.ndarray,
    keys_M: np.ndarray,
    seeds_M: np.ndarray,
    miss_M: np.ndarray,
    miss_keys_M: np.ndarray,
    miss_seeds_M: np.ndarray,
) -> int:
    """List each wanted row key once, in order of appearance; miss[m] = its place, -1 where none is wanted. Returns how many."""
    places: dict[int, int] = {}
    for m, key in enumerate(keys_M.tolist()):
        if key >= 0 and key not in places:
            miss_keys_M[len(places)], miss_seeds_M[len(places)] = key, seeds_M[m]
            places[key] = len(places)
        miss_M[m] = places.get(key, -1)
    return len(places)
