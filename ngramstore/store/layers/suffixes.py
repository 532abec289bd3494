"""Whether a set of n-grams is suffix-closed: then a longest match may stop at its first miss.

Shapes: M n-grams, N tokens of the longest.
"""

from __future__ import annotations

import numpy as np

from ngramstore.hashing import ngram_ids
from ngramstore.kernels.native import index as native_index
from ngramstore.kernels.native import probe
from ngramstore.store.layers.index import Index


def suffixes_are_stored(index: Index, tokens_MN: np.ndarray, lengths_M: np.ndarray, shortest: int, seed: int) -> bool:
    """Whether each n-gram longer than `shortest` has its (n-1)-token suffix in the index."""
    longer = lengths_M > shortest
    ids = ngram_ids(tokens_MN[longer, 1:], lengths_M[longer] - 1, seed)
    keys = np.empty(len(ids), np.int64)
    done = probe.find(index.layer[None], ids, keys)
    if done < len(ids):
        raise index.damaged(int(-2 - keys[done]) // native_index.MAX_LINES)
    return bool((keys >= 0).all())
