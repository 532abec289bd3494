"""Floats -> codes and scales, in plain numpy: what each native kernel of the same name means.

Shapes: M rows, D row width, G groups (int4) or blocks (e4m3) in a row, S values in a group.
"""

from __future__ import annotations

import numpy as np

_TINY = np.finfo(np.float32).tiny
_WIDTHS_TRIED = (0.88, 0.94, 1.0, 1.06, 1.12, 1.18)


def quantize_int8(rows_MD: np.ndarray, codes_MD: np.ndarray, scales_M: np.ndarray) -> None:
    """(M, D) finite f32, C-contiguous -> codes (M, D) i8 and scales (M,) f32: largest magnitude / 127, 0 for a row of zeros.

    Where that quotient is subnormal it has few bits: it is rounded up there, so that no value is beyond 127 steps.
    Where the largest magnitude is near the end of f32 it is rounded down, so that 127 steps are finite.
    """
    largest_M = np.abs(rows_MD).max(axis=1)
    with np.errstate(under="ignore", over="ignore"):
        scales_M[:] = largest_M / np.float32(127)
        too_small_M = (scales_M < _TINY) & (scales_M.astype(np.float64) * 127 < largest_M)
        scales_M[too_small_M] = np.nextafter(scales_M[too_small_M], np.float32(np.inf))
        too_large_M = np.isinf(scales_M * np.float32(127))
        scales_M[too_large_M] = np.nextafter(scales_M[too_large_M], np.float32(0))
        steps_MD = rows_MD / np.where(scales_M == 0, np.float32(1), scales_M)[:, None]
    codes_MD[:] = np.clip(np.rint(steps_MD), -127, 127)


def _groups(rows_MD: np.ndarray, size: int) -> np.ndarray:
    """(M, D) -> (M, G, S), the last group filled up with zeros."""
    M, D = rows_MD.shape
    num_groups = -(-D // size)
    filled = np.zeros((M, num_groups * size), np.float32)
    filled[:, :D] = rows_MD
    return filled.reshape(M, num_groups, size)


def _int4_codes(steps: np.ndarray) -> np.ndarray:
    """Codes -8..7 whose levels c * (8 + |c|) are nearest to `steps`: c is the floor of sqrt(|steps| + 15.75) - 3.5."""
    sizes = np.floor(np.sqrt(np.abs(steps) + np.float32(15.75)) - np.float32(3.5))
    return np.where(steps < 0, -np.minimum(sizes, 8), np.minimum(sizes, 7)).astype(np.int32)


def _bf16_scales(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return ((rounded & 0x8000) | np.minimum(rounded & 0x7FFF, 0x7BFF)).astype(np.uint16)


def quantize_int4(rows_MD: np.ndarray, group: int, codes_MB: np.ndarray, scales_MG: np.ndarray) -> None:
    """(M, D) f32 -> two codes a byte (M, ceil(D / 2)) u8 and bf16 bits of the scales (M, G) u16.

    The value of largest magnitude (the positive one of two equals is not it) points at level -128. Six step widths are tried;
    of each, the step that fits best given its codes leaves the squared error  sum(x**2) - sum(x * level)**2 / sum(level**2).
    The least wins, is rounded to bf16, and each value takes the nearest level. The search runs on values rounded to 1/8192 of
    the largest, as integers.
    """
    D = rows_MD.shape[1]
    values_MGS = _groups(rows_MD, group)
    high_MG, low_MG = values_MGS.max(axis=2), values_MGS.min(axis=2)
    peak_MG = np.where(high_MG > -low_MG, high_MG, low_MG)
    divisor_MG = np.where(peak_MG == 0, np.float32(np.inf), peak_MG)
    with np.errstate(all="ignore"):
        normal_MGS = np.rint(values_MGS / divisor_MG[..., None] * np.float32(-8192)).astype(np.int32)
        best_MG, step_MG = np.full(peak_MG.shape, -1.0), np.zeros(peak_MG.shape)
        for width in _WIDTHS_TRIED:
            codes_MGS = _int4_codes(normal_MGS.astype(np.float32) * np.float32(128 / (8192 * width)))
            level_MGS = (codes_MGS * (8 + np.abs(codes_MGS))).astype(np.int64)
            product_MG = (normal_MGS * level_MGS).sum(axis=2).astype(np.float64)
            square_MG = (level_MGS * level_MGS).sum(axis=2).astype(np.float64)
            gain_MG = product_MG * product_MG / square_MG
            better_MG = gain_MG > best_MG
            best_MG = np.where(better_MG, gain_MG, best_MG)
            step_MG = np.where(better_MG, product_MG / square_MG, step_MG)
        scales_MG[...] = _bf16_scales((peak_MG.astype(np.float64) * step_MG / -8192).astype(np.float32))
        scales_MG[peak_MG == 0] = 0
        scale_MG = (scales_MG.astype(np.uint32) << 16).view(np.float32)
        divisor_MG = np.where(scale_MG == 0, np.float32(np.inf), scale_MG)
        codes_MGS = _int4_codes(values_MGS / divisor_MG[..., None]) + 8
    for g in range(values_MGS.shape[1]):
        n = min(group, D - g * group)
        half, at = (n + 1) // 2, g * group // 2
        codes_MB[:, at : at + half] = codes_MGS[:, g, :half]
        codes_MB[:, at : at + n - half] |= (codes_MGS[:, g, half:n] << 4).astype(np.uint8)


def compensate_int4(
    values_MS: np.ndarray, scales_M: np.ndarray, factor_SS: np.ndarray, codes_MS: np.ndarray, errors_MS: np.ndarray
) -> None:
    """A group of S values of M rows -> codes (M, S) i8, each error made good by the values that follow. values: changed.

    Value by value: take the nearest level; what it misses, divided by factor[s, s], is errors[:, s]; take errors[:, s] times
    factor[s, t] from every value t that follows. A scale of 0 gives codes 0.
    """
    divisor_M = np.where(scales_M == 0, np.float32(np.inf), scales_M)
    for s in range(values_MS.shape[1]):
        codes_M = _int4_codes(values_MS[:, s] / divisor_M)
        codes_MS[:, s] = codes_M
        levels_M = (codes_M * (8 + np.abs(codes_M))).astype(np.float32)
        errors_MS[:, s] = (values_MS[:, s] - levels_M * scales_M) / factor_SS[s, s]
        values_MS[:, s + 1 :] -= errors_MS[:, s, None] * factor_SS[s, s + 1 :]


def quantize_e4m3(rows_MD: np.ndarray, block: int, codes_MD: np.ndarray, scales_MG: np.ndarray) -> None:
    """(M, D) f32 -> E4M3FN codes (M, D) u8 and ue8m0 scales (M, G) u8. block 0: no scales, rows are divided already.

    A scale is the least power of two, 2**-126 at least, that brings the largest magnitude of the block to 448 or below.
    """
    D = rows_MD.shape[1]
    if block:
        blocks_MGS = _groups(rows_MD, block)
        fraction_MG, exponent_MG = np.frexp(np.abs(blocks_MGS).max(axis=2))  # 448 = 0.875 * 2**9
        power_MG = np.maximum(exponent_MG - 9 + (fraction_MG > 0.875), -126)
        power_MG[fraction_MG == 0] = -126
        scales_MG[...] = power_MG + 127
        with np.errstate(under="ignore"):
            rows_MD = np.ldexp(blocks_MGS, -power_MG[..., None]).reshape(len(rows_MD), -1)[:, :D]
    # Codes count up with the magnitude: find the nearest of the 127 magnitudes, the even code where two are as near.
    codes = np.arange(0x7F)
    magnitudes = np.where(codes < 8, codes * 2.0**-9, (1 + codes % 8 / 8) * 2.0 ** (codes // 8 - 7))
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    below_MD = np.searchsorted(middles, np.abs(rows_MD), side="left")
    above_MD = np.searchsorted(middles, np.abs(rows_MD), side="right")
    nearest_MD = np.where(below_MD % 2 == 0, below_MD, above_MD)
    codes_MD[...] = nearest_MD | np.where(np.signbit(rows_MD), 0x80, 0)
