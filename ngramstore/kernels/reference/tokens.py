"""What n-grams as varints mean: the length, then the tokens from first to last, 7 bits a byte, lowest first.

Shapes: M n-grams, N tokens of the longest.
"""

from __future__ import annotations

import numpy as np


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def encode_ngrams(tokens_MN: np.ndarray, lengths_M: np.ndarray, out: np.ndarray, ends_M: np.ndarray) -> None:
    """Append M n-grams to `out` (u8, at least 1 + 5 N bytes each); ends[m] = bytes written after n-gram m."""
    data = b""
    for m, length in enumerate(lengths_M.tolist()):
        data += b"".join(_varint(value) for value in [length, *tokens_MN[m, :length].tolist()])
        ends_M[m] = len(data)
    out[: len(data)] = np.frombuffer(data, np.uint8)


def decode_ngrams(data: np.ndarray, tokens_MN: np.ndarray, lengths_M: np.ndarray) -> int:
    """Read M n-grams from `data`; returns bytes used, or -1 if they are not M n-grams of at most N u32 tokens."""
    at = 0

    def next_number() -> int:
        """The next varint: at most 5 bytes, at most 2**32 - 1; ValueError otherwise."""
        nonlocal at
        piece = data[at : at + 5].tolist()
        size = next((i for i, byte in enumerate(piece, 1) if byte < 128), 0)
        value = sum((byte & 127) << (7 * i) for i, byte in enumerate(piece[:size]))
        if size == 0 or value > 0xFFFFFFFF:
            raise ValueError
        at += size
        return value

    try:
        for m in range(len(tokens_MN)):
            length = next_number()
            if not 1 <= length <= tokens_MN.shape[1]:
                return -1
            lengths_M[m] = length
            tokens_MN[m] = [next_number() for _ in range(length)] + [0] * (tokens_MN.shape[1] - length)
    except ValueError:
        return -1
    return at
