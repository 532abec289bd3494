"""What the kernels for the planes of an index mean: numbers out of bytes, pages checked before they are believed.

LAYERS is the table of `ngramstore/kernels/native/index.py`, columns included; docs/format.md, section Index, draws the
planes.

Shapes: L layers, newest first, M IDs.
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
    LENGTHS_AT,
    LOW_BITS_AT,
    OFFSETS_AT,
    PAGE_OK_ADDRESS,
    REMAINDERS_AT,
    ROW_BYTES,
    ROWS_DATA_AT,
)
from ngramstore.kernels.reference.hashing import xxh64

PAGE_BYTES = 4096


class BadPage(Exception):
    """A page fails its checksum, or says what cannot be."""

    def __init__(self, page: int) -> None:
        self.page = page


def read(layer: list[int], at: int, size: int) -> int:
    """The little-endian number of `size` bytes at a file position."""
    return int.from_bytes(ctypes.string_at(layer[FILE_ADDRESS] + at, size), "little")


def check_pages(layer: list[int], first_byte: int, last_byte: int) -> None:
    """Verify each page of a byte range that is not yet known to be good: XXH64 seeded with the page's number."""
    for page in range(first_byte // PAGE_BYTES, last_byte // PAGE_BYTES + 1):
        is_good = (ctypes.c_uint8 * 1).from_address(layer[PAGE_OK_ADDRESS] + page)
        if not is_good[0]:
            data = ctypes.string_at(layer[FILE_ADDRESS] + page * PAGE_BYTES, PAGE_BYTES)
            got = xxh64(np.frombuffer(data, np.uint8), 0, PAGE_BYTES, page) & 0xFFFFFFFF
            if got != read(layer, layer[CHECKSUMS_AT] + 4 * (page - 1), 4):
                raise BadPage(page)
            is_good[0] = 1


def bucket_start(layer: list[int], bucket: int) -> int:
    """Rank of the first ID of a bucket."""
    base = read(layer, layer[GROUPS_AT] + 8 * (bucket >> layer[GROUP_BITS]), 8)
    return base + read(layer, layer[DIRECTORY_AT] + 4 * bucket, 4)


def low_bits(layer: list[int], rank: int) -> int:
    """The last bits of the ID of a rank."""
    width = 32 - layer[BUCKET_BITS]
    word = read(layer, layer[LOW_BITS_AT] + rank * width // 8, 8)
    return word >> (rank * width % 8) & ((1 << width) - 1)


def ids_of_ranks(layers: np.ndarray, line: int, first: int, ids_M: np.ndarray) -> int:
    """ids[m] = ID of rank first + m, put together from its bucket, remainder and low bits. Returns -1, or the bad page."""
    layer = layers[line].tolist()
    if len(ids_M) == 0:
        return -1
    end, width = first + len(ids_M), 32 - layer[BUCKET_BITS]
    try:
        check_pages(layer, layer[GROUPS_AT], layer[REMAINDERS_AT] - 1)
        check_pages(layer, layer[REMAINDERS_AT] + 4 * first, layer[REMAINDERS_AT] + 4 * end - 1)
        if width:
            check_pages(layer, layer[LOW_BITS_AT] + first * width // 8, layer[LOW_BITS_AT] + (end - 1) * width // 8 + 7)
    except BadPage as bad:
        return bad.page
    starts = [bucket_start(layer, bucket) for bucket in range(1 << layer[BUCKET_BITS])]
    for m, rank in enumerate(range(first, end)):
        bucket = int(np.searchsorted(starts, rank, side="right")) - 1
        remainder = read(layer, layer[REMAINDERS_AT] + 4 * rank, 4)
        ids_M[m] = bucket << (64 - layer[BUCKET_BITS]) | remainder << width | low_bits(layer, rank)
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
        check_pages(layer, at, at + 7)
        check_pages(layer, layer[LENGTHS_AT] + 2 * first, layer[LENGTHS_AT] + 2 * rank + 1)
    except BadPage as bad:
        return 0, 0, bad.page
    lengths = [read(layer, layer[LENGTHS_AT] + 2 * other, 2) for other in range(first, rank + 1)]
    return read(layer, at, 8) + sum(length + 4 for length in lengths[:-1]), lengths[-1], -1
