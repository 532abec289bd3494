"""Whether a set of n-grams is suffix-closed: then a longest match may stop at its first miss.

Shapes: M n-grams, N tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ngramstore.hashing import ngram_ids
from ngramstore.kernels.native import probe
from ngramstore.store.layers.index import Index, page_and_line
from ngramstore.windows import NgramArrays


def is_closed(index: Index, batches: Iterable[NgramArrays], length_counts: Sequence[int], seed: int) -> bool:
    """Whether all n-grams, which come in batches of tokens (M, N) and lengths (M,), have their endings; length_counts:
    how many of each length."""
    stored = [length for length, count in enumerate(length_counts) if count]
    if len(stored) <= 1:
        return True
    return all(suffixes_are_stored(index, tokens, lengths, stored[0], seed) for tokens, lengths in batches)


def suffixes_are_stored(index: Index, tokens_MN: np.ndarray, lengths_M: np.ndarray, shortest: int, seed: int) -> bool:
    """Whether each n-gram longer than `shortest` has its (n-1)-token suffix in the index."""
    longer = lengths_M > shortest
    ids = ngram_ids(tokens_MN[longer, 1:], lengths_M[longer] - 1, seed)
    keys = np.empty(len(ids), np.int64)
    done = probe.find(index.line[None], ids, keys)
    if done < len(ids):
        page, _ = page_and_line(int(keys[done]))
        raise index.damaged(page)
    return bool((keys >= 0).all())
