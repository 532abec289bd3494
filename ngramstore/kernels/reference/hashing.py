"""What the hashing kernels mean, in plain Python and numpy.

mix64 is variant 13 of David Stafford's mixers ("Better bit mixing", 2011), the finaliser of SplitMix64
(Steele, Lea and Flood, OOPSLA 2014). XXH64 is Yann Collet's, github.com/Cyan4973/xxHash, doc/xxhash_spec.md.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def mix64(z: int) -> int:
    """Stafford's variant 13: a bijection of 64-bit numbers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def seed_state(seed: int) -> int:
    """Hash state before the first token."""
    return mix64((seed + _GAMMA) & _MASK)


def extend_state(state: int, token: int) -> int:
    """Hash state after one more token to the left."""
    return mix64(state ^ (token + 1))


def ngram_ids(tokens_WN: np.ndarray, lengths_W: np.ndarray, seed: int, out_W: np.ndarray) -> None:
    """out[w] = ID of the first lengths[w] tokens of tokens[w]."""
    for w in range(len(tokens_WN)):
        state = seed_state(int(seed))
        for token in tokens_WN[w, : lengths_W[w]][::-1].tolist():
            state = extend_state(state, token)
        out_W[w] = state


def ngram_ids_of_width(tokens_WN: np.ndarray, seed: int, out_W: np.ndarray) -> None:
    """out[w] = ID of all the tokens of tokens[w]."""
    ngram_ids(tokens_WN, np.full(len(tokens_WN), tokens_WN.shape[1]), seed, out_W)


def mix_each(values_W: np.ndarray, out_W: np.ndarray) -> None:
    """out[w] = mix64(values[w])."""
    out_W[:] = [mix64(value) for value in values_W.tolist()]


def _rotl(x: int, by: int) -> int:
    return ((x << by) | (x >> (64 - by))) & _MASK


def _round(acc: int, lane: int) -> int:
    return (_rotl((acc + lane * _P2) & _MASK, 31) * _P1) & _MASK


def xxh64(data: np.ndarray, start: int, size: int, seed: int) -> int:
    """XXH64 of data[start : start + size] (u8)."""
    piece = bytes(data[start : start + size])
    at = 0
    if size >= 32:
        accs = [(seed + _P1 + _P2) & _MASK, (seed + _P2) & _MASK, seed, (seed - _P1) & _MASK]
        while at + 32 <= size:
            for lane in range(4):
                word = int.from_bytes(piece[at + 8 * lane : at + 8 * lane + 8], "little")
                accs[lane] = _round(accs[lane], word)
            at += 32
        h = sum(_rotl(acc, by) for acc, by in zip(accs, (1, 7, 12, 18), strict=True)) & _MASK
        for acc in accs:
            h = ((h ^ _round(0, acc)) * _P1 + _P4) & _MASK
    else:
        h = (seed + _P5) & _MASK
    h = (h + size) & _MASK
    while at + 8 <= size:
        word = int.from_bytes(piece[at : at + 8], "little")
        h = (_rotl(h ^ _round(0, word), 27) * _P1 + _P4) & _MASK
        at += 8
    if at + 4 <= size:
        h = (_rotl(h ^ (int.from_bytes(piece[at : at + 4], "little") * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
        at += 4
    for byte in piece[at:]:
        h = (_rotl(h ^ (byte * _P5 & _MASK), 11) * _P1) & _MASK
    h = ((h ^ (h >> 33)) * _P2) & _MASK
    h = ((h ^ (h >> 29)) * _P3) & _MASK
    return h ^ (h >> 32)


def checksum_pieces(
    data: np.ndarray, starts_W: np.ndarray, sizes_W: np.ndarray, seeds_W: np.ndarray, out_W: np.ndarray
) -> None:
    """out[w] = low 32 bits of XXH64(data[starts[w] : starts[w] + sizes[w]], seeds[w])."""
    for w in range(len(starts_W)):
        out_W[w] = xxh64(data, int(starts_W[w]), int(sizes_W[w]), int(seeds_W[w])) & 0xFFFFFFFF
