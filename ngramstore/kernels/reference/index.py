"""What the index kernels mean: one ID at a time, through the bytes of the planes, pages checked before they are believed.

LAYERS is the table of `ngramstore/kernels/native/index.py`, columns included; docs/format.md, section Index, draws the
planes. A row key is `serial << 40 | rank`. -1: absent. Below -1: page p of line l is bad: -2 - (p * 64 + l).

Shapes: L layers, newest first, M IDs, W positions.
"""

from __future__ import annotations

import ctypes

import numpy as np

from ngramstore.kernels.native.index import (
    BUCKET_BITS,
    CHECKSUMS_AT,
    DIRECTORY_AT,
    FILE_ADDRESS,
    GROUP_BITS,
    GROUPS_AT,
    IS_TOMBSTONE,
    LENGTHS_AT,
    LOW_BITS_AT,
    MAX_LINES,
    NUM_ROWS,
    OFFSETS_AT,
    PAGE_OK_ADDRESS,
    RANK_BITS,
    REMAINDERS_AT,
    ROW_BYTES,
    ROWS_DATA_AT,
    SERIAL,
)
from ngramstore.kernels.reference.hashing import extend_state, seed_state, xxh64

_PAGE_BYTES = 4096


class _BadPage(Exception):
    """A page fails its checksum, or says what cannot be."""

    def __init__(self, page: int) -> None:
        self.page = page


def _read(layer: list[int], at: int, size: int) -> int:
    """The little-endian number of `size` bytes at a file position."""
    return int.from_bytes(ctypes.string_at(layer[FILE_ADDRESS] + at, size), "little")


def _check_pages(layer: list[int], first_byte: int, last_byte: int) -> None:
    """Verify each page of a byte range that is not yet known to be good: XXH64 seeded with the page's number."""
    for page in range(first_byte // _PAGE_BYTES, last_byte // _PAGE_BYTES + 1):
        is_good = (ctypes.c_uint8 * 1).from_address(layer[PAGE_OK_ADDRESS] + page)
        if not is_good[0]:
            data = ctypes.string_at(layer[FILE_ADDRESS] + page * _PAGE_BYTES, _PAGE_BYTES)
            got = xxh64(np.frombuffer(data, np.uint8), 0, _PAGE_BYTES, page) & 0xFFFFFFFF
            if got != _read(layer, layer[CHECKSUMS_AT] + 4 * (page - 1), 4):
                raise _BadPage(page)
            is_good[0] = 1


def _bucket_start(layer: list[int], bucket: int) -> int:
    """Rank of the first ID of a bucket."""
    base = _read(layer, layer[GROUPS_AT] + 8 * (bucket >> layer[GROUP_BITS]), 8)
    return base + _read(layer, layer[DIRECTORY_AT] + 4 * bucket, 4)


def _low_bits(layer: list[int], rank: int) -> int:
    """The last bits of the ID of a rank."""
    width = 32 - layer[BUCKET_BITS]
    word = _read(layer, layer[LOW_BITS_AT] + rank * width // 8, 8)
    return word >> (rank * width % 8) & ((1 << width) - 1)


def _rank(layer: list[int], identity: int) -> int:
    """Rank of an ID in a layer, -1 if absent; _BadPage."""
    if layer[NUM_ROWS] == 0:
        return -1
    width = 32 - layer[BUCKET_BITS]
    bucket = identity >> (64 - layer[BUCKET_BITS])
    entry = layer[DIRECTORY_AT] + 4 * bucket
    _check_pages(layer, entry, entry + 7)
    group = layer[GROUPS_AT] + 8 * (bucket >> layer[GROUP_BITS])
    _check_pages(layer, group, group + 15)
    start, end = _bucket_start(layer, bucket), _bucket_start(layer, bucket + 1)
    if not start <= end <= layer[NUM_ROWS]:  # good checksums can still stand over impossible numbers
        raise _BadPage(entry // _PAGE_BYTES)
    if start == end:
        return -1
    _check_pages(layer, layer[REMAINDERS_AT] + 4 * start, layer[REMAINDERS_AT] + 4 * end - 1)
    for rank in range(start, end):
        if _read(layer, layer[REMAINDERS_AT] + 4 * rank, 4) == identity >> width & 0xFFFFFFFF:
            if width:
                at = layer[LOW_BITS_AT] + rank * width // 8
                _check_pages(layer, at, at + 7)
            if _low_bits(layer, rank) == identity & ((1 << width) - 1):
                return rank
    return -1


def _key(layers: list[list[int]], identity: int) -> int:
    """Row key of an ID: the newest layer that has it decides."""
    for line, layer in enumerate(layers):
        try:
            rank = _rank(layer, identity)
        except _BadPage as bad:
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


def ids_of_ranks(layers: np.ndarray, line: int, first: int, ids_M: np.ndarray) -> int:
    """ids[m] = ID of rank first + m, put together from its bucket, remainder and low bits. Returns -1, or the bad page."""
    layer = layers[line].tolist()
    if len(ids_M) == 0:
        return -1
    end, width = first + len(ids_M), 32 - layer[BUCKET_BITS]
    try:
        _check_pages(layer, layer[GROUPS_AT], layer[REMAINDERS_AT] - 1)
        _check_pages(layer, layer[REMAINDERS_AT] + 4 * first, layer[REMAINDERS_AT] + 4 * end - 1)
        if width:
            _check_pages(
                layer, layer[LOW_BITS_AT] + first * width // 8, layer[LOW_BITS_AT] + (end - 1) * width // 8 + 7
            )
    except _BadPage as bad:
        return bad.page
    starts = [_bucket_start(layer, bucket) for bucket in range(1 << layer[BUCKET_BITS])]
    for m, rank in enumerate(range(first, end)):
        bucket = int(np.searchsorted(starts, rank, side="right")) - 1
        remainder = _read(layer, layer[REMAINDERS_AT] + 4 * rank, 4)
        ids_M[m] = bucket << (64 - layer[BUCKET_BITS]) | remainder << width | _low_bits(layer, rank)
    return -1


def pack_low_bits(ids_M: np.ndarray, width: int, packed: np.ndarray) -> None:
    """The last `width` bits of M IDs, packed from the lowest bit up, into a zeroed u8 buffer."""
    bits = sum((identity & ((1 << width) - 1)) << (m * width) for m, identity in enumerate(ids_M.tolist()))
    size = -(-len(ids_M) * width // 8)
    packed[:size] = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)


def row_place(layers: np.ndarray, line: int, rank: int) -> tuple[int, int, int]:
    """(file offset, stored bytes without the checksum, -1) of a row, or (0, 0, bad page)."""
    layer = layers[line].tolist()
    if layer[OFFSETS_AT] == 0:
        return layer[ROWS_DATA_AT] + rank * (layer[ROW_BYTES] + 4), layer[ROW_BYTES], -1
    first = rank // 64 * 64
    at = layer[OFFSETS_AT] + 8 * (rank // 64)
    try:
        _check_pages(layer, at, at + 7)
        _check_pages(layer, layer[LENGTHS_AT] + 2 * first, layer[LENGTHS_AT] + 2 * rank + 1)
    except _BadPage as bad:
        return 0, 0, bad.page
    lengths = [_read(layer, layer[LENGTHS_AT] + 2 * other, 2) for other in range(first, rank + 1)]
    return _read(layer, at, 8) + sum(length + 4 for length in lengths[:-1]), lengths[-1], -1
