"""Floats -> codes and scales, compiled, for the codecs whose encoding numpy does slowly (int8, int4 and e4m3).

The meaning of each kernel: the function of the same name in kernels/reference/quantize.py, equal byte for byte. Sums run over
integers, so that the order in which a CPU adds them changes nothing: the same rows give the same bytes everywhere.

Shapes: M rows, D row width, G groups (int4) or blocks (e4m3) in a row.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline, kernel

# Widths tried by the int4 search, as 1 / (8192 * width / 128): 0.88 to 1.18 of the step that just reaches the largest value.
_TRIED = tuple(np.float32(128.0 / (8192.0 * width)) for width in (0.88, 0.94, 1.0, 1.06, 1.12, 1.18))


_TINY = np.float32(2.0**-126)  # the smallest f32 that is not subnormal


@kernel
def quantize_int8(rows_MD, codes_MD, scales_M):
    """(M, D) finite f32, C-contiguous -> codes (M, D) i8 and scales (M,) f32."""
    for m in range(rows_MD.shape[0]):
        row_D = rows_MD[m]
        bits_D = row_D.view(np.uint32)
        peak = np.uint32(0)
        for d in range(bits_D.size):  # magnitudes compare like their bits, and integers need no care for NaN
            peak = max(peak, np.uint32(bits_D[d] & np.uint32(0x7FFFFFFF)))
        largest = np.uint32(peak).view(np.float32)
        scale = np.float32(largest / np.float32(127))
        if scale < _TINY and np.float64(scale) * 127.0 < np.float64(largest):
            scale = np.uint32(np.float32(scale).view(np.uint32) + np.uint32(1)).view(np.float32)
        if np.isinf(np.float32(scale * np.float32(127))):
            scale = np.uint32(np.float32(scale).view(np.uint32) - np.uint32(1)).view(np.float32)
        scales_M[m] = scale
        divisor = scale if scale != np.float32(0) else np.float32(1)
        for d in range(row_D.size):
            code = np.rint(row_D[d] / divisor)
            codes_MD[m, d] = np.int8(max(min(code, np.float32(127)), np.float32(-127)))


@inline
def _int4_code(steps):
    """Code -8..7 whose level c * (8 + |c|) is nearest to `steps` (a value divided by the scale)."""
    size = np.floor(np.sqrt(np.abs(steps) + np.float32(15.75)) - np.float32(3.5))
    return np.int32(-min(size, np.float32(8))) if steps < 0 else np.int32(min(size, np.float32(7)))


@inline
def _bf16_scale(value):
    """f32 -> bf16 bits, to nearest even, at most 0x7BFF in magnitude: 128 times it is finite."""
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return np.uint16((rounded & np.uint32(0x8000)) | min(rounded & np.uint32(0x7FFF), np.uint32(0x7BFF)))


@kernel
def quantize_int4(rows_MD, group, codes_MB, scales_MG):
    """(M, D) f32 -> two codes a byte (M, ceil(D / 2)) u8 and bf16 bits of the scales (M, G) u16."""
    M, D = rows_MD.shape
    normal = np.empty(group, np.int32)
    codes = np.empty(group, np.uint8)
    for m in range(M):
        for g in range(scales_MG.shape[1]):
            start = g * group
            values = rows_MD[m, start : min(start + group, D)]
            n = len(values)
            half = (n + 1) // 2
            high, low = np.float32(0), np.float32(0)
            for i in range(n):
                high = max(high, values[i])
                low = min(low, values[i])
            peak = high if high > -low else low
            bits = np.uint16(0)
            if peak != 0:
                for i in range(n):
                    normal[i] = np.int32(np.rint(values[i] / peak * np.float32(-8192)))
                best, best_step = -1.0, 0.0
                for tried in _TRIED:
                    product, square = np.int32(0), np.int32(0)
                    for i in range(n):
                        code = _int4_code(np.float32(normal[i]) * tried)
                        level = np.int32(code * (np.int32(8) + abs(code)))
                        product += np.int32(normal[i] * level)
                        square += np.int32(level * level)
                    gain = np.float64(product) * np.float64(product) / np.float64(square)
                    if gain > best:
                        best = gain
                        best_step = np.float64(product) / np.float64(square)
                bits = _bf16_scale(np.float32(np.float64(peak) * best_step / -8192.0))
            scales_MG[m, g] = bits
            scale = np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
            divisor = scale if scale != 0 else np.float32(np.inf)
            for i in range(n):
                codes[i] = np.uint8(_int4_code(values[i] / divisor) + np.int32(8))
            at = start // 2
            for i in range(n - half):
                codes_MB[m, at + i] = codes[i] | np.uint8(codes[half + i] << 4)
            if n % 2:
                codes_MB[m, at + half - 1] = codes[half - 1]


@kernel
def compensate_int4(values_MS, scales_M, factor_SS, codes_MS, errors_MS):
    """A group of S values of M rows -> codes (M, S) i8, each error made good by the values that follow. values: changed.

    scales (M,) f32 of the group. factor (S, S) f32: upper triangular, as in `SecondOrderInt4`. errors (M, S) f32 become
    what is to be made good in the groups that follow: the error of each code by factor[s, s].
    """
    M, S = values_MS.shape
    for m in range(M):
        scale = scales_M[m]
        divisor = scale if scale != np.float32(0) else np.float32(np.inf)
        for s in range(S):
            code = _int4_code(np.float32(values_MS[m, s] / divisor))
            codes_MS[m, s] = code
            level = np.int32(code * np.int32(np.int32(8) + abs(code)))
            error = np.float32((values_MS[m, s] - np.float32(level) * scale) / factor_SS[s, s])
            errors_MS[m, s] = error
            for t in range(s + 1, S):
                values_MS[m, t] -= np.float32(error * factor_SS[s, t])


@inline
def _e4m3_code(value):
    """f32 of magnitude 464 at most -> E4M3FN code, to nearest even."""
    bits = np.float32(value).view(np.uint32)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    moved = np.uint32(size - np.uint32(0x3C000000))
    odd = np.uint32(np.uint32(moved >> np.uint32(20)) & np.uint32(1))
    normal = np.uint32(np.uint32(np.uint32(moved + np.uint32(0x7FFFF)) + odd) >> np.uint32(20))
    # Adding 2**14 leaves the subnormal code, rounded by the adder, in the last bits.
    tiny = np.uint32(np.float32(size.view(np.float32) + np.float32(16384)).view(np.uint32) - np.uint32(0x46800000))
    code = tiny if size < np.uint32(0x3C800000) else normal
    return np.uint8(code | np.uint32(np.uint32(bits >> np.uint32(24)) & np.uint32(0x80)))


@kernel
def quantize_e4m3(rows_MD, block, codes_MD, scales_MG):
    """(M, D) f32 -> E4M3FN codes (M, D) u8 and ue8m0 scales (M, G) u8. block 0: no scales, rows are divided already."""
    M, D = rows_MD.shape
    width = block if block else D
    for m in range(M):
        for start in range(0, D, width):
            end = min(start + width, D)
            inverse = np.float32(1)
            if block:
                largest = np.uint32(0)
                for d in range(start, end):
                    largest = max(largest, np.uint32(np.float32(rows_MD[m, d]).view(np.uint32) & np.uint32(0x7FFFFFFF)))
                # The least power of two that brings the largest magnitude to 448 = 1.75 * 2**8 or below; 2**-126 at least.
                above = np.int32((largest & np.uint32(0x7FFFFF)) > np.uint32(0x600000))
                scale = max(np.int32(largest >> np.uint32(23)) - np.int32(8) + above, np.int32(1))
                scales_MG[m, start // width] = scale
                inverse = np.uint32(np.uint32(254 - scale) << np.uint32(23)).view(np.float32)
            for d in range(start, end):
                codes_MD[m, d] = _e4m3_code(rows_MD[m, d] * inverse)
