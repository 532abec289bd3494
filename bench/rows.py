"""The row that every peer stores and must give back: D int8 codes, then one float32 scale (the bytes of our codec int8), or
D values of 16 bits (our codec f16).

Decoding int8 is code * scale in float32; f16 is widened by the product's own kernel, for every peer. Peers that end
with one contiguous buffer of stored rows share `decode_rows`, those that
hold all rows in memory share `gather_rows`: the comparison is about finding and reading rows, not about who multiplies faster.

Shapes: N stored rows, M wanted rows, R bytes of a stored row, D row width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ngramstore.codec import codec_from_spec
from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.dequantize import scatter

SCALE_BYTES = 4
CODECS = ("int8", "f16")
_IN_ORDER = np.empty(0, np.int64)


def row_bytes(dim: int, codec: str = "int8") -> int:
    """Bytes of one stored row of width `dim`."""
    return 2 * dim if codec == "f16" else SCALE_BYTES + dim


def dim_of(stored_NR: np.ndarray, codec: str) -> int:
    """Width D of stored rows."""
    return stored_NR.shape[1] // 2 if codec == "f16" else stored_NR.shape[1] - SCALE_BYTES


def encode(rows_MD: np.ndarray, codec: str = "int8") -> np.ndarray:
    """(M, D) f32 -> (M, R) u8. int8: scale = largest magnitude / 127, codes rounded to nearest."""
    if codec == "f16":
        return rows_MD.astype("<f2").view(np.uint8)
    scale_M = np.abs(rows_MD).max(axis=1) / np.float32(127)
    safe_M = np.where(scale_M > 0, scale_M, np.float32(1))
    out_MR = np.empty((len(rows_MD), row_bytes(rows_MD.shape[1])), np.uint8)
    out_MR[:, -SCALE_BYTES:] = scale_M.astype("<f4").view(np.uint8).reshape(-1, SCALE_BYTES)
    codes_MD = np.rint(rows_MD / safe_M[:, None]).clip(-127, 127).astype(np.int8)
    out_MR[:, :-SCALE_BYTES] = codes_MD.view(np.uint8)
    return out_MR


def decode(stored_MR: np.ndarray, codec: str = "int8") -> np.ndarray:
    """(M, R) u8 -> (M, D) f32 in plain numpy: what the answers are checked against."""
    if codec == "f16":
        return np.ascontiguousarray(stored_MR).view("<f2").astype(np.float32)
    scale_M = np.ascontiguousarray(stored_MR[:, -SCALE_BYTES:]).view("<f4")[:, 0]
    return stored_MR[:, :-SCALE_BYTES].view(np.int8).astype(np.float32) * scale_M[:, None]


def decoder(codec: str, dim: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """`f(stored_MR, out_MD)` for peers that end with one contiguous buffer of stored rows."""
    if codec != "f16":
        return decode_rows
    copy = copier(codec, dim)

    def decode(stored_MR: np.ndarray, out_MD: np.ndarray) -> None:
        copy(stored_MR.reshape(-1), np.arange(len(stored_MR)) * stored_MR.shape[1], out_MD)

    return decode


def gatherer(codec: str, dim: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """`f(stored_NR, numbers_M, out_MD)` for peers whose rows lie in one array; number -1 gives zeros."""
    if codec != "f16":
        return gather_rows
    copy = copier(codec, dim)

    def gather(stored_NR: np.ndarray, numbers_M: np.ndarray, out_MD: np.ndarray) -> None:
        offsets_M = np.where(numbers_M < 0, -1, numbers_M * stored_NR.shape[1])
        copy(stored_NR.reshape(-1), offsets_M, out_MD)

    return gather


def copier(codec: str, dim: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """`f(stored, offsets_M, out_MD)` by the product's own kernel, which asks for rows ahead of time: stored (N * R,),
    offset -1 gives zeros."""
    plan = codec_from_spec(codec, dim).plan("f")
    return lambda stored, offsets_M, out_MD: scatter(plan, stored, offsets_M, _IN_ORDER, out_MD.view(np.uint8))


@kernel
def decode_rows(stored_MR: np.ndarray, out_MD: np.ndarray) -> None:
    """out[m] = decoded stored[m]; both C-contiguous. A row of zero bytes gives a row of zeros."""
    for m in range(stored_MR.shape[0]):
        row_R = stored_MR[m]
        scale = row_R[-4:].view(np.float32)[0]
        codes_D = row_R[:-4].view(np.int8)
        out_D = out_MD[m]
        for d in range(codes_D.size):
            out_D[d] = codes_D[d] * scale


@kernel
def gather_rows(stored_NR: np.ndarray, numbers_M: np.ndarray, out_MD: np.ndarray) -> None:
    """out[m] = decoded stored[numbers[m]], or zeros where numbers[m] is -1."""
    for m in range(numbers_M.size):
        out_D = out_MD[m]
        if numbers_M[m] < 0:
            for d in range(out_D.size):
                out_D[d] = np.float32(0)
            continue
        row_R = stored_NR[numbers_M[m]]
        scale = row_R[-4:].view(np.float32)[0]
        codes_D = row_R[:-4].view(np.int8)
        for d in range(codes_D.size):
            out_D[d] = codes_D[d] * scale
