"""Stored rows -> floats in the caller's buffer, compiled: one row writer for each codec and output type.

A *row writer* turns one stored row into one row of output: `(source, target, dim, integer, bits)`, addresses of both and
what the codec needs to know (a block or group; the bits of an f32 scale). Kernels call it by its address, so that finding
rows and copying them out are one pass whatever the codec. It checks nothing: `scatter` and the cache know their bounds.

A *plan* says how rows are written: an int64 array, columns below. Output types: f32; f16 and bf16 as their bits in u16,
rounded to nearest even, overflow to infinity. Row bytes: docs/codecs.md. The meaning of each writer: the function of the
same codec in kernels/reference/dequantize.py.

Values are built by integer arithmetic on their bits, 32 bits wide: that vectorises on any CPU, and a process that
flushes subnormals to zero gets the same f16 and e4m3 values. numba widens u32 arithmetic to u64, hence the casts.

Shapes: M wanted rows, D row width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from ngramstore.kernels.jit import callback, inline, kernel
from ngramstore.kernels.native.memory import (
    call_row_writer,
    copy_bytes,
    f32_array,
    i8_array,
    prefetch,
    u8_array,
    u16_array,
    zero_bytes,
)

WRITER, ROW_BYTES, OUT_BYTES, DIM, INTEGER, BITS = 0, 1, 2, 3, 4, 5
"""Columns of a plan: address of the row writer, bytes of a stored row and of an output row, then its arguments."""
NUM_PLAN = 6
_WRITER = types.void(*[types.int64] * 5)
_AHEAD = 4
"""Rows that are asked for before they are needed."""
_LINE_BYTES = 64
_MAX_LINES = 32


@inline
def _f32_from_f16(half):
    """f16 bits -> f32; a NaN becomes the quiet NaN of its sign."""
    sign = np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))
    rest = np.uint32(half & np.uint32(0x7FFF))
    normal = np.uint32(np.uint32(rest << np.uint32(13)) + np.uint32(0x38000000))
    special = np.uint32(0x7F800000) if rest == np.uint32(0x7C00) else np.uint32(0x7FC00000)
    tiny = np.float32(np.float32(np.int32(rest)) * np.float32(2.0**-24)).view(np.uint32)
    bits = tiny if rest < np.uint32(0x0400) else normal
    bits = special if rest >= np.uint32(0x7C00) else bits
    return np.uint32(bits | sign).view(np.float32)


@inline
def _f32_from_bf16(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inline
def _f16_from_f32(value):
    """f32 -> f16 bits, to nearest even; a NaN becomes the quiet NaN of its sign."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    moved = np.uint32(size - np.uint32(0x38000000))
    odd = np.uint32(np.uint32(moved >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(np.uint32(np.uint32(moved + np.uint32(0xFFF)) + odd) >> np.uint32(13))
    # Adding 0.5 leaves the f16 subnormal, rounded by the adder, in the last ten bits.
    tiny = np.uint32(np.float32(size.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
    half = tiny if size < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if size >= np.uint32(0x47800000) else half
    half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
    return np.uint16(half | sign)


@inline
def _bf16_from_f32(value):
    """f32 -> bf16 bits, to nearest even; a NaN becomes the quiet NaN of its sign."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16))
    quiet = np.uint32(np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7FC0))
    is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(quiet if is_nan else rounded)


@register_jitable
def _f32_row(target, dim):
    return f32_array(target, dim)


@register_jitable
def _u16_row(target, dim):
    return u16_array(target, dim)


@register_jitable
def _as_f32(value):
    return value


@register_jitable
def _as_f16(value):
    return _f16_from_f32(value)


@register_jitable
def _as_bf16(value):
    return _bf16_from_f32(value)


_OUTPUTS = {"f32": (_f32_row, _as_f32), "f16": (_u16_row, _as_f16), "bf16": (_u16_row, _as_bf16)}
"""Output type -> a row of it over memory, and one of its values from an f32. These are plain functions of this module, since
numba's cache knows a closure over such again in the next process, and a closure over compiled ones not."""


def _from_f32(row_over, value_of):
    """D values of 4 bytes."""

    def write(source, target, dim, integer, bits):
        values_D, out_D = f32_array(source, dim), row_over(target, dim)
        for d in range(dim):
            out_D[d] = value_of(values_D[d])

    return write


def _from_f16(row_over, value_of):
    """D values of 2 bytes."""

    def write(source, target, dim, integer, bits):
        halves_D, out_D = u16_array(source, dim), row_over(target, dim)
        for d in range(dim):
            out_D[d] = value_of(_f32_from_f16(np.uint32(halves_D[d])))

    return write


def _from_bf16(row_over, value_of):
    """D values of 2 bytes."""

    def write(source, target, dim, integer, bits):
        bits_D, out_D = u16_array(source, dim), row_over(target, dim)
        for d in range(dim):
            out_D[d] = value_of(_f32_from_bf16(bits_D[d]))

    return write


def _from_int8(row_over, value_of):
    """D signed bytes, then the f32 scale."""

    def write(source, target, dim, integer, bits):
        codes_D, out_D = i8_array(source, dim), row_over(target, dim)
        scale = f32_array(source + dim, 1)[0]
        for d in range(dim):
            out_D[d] = value_of(np.float32(codes_D[d]) * scale)

    return write


@inline
def _f32_from_e4m3(code):
    """E4M3FN code -> f32; a NaN becomes the positive quiet NaN."""
    code = np.uint32(code)
    sign = np.uint32(np.uint32(code & np.uint32(0x80)) << np.uint32(24))
    rest = np.uint32(code & np.uint32(0x7F))
    normal = np.uint32(np.uint32(rest << np.uint32(20)) + np.uint32(0x3C000000))
    tiny = np.float32(np.float32(np.int32(rest)) * np.float32(2.0**-9)).view(np.uint32)
    bits = np.uint32((tiny if rest < np.uint32(8) else normal) | sign)
    return np.uint32(np.uint32(0x7FC00000) if rest == np.uint32(0x7F) else bits).view(np.float32)


@inline
def _f32_from_ue8m0(code):
    """Scale byte -> 2**(code - 127); 0 is the subnormal 2**-127, 255 is NaN."""
    bits = np.uint32(np.uint32(code) << np.uint32(23))
    bits = np.uint32(0x00400000) if code == 0 else bits
    return np.uint32(np.uint32(0x7FC00000) if code == 255 else bits).view(np.float32)


def _from_e4m3(row_over, value_of):
    """D codes, then one ue8m0 scale for each block of `integer` codes; 0: codes alone, `bits` is the scale of the table."""

    def write(source, target, dim, integer, bits):
        codes_D, out_D = u8_array(source, dim), row_over(target, dim)
        if integer == 0:
            scale = np.uint32(bits).view(np.float32)
            for d in range(dim):
                out_D[d] = value_of(_f32_from_e4m3(codes_D[d]) * scale)
            return
        scales_G = u8_array(source + dim, (dim + integer - 1) // integer)
        whole = dim // 32 if integer == 32 else 0
        for g in range(whole):  # a loop of known length needs no tests for its ends
            scale = _f32_from_ue8m0(scales_G[g])
            for i in range(32):
                out_D[np.uintp(32 * g + i)] = value_of(_f32_from_e4m3(codes_D[np.uintp(32 * g + i)]) * scale)
        for g in range(whole, scales_G.size):
            scale = _f32_from_ue8m0(scales_G[g])
            for d in range(g * integer, min(dim, (g + 1) * integer)):
                out_D[np.uintp(d)] = value_of(_f32_from_e4m3(codes_D[np.uintp(d)]) * scale)

    return write


@inline
def _int4_level(code):
    """Stored code 0..15 -> c * (8 + |c|), c = code - 8: steps that grow with the magnitude."""
    c = np.int32(code) - np.int32(8)
    return np.float32(np.int32(c * np.int32(np.int32(8) + abs(c))))


def _from_int4(row_over, value_of):
    """Two codes a byte, then one bf16 scale for each group of `integer` codes.

    A group of n values fills ceil(n / 2) bytes: the low halves are its first values, the high halves the rest, so that
    both are written as one run.
    """

    def write(source, target, dim, integer, bits):
        code_bytes = (dim + 1) // 2
        pairs, out_D = u8_array(source, code_bytes), row_over(target, dim)
        scales_G = u16_array(source + code_bytes, (dim + integer - 1) // integer)
        whole = dim // 32 if integer == 32 else 0
        for g in range(whole):
            scale = _f32_from_bf16(scales_G[g])
            for i in range(16):
                pair = pairs[np.uintp(16 * g + i)]
                out_D[np.uintp(32 * g + i)] = value_of(_int4_level(pair & np.uint8(15)) * scale)
                out_D[np.uintp(32 * g + 16 + i)] = value_of(_int4_level(pair >> np.uint8(4)) * scale)
        for g in range(whole, scales_G.size):
            scale = _f32_from_bf16(scales_G[g])
            start = g * integer
            n = min(integer, dim - start)
            first, half = start // 2, (n + 1) // 2
            for i in range(half):
                out_D[np.uintp(start + i)] = value_of(_int4_level(pairs[np.uintp(first + i)] & np.uint8(15)) * scale)
            for i in range(n - half):
                code = pairs[np.uintp(first + i)] >> np.uint8(4)
                out_D[np.uintp(start + half + i)] = value_of(_int4_level(code) * scale)

    return write


def _copy(source, target, dim, integer, bits):
    """`integer` bytes as they are."""
    copy_bytes(target, source, integer)


_CODECS = {
    "f32": _from_f32, "f16": _from_f16, "bf16": _from_bf16, "int8": _from_int8, "e4m3": _from_e4m3, "int4": _from_int4,
}  # fmt: skip


@cache
def _compiled(codec: str, output: str) -> Any:
    return callback(_WRITER, _copy if codec == "copy" else _CODECS[codec](*_OUTPUTS[output]))


def row_writer(codec: str, output: str) -> int:
    """Address of the row writer of a codec ("copy": bytes as they are) for an output type; compiled on first use."""
    return _compiled(codec, "" if codec == "copy" else output).address


@inline
def write_row(plan, source, target):
    """One row by plan, from an address to an address."""
    call_row_writer(plan[WRITER], source, target, plan[DIM], plan[INTEGER], plan[BITS])


@inline
def prefetch_row(address, row_bytes):
    """Ask for the bytes of a row ahead of their use; nothing is read where there is none."""
    for i in range(min(_MAX_LINES, (row_bytes + _LINE_BYTES - 1) // _LINE_BYTES)):
        prefetch(address + _LINE_BYTES * i)


@kernel
def scatter(plan, source, offsets_M, places_M, out):
    """Row places[m] of `out` = the stored row at byte offsets[m] of `source`, zeros where -1. Returns bad offsets.

    A row that does not lie inside `source` is never read: it is zeros, and counted. out: u8, C-contiguous. No places
    (an empty array): row m is the m-th.
    """
    num_bad = 0
    base, target = np.int64(source.ctypes.data), np.int64(out.ctypes.data)
    count = offsets_M.shape[0]
    for m in range(min(_AHEAD, count)):
        prefetch_row(base + offsets_M[m], plan[ROW_BYTES])
    for m in range(count):
        if m + _AHEAD < count:
            prefetch_row(base + offsets_M[m + _AHEAD], plan[ROW_BYTES])
        at = offsets_M[m]
        row = target + (places_M[m] if places_M.shape[0] > 0 else m) * plan[OUT_BYTES]
        if at >= 0 and at <= source.shape[0] - plan[ROW_BYTES]:
            write_row(plan, base + at, row)
        else:
            num_bad += at != -1
            zero_bytes(row, plan[OUT_BYTES])
    return num_bad
