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


def _scatter(
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


def _e4m3_values(block: int, table_scale: np.float32, dim: int) -> Callable[[np.ndarray], np.ndarray]:
    def values(stored_WB: np.ndarray) -> np.ndarray:
        codes_WD = stored_WB[:, :dim].astype(np.int32)
        exponent_WD, mantissa_WD = codes_WD >> 3 & 15, codes_WD & 7
        tiny_WD = np.ldexp(np.float32(1), -9) * mantissa_WD.astype(np.float32)
        normal_WD = np.ldexp(1 + mantissa_WD.astype(np.float32) / 8, exponent_WD - 7)
        size_WD = np.where(exponent_WD == 0, tiny_WD, normal_WD)
        number_WD = np.where(codes_WD & 0x80, -size_WD, size_WD)
        number_WD[codes_WD & 0x7F == 0x7F] = np.float32("nan")
        if not block:
            return number_WD * table_scale
        powers_WG = stored_WB[:, dim:].astype(np.int32)
        scales_WG = np.where(powers_WG == 255, np.float32("nan"), np.ldexp(np.float32(1), powers_WG - 127))
        return number_WD * np.repeat(scales_WG, block, axis=1)[:, :dim]

    return values


def _e4m3_row_bytes(dim: int, block: int) -> int:
    return dim + (-(-dim // block) if block else 0)


def _int4_values(group: int, dim: int) -> Callable[[np.ndarray], np.ndarray]:
    def values(stored_WB: np.ndarray) -> np.ndarray:
        codes_WB, scales_WB = np.split(stored_WB, [(dim + 1) // 2], axis=1)
        scales_WG = _from_bf16(scales_WB)
        values_WD = np.empty((len(stored_WB), dim), np.float32)
        for g, start in enumerate(range(0, dim, group)):
            n = min(group, dim - start)
            bytes_WH = codes_WB[:, start // 2 : start // 2 + (n + 1) // 2]
            codes_WS = np.concatenate([bytes_WH & 15, bytes_WH >> 4], axis=1)[:, :n].astype(np.int32) - 8
            levels_WS = codes_WS * (8 + np.abs(codes_WS))
            values_WD[:, start : start + n] = levels_WS.astype(np.float32) * scales_WG[:, g : g + 1]
        return values_WD

    return values


def _int4_row_bytes(dim: int, group: int) -> int:
    return (dim + 1) // 2 + 2 * -(-dim // group)


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


def scatter_e4m3_f32(
    source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, block: int, table_scale: np.float32
) -> int:
    dim = out_MD.shape[1]
    values_of = _e4m3_values(block, table_scale, dim)
    return _scatter(source, offsets_M, out_MD, _e4m3_row_bytes(dim, block), values_of, _unchanged)


def scatter_e4m3_f16(
    source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, block: int, table_scale: np.float32
) -> int:
    dim = out_MD.shape[1]
    values_of = _e4m3_values(block, table_scale, dim)
    return _scatter(source, offsets_M, out_MD, _e4m3_row_bytes(dim, block), values_of, _f16)


def scatter_e4m3_bf16(
    source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, block: int, table_scale: np.float32
) -> int:
    dim = out_MD.shape[1]
    values_of = _e4m3_values(block, table_scale, dim)
    return _scatter(source, offsets_M, out_MD, _e4m3_row_bytes(dim, block), values_of, _bf16)


def scatter_int4_f32(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, group: int) -> int:
    dim = out_MD.shape[1]
    return _scatter(source, offsets_M, out_MD, _int4_row_bytes(dim, group), _int4_values(group, dim), _unchanged)


def scatter_int4_f16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, group: int) -> int:
    dim = out_MD.shape[1]
    return _scatter(source, offsets_M, out_MD, _int4_row_bytes(dim, group), _int4_values(group, dim), _f16)


def scatter_int4_bf16(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, group: int) -> int:
    dim = out_MD.shape[1]
    return _scatter(source, offsets_M, out_MD, _int4_row_bytes(dim, group), _int4_values(group, dim), _bf16)
