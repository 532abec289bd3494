"""Two n-grams with one ID: found before a change is written, by comparing tokens with what is stored.

Shapes: M n-grams, N tokens of the longest.
"""

from __future__ import annotations

import numpy as np

from ngramstore.errors import HashCollision
from ngramstore.hashing import ngram_ids
from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
from ngramstore.store.journal.journal import Journal
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.view import View
from ngramstore.windows import NgramArrays


def distinct(tokens_MN: np.ndarray, lengths_M: np.ndarray, spec: Spec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending IDs of what is left when of equal n-grams the last stays, their tokens (M, K) and positions."""
    ids = ngram_ids(tokens_MN, lengths_M, spec.seed)
    wide = np.zeros((len(ids), spec.max_n), np.uint32)
    wide[:, : tokens_MN.shape[1]] = tokens_MN
    kept = last_of_each(ids, (wide, lengths_M), spec.seed)
    return ids[kept], wide[kept], kept


def last_of_each(ids_M: np.ndarray, ngrams: NgramArrays, seed: int) -> np.ndarray:
    """Positions of the last of each ID, by ascending ID; HashCollision if equal IDs have different n-grams."""
    order = np.argsort(ids_M, kind="stable")
    is_equal = ids_M[order][1:] == ids_M[order][:-1]
    left, right = order[:-1][is_equal], order[1:][is_equal]
    refuse_different(_take(ngrams, left), _take(ngrams, right), seed)
    return order[np.append(~is_equal, np.ones(min(1, len(ids_M)), bool))]


def state_of(view: View, journal: Journal | None, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row keys of published rows that are not deleted since (M,) i64, and which were put since (M,) bool."""
    keys_M = view.find(ids_M)
    is_put_M = np.zeros(len(ids_M), bool)
    if journal is not None:
        is_put_M, is_delete_M = journal.find(ids_M)
        keys_M[is_delete_M] = -1  # its ID is free
        is_put_M = is_put_M & ~is_delete_M
    return keys_M, is_put_M


def refuse_collisions(
    view: View,
    journal: Journal | None,
    ids_M: np.ndarray,
    keys_M: np.ndarray,
    is_put_M: np.ndarray,
    ngrams: NgramArrays,
) -> None:
    """HashCollision if an n-gram with one of these IDs has other tokens; keys, is_put: what `state_of` says of them."""
    seed = view.manifest.spec.seed
    where = np.flatnonzero((keys_M >= 0) & ~is_put_M)
    refuse_different(published_ngrams(view, keys_M[where]), _take(ngrams, where), seed)
    where = np.flatnonzero(is_put_M)
    if len(where):
        assert journal is not None
        pending = journal.get(ids_M[where])
        refuse_different((pending.tokens, pending.lengths), _take(ngrams, where), seed)


def published_ngrams(view: View, keys_M: np.ndarray) -> NgramArrays:
    """The n-grams of M published rows by key, (M,) i64. DamagedStore names a bad block of tokens."""
    tokens, lengths = np.zeros((len(keys_M), view.manifest.spec.max_n), np.uint32), np.zeros(len(keys_M), np.uint8)
    for layer in view.file_layers:
        where = np.flatnonzero(keys_M >> RANK_BITS == layer.serial)
        if len(where):
            assert layer.tokens is not None
            tokens[where], lengths[where] = layer.tokens.rows(keys_M[where] & RANK_MASK)
    return tokens, lengths


def are_equal(left: NgramArrays, right: NgramArrays) -> np.ndarray:
    """Which of M n-grams are the same on both sides: (M,) bool."""
    return (left[1] == right[1]) & (left[0] == right[0]).all(axis=1)


def refuse_different(left: NgramArrays, right: NgramArrays, seed: int) -> None:
    """HashCollision naming the first two n-grams that are not equal."""
    same = are_equal(left, right)
    if not same.all():
        i = int(np.flatnonzero(~same)[0])
        names = [tuple(tokens[i, : lengths[i]].tolist()) for tokens, lengths in (left, right)]
        raise HashCollision.between(names[0], names[1], seed)


def _take(ngrams: NgramArrays, which: np.ndarray) -> NgramArrays:
    return ngrams[0][which], ngrams[1][which]
