"""What listing each row key of a batch once means.

Shapes: M wanted rows, U row keys listed.
"""

from __future__ import annotations

import numpy as np


def distinct(
    seen: np.ndarray,
    keys_M: np.ndarray,
    seeds_M: np.ndarray,
    place_M: np.ndarray,
    keys_U: np.ndarray,
    seeds_U: np.ndarray,
) -> int:
    """List each wanted row key once, with its seed, in order of appearance; place[m] = where in that list, -1 where
    none is wanted.

    Returns how many are listed.
    """
    places: dict[int, int] = {}
    for m, key in enumerate(keys_M.tolist()):
        if key >= 0 and key not in places:
            keys_U[len(places)], seeds_U[len(places)] = key, seeds_M[m]
            places[key] = len(places)
        place_M[m] = places.get(key, -1)
    return len(places)
