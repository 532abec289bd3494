"""N-grams as varints and back, compiled. Meaning: kernels/reference/tokens.py.

One n-gram: its length, then its tokens from first to last, each a LEB128 varint (7 bits a byte, lowest first; the top bit
says that more follow).
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel


@inline
def _put(value, out, at):
    while value >= np.uint64(128):
        out[at] = np.uint8((value & np.uint64(127)) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@kernel
def encode_ngrams(tokens_MN, lengths_M, out, ends_M):
    """Append M n-grams to `out` (u8, at least 1 + 5 N bytes each); ends[m] = bytes written after n-gram m."""
    at = 0
    for m in range(tokens_MN.shape[0]):
        at = _put(np.uint64(lengths_M[m]), out, at)
        for n in range(lengths_M[m]):
            at = _put(np.uint64(tokens_MN[m, n]), out, at)
        ends_M[m] = at


@kernel
def decode_ngrams(data, tokens_MN, lengths_M):
    """Read M n-grams from `data`; returns bytes used, or -1 if they are not M n-grams of at most N u32 tokens."""
    at = 0
    size = data.shape[0]
    width = tokens_MN.shape[1]
    for m in range(tokens_MN.shape[0]):
        length = np.int64(-1)
        n = np.int64(0)
        while length < 0 or n < length:
            value = np.uint64(0)
            shift = np.uint64(0)
            while True:
                if at >= size or shift > np.uint64(28):
                    return np.int64(-1)
                byte = np.uint64(data[at])
                at += 1
                value |= (byte & np.uint64(127)) << shift
                shift += np.uint64(7)
                if byte < np.uint64(128):
                    break
            if value > np.uint64(0xFFFFFFFF):
                return np.int64(-1)
            if length < 0:
                if value < np.uint64(1) or value > np.uint64(width):
                    return np.int64(-1)
                length = np.int64(value)
                lengths_M[m] = np.uint8(length)
            else:
                tokens_MN[m, n] = np.uint32(value)
                n += 1
        for n in range(length, width):
            tokens_MN[m, n] = 0
    return np.int64(at)
