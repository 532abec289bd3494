"""What the probing kernels mean: one ID at a time, newest layer first, pages checked before they are believed.

LAYERS is the table of `ngramstore/kernels/native/index.py`. A row key is `serial << 40 | rank`. -1: absent. Below -1: page p
of line l is bad: -2 - (p * 64 + l).

Shapes: L layers, newest first, M IDs, W positions.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.native.index import (
    BUCKET_BITS,
    DIRECTORY_AT,
    GROUP_BITS,
    GROUPS_AT,
    IS_TOMBSTONE,
    LOW_BITS_AT,
    MAX_LINES,
    NUM_ROWS,
    RANK_BITS,
    REMAINDERS_AT,
    SERIAL,
)
from ngramstore.kernels.reference.hashing import extend_state, seed_state
from ngramstore.kernels.reference.index import PAGE_BYTES, BadPage, bucket_start, check_pages, low_bits, read


def _rank(layer: list[int], identity: int) -> int:
    """Rank of an ID in a layer, -1 if absent; BadPage."""
    if layer[NUM_ROWS] == 0:
        return -1
    width = 32 - layer[BUCKET_BITS]
    bucket = identity >> (64 - layer[BUCKET_BITS])
    entry = layer[DIRECTORY_AT] + 4 * bucket
    check_pages(layer, entry, entry + 7)
    group = layer[GROUPS_AT] + 8 * (bucket >> layer[GROUP_BITS])
    check_pages(layer, group, group + 15)
    start, end = bucket_start(layer, bucket), bucket_start(layer, bucket + 1)
    if not start <= end <= layer[NUM_ROWS]:  # good checksums can still stand over impossible numbers
        raise BadPage(entry // PAGE_BYTES)
    if start == end:
        return -1
    check_pages(layer, layer[REMAINDERS_AT] + 4 * start, layer[REMAINDERS_AT] + 4 * end - 1)
    for rank in range(start, end):
        if read(layer, layer[REMAINDERS_AT] + 4 * rank, 4) == identity >> width & 0xFFFFFFFF:
            if width:
                at = layer[LOW_BITS_AT] + rank * width // 8
                check_pages(layer, at, at + 7)
            if low_bits(layer, rank) == identity & ((1 << width) - 1):
                return rank
    return -1


def _key(layers: list[list[int]], identity: int) -> int:
    """Row key of an ID: the newest layer that has it decides."""
    for line, layer in enumerate(layers):
        try:
            rank = _rank(layer, identity)
        except BadPage as bad:
            return -2 - (bad.page * MAX_LINES + line)
        if rank >= 0:
            return -1 if layer[IS_TOMBSTONE] else layer[SERIAL] << RANK_BITS | rank
    return -1


def find(layers: np.ndarray, ids_M: np.ndarray, keys_M: np.ndarray) -> int:
    """keys[m] = row key of ids[m], -1 if absent; stops at a bad page and leaves its code in keys[m]. Returns rows done."""
    lines = layers.tolist()
    for m, identity in enumerate(ids_M.tolist()):
        keys_M[m] = _key(lines, identity)
        if keys_M[m] < -1:
            return m
    return len(ids_M)


def match(
    layers: np.ndarray,
    tokens_W: np.ndarray,
    room_W: np.ndarray,
    seed: int,
    lengths_mask: int,
    stop_at_miss: bool,
    keys_W: np.ndarray,
    ids_W: np.ndarray,
    lengths_W: np.ndarray,
) -> int:
    """Longest stored n-gram ending at each of W positions: its key, ID and length (none: -1, 0, 0). Returns positions done.

    A bad page ends the search. Positions are taken 32 at a time, all their 1-grams, then all their 2-grams, and so on: the
    position that is reported is the first one of the shortest n-gram that met a bad page.
    """
    lines = layers.tolist()
    keys_W[:], ids_W[:], lengths_W[:] = -1, 0, 0
    for begin in range(0, len(tokens_W), 32):
        states = {w: seed_state(int(seed)) for w in range(begin, min(begin + 32, len(tokens_W)))}
        for n in range(1, int(room_W[begin : begin + 32].max()) + 1):
            states = {w: extend_state(states[w], int(tokens_W[w - n + 1])) for w in states if n <= room_W[w]}
            if not lengths_mask >> n & 1:
                continue
            for w in list(states):
                key = _key(lines, states[w])
                if key < -1:
                    keys_W[w] = key
                    return w
                if key >= 0:
                    keys_W[w], ids_W[w], lengths_W[w] = key, states[w], n
                elif stop_at_miss:
                    del states[w]
    return len(tokens_W)
