"""Stored rows -> floats in the caller's buffer, in plain numpy: what the native kernel and its row writers mean.

A plan is an int64 array: row writer, bytes of a stored row, bytes of an output row, row width, and what the codec needs to
know: a block or group, the bits of an f32 scale. Here a row writer is a number in a table of functions.
Output types: f32; f16 and bf16 as their bits in u16, rounded to nearest even, overflow to infinity. Row bytes:
docs/codecs.md.

Shapes: M wanted rows, W rows of those that are there, B bytes in a row, D row width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

WRITER, ROW_BYTES, OUT_BYTES, DIM, INTEGER, BITS = 0, 1, 2, 3, 4, 5


def scatter(plan: np.ndarray, source: np.ndarray, offsets_M: np.ndarray, places_M: np.ndarray, out: np.ndarray) -> int:
    """Row places[m] of `out` = the stored row at byte offsets[m] of `source`, zeros where -1. Returns bad offsets.

    A row that does not lie inside `source` is never read: it is zeros, and counted. out: u8, C-contiguous. No places
    (an empty array): row m is the m-th.
    """
    row_bytes, dim = int(plan[ROW_BYTES]), int(plan[DIM])
    bad_M = (offsets_M < -1) | ((offsets_M >= 0) & (offsets_M > len(source) - row_bytes))
    here_M = (offsets_M >= 0) & ~bad_M
    stored_WB = source[offsets_M[here_M][:, None] + np.arange(row_bytes)]
    codec, output = _WRITERS[int(plan[WRITER])]
    with np.errstate(all="ignore"):
        values_WD = _VALUES[codec](stored_WB, dim, int(plan[INTEGER]), int(plan[BITS]))
        written_W = _BITS[output](values_WD)
    out_MB = out.reshape(-1, int(plan[OUT_BYTES]))
    places_M = places_M if len(places_M) else np.arange(len(offsets_M))
    out_MB[places_M] = 0
    out_MB[places_M[here_M]] = np.ascontiguousarray(written_W).view(np.uint8).reshape(-1, out_MB.shape[1])
    return int(bad_M.sum())


def row_writer(codec: str, output: str) -> int:
    """Number of the row writer of a codec ("copy": bytes as they are) for an output type."""
    return _WRITERS.index((codec, "copy" if codec == "copy" else output))


def write_row(plan: np.ndarray, source: int, target: int) -> None:
    """One row by a plan of the native kernels, from an address to an address: their row writer is called as a C function."""
    writer = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(int(plan[WRITER]))
    writer(source, target, int(plan[DIM]), int(plan[INTEGER]), int(plan[BITS]))


# From the bytes of rows to values.


def _little_endian(stored_WB: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(stored_WB).view(dtype)


def _from_f32(stored_WB: np.ndarray, dim: int, integer: int, bits: int) -> np.ndarray:
    return _little_endian(stored_WB, "<f4")


def _from_f16(stored_WB: np.ndarray, dim: int, integer: int, bits: int) -> np.ndarray:
    half_WD = _little_endian(stored_WB, "<f2")
    return np.where(np.isnan(half_WD), np.copysign(np.float32("nan"), half_WD), half_WD.astype(np.float32))


def _from_bf16(stored_WB: np.ndarray, dim: int = 0, integer: int = 0, bits: int = 0) -> np.ndarray:
    return (_little_endian(stored_WB, "<u2").astype(np.uint32) << 16).view(np.float32)


def _from_int8(stored_WB: np.ndarray, dim: int, integer: int, bits: int) -> np.ndarray:
    codes_WD = stored_WB[:, :-4].view(np.int8)
    return codes_WD.astype(np.float32) * _little_endian(stored_WB[:, -4:], "<f4")


def _from_e4m3(stored_WB: np.ndarray, dim: int, block: int, bits: int) -> np.ndarray:
    codes_WD = stored_WB[:, :dim].astype(np.int32)
    exponent_WD, mantissa_WD = codes_WD >> 3 & 15, codes_WD & 7
    tiny_WD = np.ldexp(np.float32(1), -9) * mantissa_WD.astype(np.float32)
    normal_WD = np.ldexp(1 + mantissa_WD.astype(np.float32) / 8, exponent_WD - 7)
    size_WD = np.where(exponent_WD == 0, tiny_WD, normal_WD)
    number_WD = np.where(codes_WD & 0x80, -size_WD, size_WD)
    number_WD[codes_WD & 0x7F == 0x7F] = np.float32("nan")
    if not block:
        return number_WD * np.uint32(bits).view(np.float32)
    powers_WG = stored_WB[:, dim:].astype(np.int32)
    scales_WG = np.where(powers_WG == 255, np.float32("nan"), np.ldexp(np.float32(1), powers_WG - 127))
    return number_WD * np.repeat(scales_WG, block, axis=1)[:, :dim]


def _from_int4(stored_WB: np.ndarray, dim: int, group: int, bits: int) -> np.ndarray:
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


def _bytes(stored_WB: np.ndarray, dim: int, num_bytes: int, bits: int) -> np.ndarray:
    return stored_WB[:, :num_bytes]


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


_VALUES: dict[str, Callable[[np.ndarray, int, int, int], np.ndarray]] = {
    "f32": _from_f32, "f16": _from_f16, "bf16": _from_bf16, "int8": _from_int8, "e4m3": _from_e4m3, "int4": _from_int4,
    "copy": _bytes,
}  # fmt: skip
_BITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "f32": _unchanged, "f16": _f16, "bf16": _bf16, "copy": _unchanged
}  # fmt: skip
_WRITERS = [(codec, output) for codec in _VALUES for output in _BITS]
