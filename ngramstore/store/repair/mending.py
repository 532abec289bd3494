"""One flipped bit, found from the checksum that fails, and flipped back.

A checksum of 32 bits takes other damage for one flipped bit once in 2**32 / bits tries: 2**17 for a page, 2**9 for a MiB. What
comes out is checked against other files, or has to parse; so what is mended is certain enough to use and to say so.
"""

from __future__ import annotations

import zlib

import numpy as np

from ngramstore.hashing import checksums

_FLIPS = {zlib.crc32(bytes([1 << bit])) ^ zlib.crc32(b"\0"): bit for bit in range(8)}
"""How the CRC-32 changes with each bit of the last byte."""
_TABLE = [zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)]
_BYTE_OF_TOP = {value >> 24: byte for byte, value in enumerate(_TABLE)}


def mended_crc(data: bytes, crc: int) -> bytes | None:
    """`data`, or `data` with the one bit flipped back that gives it this CRC-32; None if there is no such bit.

    A CRC is linear: how it differs tells the bit alone, whatever the other bytes are. A byte further from the end, the
    difference is one step of the register back: a pass over 1 MiB takes a few tenths of a second.
    """
    difference = zlib.crc32(data) ^ crc
    if difference == 0:
        return data
    for at in range(len(data) - 1, -1, -1):
        if difference in _FLIPS:
            right = bytearray(data)
            right[at] ^= 1 << _FLIPS[difference]
            return bytes(right)
        byte = _BYTE_OF_TOP[difference >> 24]
        difference = (difference ^ _TABLE[byte]) << 8 | byte
    return None


def mended_piece(data: np.ndarray, seed: int, wanted: int) -> np.ndarray | None:
    """As `mended_crc`, for (bytes,) u8 with a known checksum seeded with `seed`: it tries each bit."""
    size, step = len(data), 256
    for first in range(0, 8 * size, step):
        bits = np.arange(first, min(8 * size, first + step))
        trials = np.tile(data, (len(bits), 1))
        trials[np.arange(len(bits)), bits >> 3] ^= (1 << (bits & 7)).astype(np.uint8)
        starts = np.arange(len(bits)) * size
        sums = checksums(trials.reshape(-1), starts, np.full(len(bits), size), np.full(len(bits), seed, np.uint64))
        hits = np.flatnonzero(sums == wanted)
        if len(hits):
            return trials[hits[0]]
    return None
