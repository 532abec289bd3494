"""Whether a manifest and the layers that it names agree, where each is well by itself: what they say of the same rows twice.

Shapes: M rows of a chunk, O rows of the overlay, T tombstones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ngramstore.hashing import ngram_ids, row_numbers
from ngramstore.kernels.native import index as columns
from ngramstore.kernels.native import probe
from ngramstore.store.layers.layer import Layer
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.repair.worn import Chunk, WornLayer
from ngramstore.store.repair.worn_index import WornIndex


class Agreement:
    """Takes every row that a look-up can find, chunk by chunk, and says at the end what the manifest says wrongly."""

    def __init__(
        self, manifest: Manifest, base: WornLayer | Layer | str, overlay: WornLayer | None, tombstones: WornIndex | None
    ) -> None:
        self._manifest = manifest
        self._counts = np.zeros(manifest.spec.max_n + 1, np.int64)
        self._shortest = next((n for n, count in enumerate(manifest.length_counts) if count), manifest.spec.max_n)
        self._lacks_endings = False
        probed = [base.index] if isinstance(base, WornLayer) and manifest.spec.is_ngram else []
        probed += [overlay.index] if overlay is not None else []
        probed += [tombstones] if tombstones is not None else []
        self._probed = probed[::-1]  # held for their addresses; in the order in which a look-up goes through them
        is_needed = manifest.suffix_closed and manifest.spec.is_ngram
        self._lines = _lines_of(self._probed, tombstones) if is_needed else None

    def add(self, chunk: Chunk, is_live_M: np.ndarray) -> None:
        """The rows of a chunk that no other layer changes."""
        if self._manifest.spec.is_ngram:
            self._counts += np.bincount(chunk.lengths[is_live_M], minlength=len(self._counts))
        if self._lines is not None and not self._lacks_endings:
            at = np.flatnonzero(is_live_M & chunk.has_tokens & (chunk.lengths > self._shortest))
            if len(at):
                ids = ngram_ids(chunk.tokens[at, 1:], chunk.lengths[at] - 1, self._manifest.spec.seed)
                keys = np.empty(len(ids), np.int64)
                probe.find(self._lines, ids, keys)
                self._lacks_endings = bool((keys < 0).any())

    def faults(
        self, overlay_ids_O: np.ndarray, tombstones_T: np.ndarray, num_live: int, num_dead: int
    ) -> Iterator[str]:
        """What is wrong. num_live, num_dead: rows of the base that neither overlay nor tombstones change, and that the
        latter do."""
        manifest, spec = self._manifest, self._manifest.spec
        num_rows = num_live + len(overlay_ids_O) if spec.is_ngram else manifest.base.num_rows
        if num_dead != len(tombstones_T):
            yield f"{len(tombstones_T) - num_dead} tombstones belong to no row of the base"
        if not spec.is_ngram and (row_numbers(overlay_ids_O) >= num_rows).any():
            yield "the overlay holds rows that the base does not have"
        if num_rows != manifest.num_rows:
            yield f"it says {manifest.num_rows} rows, there are {num_rows}"
        counts = tuple(self._counts.tolist())
        if spec.has_tokens and counts != manifest.length_counts:
            yield f"it says {manifest.length_counts} n-grams by length, there are {counts}"
        if spec.is_ngram and not spec.has_tokens and sum(manifest.length_counts) < num_rows:  # more: an upper bound
            yield f"it says {manifest.length_counts} n-grams by length, there are {num_rows} in all"
        if self._lacks_endings:
            yield "it says that the n-grams are closed under suffixes, and they are not"


def _lines_of(probed: list[WornIndex], tombstones: WornIndex | None) -> np.ndarray | None:
    """The kernels' table of these indexes, (layers, columns) i64; None where one of them is damaged: it may lack what
    was there."""
    if not probed or any(index.faults for index in probed):
        return None
    lines = np.stack([index.index.line for index in probed])
    lines[:, columns.IS_TOMBSTONE] = [index is tombstones for index in probed]
    return lines
