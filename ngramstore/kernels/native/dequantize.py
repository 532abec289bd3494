"""Stored rows -> floats in the caller's buffer, compiled: one kernel for each codec and output type.

Every kernel: `(source u8, offsets_M i64, out_MD, ...) -> number of bad offsets`. offsets[m] is the byte position in
`source` of the row that out[m] becomes; -1 writes zeros. A row that does not lie inside `source` is never read:
out[m] is zeros and the offset is counted. Output types: f32; f16 and bf16 as their bits in u16, rounded to nearest
even, overflow to infinity. Row bytes: docs/codecs.md. The meaning of each kernel: the function of the same name in
kernels/reference/dequantize.py.

Values are built by integer arithmetic on their bits, 32 bits wide: that vectorises on any CPU, and a process that
flushes subnormals to zero gets the same f16 and e4m3 values. numba widens u32 arithmetic to u64, hence the casts.

Shapes: M wanted rows, D row width.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ngramstore.kernels.jit import inline, kernel


def _unaligned_load(numba_type, llvm_type):
    """An intrinsic `load(source u8, position)`: the value at any byte position, without a bounds check."""

    @intrinsic
    def load(typing_context, source, position):
        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            address = builder.gep(data, [arguments[1]])
            return builder.load(builder.bitcast(address, llvm_type.as_pointer()), align=1)

        return numba_type(source, types.intp), generate

    return load


_load_f32 = _unaligned_load(types.float32, ir.FloatType())
_load_u32 = _unaligned_load(types.uint32, ir.IntType(32))
_load_u8 = _unaligned_load(types.uint8, ir.IntType(8))
_load_u16 = _unaligned_load(types.uint16, ir.IntType(16))


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


@inline
def _is_bad(at, row_bytes, source_bytes):
    return at < -1 or (at >= 0 and at > source_bytes - row_bytes)


# f32: D values of 4 bytes.


@kernel
def scatter_f32_f32(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 4 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _load_f32(source, at + 4 * d)
    return num_bad


@kernel
def scatter_f32_f16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 4 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _f16_from_f32(_load_f32(source, at + 4 * d))
    return num_bad


@kernel
def scatter_f32_bf16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 4 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _bf16_from_f32(_load_f32(source, at + 4 * d))
    return num_bad


# f16 and bf16: D values of 2 bytes. Into their own type they are copied.


@kernel
def scatter_copy16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 2 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _load_u16(source, at + 2 * d)
    return num_bad


@kernel
def scatter_f16_f32(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 2 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _f32_from_f16(np.uint32(_load_u16(source, at + 2 * d)))
    return num_bad


@kernel
def scatter_f16_bf16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 2 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _bf16_from_f32(_f32_from_f16(np.uint32(_load_u16(source, at + 2 * d))))
    return num_bad


@kernel
def scatter_bf16_f32(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 2 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _f32_from_bf16(_load_u16(source, at + 2 * d))
    return num_bad


@kernel
def scatter_bf16_f16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, 2 * D, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        for d in range(D):
            out_MD[m, d] = _f16_from_f32(_f32_from_bf16(_load_u16(source, at + 2 * d)))
    return num_bad


# int8: D signed bytes, then the f32 scale.


@kernel
def scatter_int8_f32(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, D + 4, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        scale = _load_f32(source, at + D)
        for d in range(D):
            out_MD[m, d] = np.float32(np.int8(source[at + d])) * scale
    return num_bad


@kernel
def scatter_int8_f16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, D + 4, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        scale = _load_f32(source, at + D)
        for d in range(D):
            out_MD[m, d] = _f16_from_f32(np.float32(np.int8(source[at + d])) * scale)
    return num_bad


@kernel
def scatter_int8_bf16(source, offsets_M, out_MD):
    num_bad, D = 0, out_MD.shape[1]
    for m in range(len(offsets_M)):
        at = offsets_M[m]
        bad = _is_bad(at, D + 4, len(source))
        num_bad += bad
        if bad or at < 0:
            out_MD[m, :] = 0
            continue
        scale = _load_f32(source, at + D)
        for d in range(D):
            out_MD[m, d] = _bf16_from_f32(np.float32(np.int8(source[at + d])) * scale)
    return num_bad


# e4m3: D codes, then one ue8m0 scale for each block of codes; block 0: codes alone, one scale for the whole table.


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


@inline
def _e4m3_run_f32(source, first, scale, row_D, start, n):
    for i in range(n):
        row_D[np.uintp(start + i)] = _f32_from_e4m3(_load_u8(source, first + i)) * scale


@kernel
def scatter_e4m3_f32(source, offsets_M, out_MD, block, table_scale):
    num_bad, D = 0, out_MD.shape[1]
    num_blocks = (D + block - 1) // block if block else 0
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, D + num_blocks, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        if block == 0:
            _e4m3_run_f32(source, at, table_scale, row_D, 0, D)
        for b in range(num_blocks):
            start = b * block
            n = min(block, D - start)
            scale = _f32_from_ue8m0(_load_u8(source, at + D + b))
            if n == 32:
                _e4m3_run_f32(source, at + start, scale, row_D, start, 32)
            else:
                _e4m3_run_f32(source, at + start, scale, row_D, start, n)
    return num_bad


@inline
def _e4m3_run_f16(source, first, scale, row_D, start, n):
    for i in range(n):
        row_D[np.uintp(start + i)] = _f16_from_f32(_f32_from_e4m3(_load_u8(source, first + i)) * scale)


@kernel
def scatter_e4m3_f16(source, offsets_M, out_MD, block, table_scale):
    num_bad, D = 0, out_MD.shape[1]
    num_blocks = (D + block - 1) // block if block else 0
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, D + num_blocks, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        if block == 0:
            _e4m3_run_f16(source, at, table_scale, row_D, 0, D)
        for b in range(num_blocks):
            start = b * block
            n = min(block, D - start)
            scale = _f32_from_ue8m0(_load_u8(source, at + D + b))
            if n == 32:
                _e4m3_run_f16(source, at + start, scale, row_D, start, 32)
            else:
                _e4m3_run_f16(source, at + start, scale, row_D, start, n)
    return num_bad


@inline
def _e4m3_run_bf16(source, first, scale, row_D, start, n):
    for i in range(n):
        row_D[np.uintp(start + i)] = _bf16_from_f32(_f32_from_e4m3(_load_u8(source, first + i)) * scale)


@kernel
def scatter_e4m3_bf16(source, offsets_M, out_MD, block, table_scale):
    num_bad, D = 0, out_MD.shape[1]
    num_blocks = (D + block - 1) // block if block else 0
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, D + num_blocks, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        if block == 0:
            _e4m3_run_bf16(source, at, table_scale, row_D, 0, D)
        for b in range(num_blocks):
            start = b * block
            n = min(block, D - start)
            scale = _f32_from_ue8m0(_load_u8(source, at + D + b))
            if n == 32:
                _e4m3_run_bf16(source, at + start, scale, row_D, start, 32)
            else:
                _e4m3_run_bf16(source, at + start, scale, row_D, start, n)
    return num_bad


# int4: two codes a byte, then one bf16 scale for each group of codes. A group of n values fills ceil(n / 2) bytes: the low
# halves are its first values, the high halves the rest, so that both are written as one run.


@inline
def _int4_level(code):
    """Stored code 0..15 -> c * (8 + |c|), c = code - 8: steps that grow with the magnitude."""
    c = np.int32(code) - np.int32(8)
    return np.float32(np.int32(c * np.int32(np.int32(8) + abs(c))))


@inline
def _int4_run_f32(source, first, scale, row_D, start, half, rest):
    for i in range(rest):
        pair = _load_u8(source, first + i)
        row_D[np.uintp(start + i)] = _int4_level(pair & np.uint8(15)) * scale
        row_D[np.uintp(start + half + i)] = _int4_level(pair >> np.uint8(4)) * scale
    if half > rest:
        last = _int4_level(_load_u8(source, first + rest) & np.uint8(15)) * scale
        row_D[np.uintp(start + rest)] = last


@kernel
def scatter_int4_f32(source, offsets_M, out_MD, group):
    num_bad, D = 0, out_MD.shape[1]
    code_bytes = (D + 1) // 2
    num_groups = (D + group - 1) // group
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, code_bytes + 2 * num_groups, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        for g in range(num_groups):
            start = g * group
            n = min(group, D - start)
            scale = _f32_from_bf16(_load_u16(source, at + code_bytes + 2 * g))
            if n == 32:
                _int4_run_f32(source, at + start // 2, scale, row_D, start, 16, 16)
            else:
                _int4_run_f32(source, at + start // 2, scale, row_D, start, (n + 1) // 2, n // 2)
    return num_bad


@inline
def _int4_run_f16(source, first, scale, row_D, start, half, rest):
    for i in range(rest):
        pair = _load_u8(source, first + i)
        row_D[np.uintp(start + i)] = _f16_from_f32(_int4_level(pair & np.uint8(15)) * scale)
        row_D[np.uintp(start + half + i)] = _f16_from_f32(_int4_level(pair >> np.uint8(4)) * scale)
    if half > rest:
        last = _int4_level(_load_u8(source, first + rest) & np.uint8(15)) * scale
        row_D[np.uintp(start + rest)] = _f16_from_f32(last)


@kernel
def scatter_int4_f16(source, offsets_M, out_MD, group):
    num_bad, D = 0, out_MD.shape[1]
    code_bytes = (D + 1) // 2
    num_groups = (D + group - 1) // group
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, code_bytes + 2 * num_groups, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        for g in range(num_groups):
            start = g * group
            n = min(group, D - start)
            scale = _f32_from_bf16(_load_u16(source, at + code_bytes + 2 * g))
            if n == 32:
                _int4_run_f16(source, at + start // 2, scale, row_D, start, 16, 16)
            else:
                _int4_run_f16(source, at + start // 2, scale, row_D, start, (n + 1) // 2, n // 2)
    return num_bad


@inline
def _int4_run_bf16(source, first, scale, row_D, start, half, rest):
    for i in range(rest):
        pair = _load_u8(source, first + i)
        row_D[np.uintp(start + i)] = _bf16_from_f32(_int4_level(pair & np.uint8(15)) * scale)
        row_D[np.uintp(start + half + i)] = _bf16_from_f32(_int4_level(pair >> np.uint8(4)) * scale)
    if half > rest:
        last = _int4_level(_load_u8(source, first + rest) & np.uint8(15)) * scale
        row_D[np.uintp(start + rest)] = _bf16_from_f32(last)


@kernel
def scatter_int4_bf16(source, offsets_M, out_MD, group):
    num_bad, D = 0, out_MD.shape[1]
    code_bytes = (D + 1) // 2
    num_groups = (D + group - 1) // group
    for m in range(len(offsets_M)):
        at, row_D = offsets_M[m], out_MD[m]
        bad = _is_bad(at, code_bytes + 2 * num_groups, len(source))
        num_bad += bad
        if bad or at < 0:
            row_D[:] = 0
            continue
        for g in range(num_groups):
            start = g * group
            n = min(group, D - start)
            scale = _f32_from_bf16(_load_u16(source, at + code_bytes + 2 * g))
            if n == 32:
                _int4_run_bf16(source, at + start // 2, scale, row_D, start, 16, 16)
            else:
                _int4_run_bf16(source, at + start // 2, scale, row_D, start, (n + 1) // 2, n // 2)
    return num_bad
