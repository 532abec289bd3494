"""Stored rows -> floats in the caller's buffer, in plain numpy: what each native kernel of the same name means.

Every function: `(source u8, offsets_M i64, out_MD, ...) -> number of bad offsets`. offsets[m] is the byte position in
`source` of the row that out[m] becomes; -1 writes zeros. A row that does not lie inside `source` is never read:
out[m] is zeros and the offset is counted. Output types: f32; f16 and bf16 as their bits in u16, rounded to nearest
even, overflow to infinity. Row bytes: docs/codecs.md.

Shapes: M wanted rows, W rows of those that are there, B bytes in a row, D row width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _scatter(  # noqa: PLR0917
    source: np.ndarray,
    offsets_M: np.ndarray,
    out_MD: np.ndarray,
    row_bytes: int,
    values_of: Callable,
    bits_of: Callable,
) -> int:
    bad_M = (offsets_M < -1) | ((offsets_M >= 0) & (offsets_M > len(source) - row_bytes))
    here_M = (offsets_M >= 0) & ~bad_M
    stored_WB = source[offsets_M[here_M][:, None] + np.arange(row_bytes)]
    out_MD[...] = 0
    with np.errstate(all="ignore"):
        out_MD[here_M] = bits_of(values_of(stored_WB))
    return int(bad_M.sum())


# From the bytes of rows to values.


def _little_endian(stored_WB: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(stored_WB).view(dtype)


def _from_f32(stored_WB: np.ndarray) -> np.ndarray:
    return _little_endian(stored_WB, "<f4")


def _from_f16(stored_WB: np.ndarray) -> np.ndarray:
    half_WD = _little_endian(stored_WB, "<f2")
    return np.where(np.isnan(half_WD), np.copysign(np.float32("nan"), half_WD), half_WD.astype(np.float32))


def _from_bf16(stored_WB: np.ndarray) -> np.ndarray:
    return (_little_endian(stored_WB, "<u2").astype(np.uint32) << 16).view(np.float32)


def _from_int8(stored_WB: np.ndarray) -> np.ndarray:
    codes_WD = stored_WB[:, :-4].view(np.int8)
    return codes_WD.astype(np.float32) * _little_endian(stored_WB[:, -4:], "<f4")


# From values to the bits of the output type.


def _unchanged(values_WD: np.ndarray) -> np.ndarray:
    return values_WD


def _f16(values_WD: np.ndarray) -> np.ndarray:
    quiet_WD = np.where(np.signbit(values_WD), np.uint16(0xFE00), np.uint16(0x7E00))
    return np.where(np.isnan(values_WD), quiet_WD, values_WD.astype(np.float16).view(np.uint16))


def _bf16(values_WD: np.ndarray) -> np.ndarray:
    bits_WD = np.ascontiguousarray(values_WD).view(np.uint32)
    rounded_WD = ((bits_WD + 0x7FFF + (bits_WD >> 16 & 1)) >> 16).astype(np.uint16)
    quiet_WD = np.where(np.signbit(values_WD), np.uint16(0xFFC0), np.uint16(0x7FC0))
    return np.where(np.isnan(values_WD), quiet_WD, rounded_WD)


# The kernels.


def scatter_f32_f32(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 4 * out_MD.shape[1], _from_f32, _unchanged)


def scatter_f32_f16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 4 * out_MD.shape[1], _from_f32, _f16)


def scatter_f32_bf16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 4 * out_MD.shape[1], _from_f32, _bf16)


def scatter_copy16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    def bits(stored_WB: np.ndarray) -> np.ndarray:
        return _little_endian(stored_WB, "<u2")

    return _scatter(source, offsets_M, out_MD, 2 * out_MD.shape[1], bits, _unchanged)


def scatter_f16_f32(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 2 * out_MD.shape[1], _from_f16, _unchanged)


def scatter_f16_bf16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 2 * out_MD.shape[1], _from_f16, _bf16)


def scatter_bf16_f32(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 2 * out_MD.shape[1], _from_bf16, _unchanged)


def scatter_bf16_f16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, 2 * out_MD.shape[1], _from_bf16, _f16)


def scatter_int8_f32(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, out_MD.shape[1] + 4, _from_int8, _unchanged)


def scatter_int8_f16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, out_MD.shape[1] + 4, _from_int8, _f16)


def scatter_int8_bf16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> int:
    return _scatter(source, offsets_M, out_MD, out_MD.shape[1] + 4, _from_int8, _bf16)
