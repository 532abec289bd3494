"""N-gram -> 64-bit ID, and XXH64, without the GIL. What they mean: kernels/reference/hashing.py.

Numba mixes signed and unsigned 64-bit integers into floats, so every constant here is spelled np.uint64.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel
from ngramstore.kernels.native.memory import load_u8, load_u32, load_u64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_LOW32 = np.uint64(0xFFFFFFFF)
_0 = np.uint64(0)
_1 = np.uint64(1)
_7 = np.uint64(7)
_11 = np.uint64(11)
_12 = np.uint64(12)
_18 = np.uint64(18)
_23 = np.uint64(23)
_27 = np.uint64(27)
_29 = np.uint64(29)
_30 = np.uint64(30)
_31 = np.uint64(31)
_32 = np.uint64(32)
_33 = np.uint64(33)
_37 = np.uint64(37)
_41 = np.uint64(41)
_46 = np.uint64(46)
_52 = np.uint64(52)
_53 = np.uint64(53)
_57 = np.uint64(57)
_63 = np.uint64(63)


@inline
def mix64(z):
    """Stafford's variant 13: a bijection of 64-bit numbers."""
    z = (z ^ (z >> _30)) * _M1
    z = (z ^ (z >> _27)) * _M2
    return z ^ (z >> _31)


@inline
def seed_state(seed):
    """Hash state before the first token."""
    return mix64(seed + _GAMMA)


@inline
def extend_state(state, token):
    """Hash state after one more token to the left."""
    return mix64(state ^ (np.uint64(token) + _1))


@kernel
def ngram_ids(tokens_WN, lengths_W, seed, out_W):
    """out[w] = ID of the first lengths[w] tokens of tokens[w]."""
    start = seed_state(np.uint64(seed))
    for w in range(tokens_WN.shape[0]):
        state = start
        for n in range(np.int64(lengths_W[w]) - 1, -1, -1):
            state = extend_state(state, tokens_WN[w, n])
        out_W[w] = state


@kernel
def ngram_ids_of_width(tokens_WN, seed, out_W):
    """out[w] = ID of all the tokens of tokens[w]."""
    start = seed_state(np.uint64(seed))
    for w in range(tokens_WN.shape[0]):
        state = start
        for n in range(tokens_WN.shape[1] - 1, -1, -1):
            state = extend_state(state, tokens_WN[w, n])
        out_W[w] = state


@kernel
def mix_each(values_W, out_W):
    """out[w] = mix64(values[w])."""
    for w in range(values_W.shape[0]):
        out_W[w] = mix64(values_W[w])


@inline
def _rotl(x, left, right):
    return (x << left) | (x >> right)


@inline
def _round(acc, lane):
    return _rotl(acc + lane * _P2, _31, _33) * _P1


@inline
def xxh64(address, size, seed):
    """XXH64 of `size` bytes at an address."""
    at = np.int64(address)
    end = at + size
    if size >= 32:
        a = seed + _P1 + _P2
        b = seed + _P2
        c = seed
        d = seed - _P1
        while at + 32 <= end:
            a = _round(a, load_u64(at))
            b = _round(b, load_u64(at + 8))
            c = _round(c, load_u64(at + 16))
            d = _round(d, load_u64(at + 24))
            at += 32
        h = _rotl(a, _1, _63) + _rotl(b, _7, _57) + _rotl(c, _12, _52) + _rotl(d, _18, _46)
        h = (h ^ _round(_0, a)) * _P1 + _P4
        h = (h ^ _round(_0, b)) * _P1 + _P4
        h = (h ^ _round(_0, c)) * _P1 + _P4
        h = (h ^ _round(_0, d)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(size)
    while at + 8 <= end:
        h = _rotl(h ^ _round(_0, load_u64(at)), _27, _37) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        h = _rotl(h ^ (np.uint64(load_u32(at)) * _P1), _23, _41) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotl(h ^ (np.uint64(load_u8(at)) * _P5), _11, _53) * _P1
        at += 1
    h = (h ^ (h >> _33)) * _P2
    h = (h ^ (h >> _29)) * _P3
    return h ^ (h >> _32)


@inline
def checksum32(address, size, seed):
    """Low 32 bits of XXH64: the checksum of rows, pages and token blocks."""
    return np.uint32(xxh64(address, size, seed) & _LOW32)


@kernel
def checksum_pieces(data, starts_W, sizes_W, seeds_W, out_W):
    """out[w] = low 32 bits of XXH64(data[starts[w] : starts[w] + sizes[w]], seeds[w])."""
    base = np.int64(data.ctypes.data)
    for w in range(starts_W.shape[0]):
        out_W[w] = checksum32(base + starts_W[w], sizes_W[w], seeds_W[w])
