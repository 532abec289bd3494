"""Ways to store a trained table that are no codecs of the product: quantized and decoded in numpy, with the bytes they
would take.

A way is a function of rows (N, D) f32 that gives the rows as they would be read (N, D) f32, and the rows as they would be
stored (N, B) u8, from which size on disk follows: with zstd frames like the store's, and the entropy of single symbols.

Shapes: N rows, D row width, B bytes of a stored row, G groups of a row, S values of a group, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from bench.codec_error import QLORA_NF4, SEARCH, bf16_scales, byte_scales, growing
from ngramstore.codec import codec_from_spec

Way = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

STEPS = (0.16, 0.2, 0.25, 0.36)
"""Steps of the uniform ways, in units of the RMS of the row (or of the table)."""


def ways() -> Iterator[tuple[str, str, Way]]:
    """(family, name, way) of every candidate."""
    for step in STEPS:
        yield "uniform step of the row, a byte a value", f"{step} RMS of the row", partial(of_row, step=step)
    for step in STEPS:
        yield "uniform step of the table, a byte a value", f"{step} RMS of the table", partial(of_table, step=step)
    for step in STEPS:
        yield "principal axes, uniform step of the table", f"{step} RMS of the table", partial(
            rotated, way=partial(of_table, step=step), axes=principal_axes
        )  # fmt: skip
    yield "random rotation, then int4", "groups of 32", partial(rotated, way=int4, axes=random_axes)
    even = np.arange(-8, 8) / 8
    grown = growing(1 / 8)
    for group in (16, 32):
        yield "16 levels, 8-bit scales", f"groups of {group}", partial(
            grouped, group=group, levels_L=grown, scales=byte_scales, signed=True
        )  # fmt: skip
    yield "NF4 levels", "groups of 32", partial(grouped, group=32, levels_L=QLORA_NF4, scales=bf16_scales, signed=False)
    yield "even levels", "groups of 32", partial(grouped, group=32, levels_L=even, scales=bf16_scales, signed=True)
    yield "int4, 25 scales tried", "groups of 32", partial(
        grouped, group=32, levels_L=grown, scales=bf16_scales, signed=True, search=tuple(np.linspace(0.7, 1.3, 25))
    )  # fmt: skip


def of_row(rows_ND: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the bytes of codec int8, the step a part of the row's RMS instead of its largest value / 127."""
    step_N1 = np.sqrt(np.mean(rows_ND**2, axis=1, keepdims=True)) * np.float32(step)
    step_N1 = np.maximum(step_N1, np.abs(rows_ND).max(axis=1, keepdims=True) / 127)
    codes_ND = np.rint(rows_ND / step_N1).astype(np.int8)
    scales_N4 = step_N1.astype("<f4").view(np.uint8)
    return codes_ND * step_N1, np.concatenate([codes_ND.view(np.uint8), scales_N4], axis=1)


def of_table(rows_ND: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """One step for all rows, no scales stored."""
    size = np.float32(np.sqrt(np.mean(rows_ND**2)) * step)
    codes_ND = np.rint(rows_ND / size).clip(-127, 127).astype(np.int8)
    return codes_ND * size, codes_ND.view(np.uint8)


def int4(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codec int4 as it is."""
    codec = codec_from_spec("int4", rows_ND.shape[1])
    stored_NB = codec.encode(rows_ND)
    return codec.decode(stored_NB), stored_NB


def rotated(rows_ND: np.ndarray, way: Way, axes: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Another way along other axes: a read would multiply each row by a (D, D) matrix."""
    axes_DD = axes(rows_ND)
    decoded_ND, stored_NB = way(rows_ND @ axes_DD)
    return decoded_ND @ axes_DD.T, stored_NB


def random_axes(rows_ND: np.ndarray) -> np.ndarray:
    """A random orthogonal matrix (D, D) f32."""
    dim = rows_ND.shape[1]
    return np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0].astype(np.float32)


def principal_axes(rows_ND: np.ndarray) -> np.ndarray:
    """The eigenvectors of the rows' second moments (D, D) f32."""
    return np.linalg.eigh(rows_ND.T.astype(np.float64) @ rows_ND)[1].astype(np.float32)


def grouped(
    rows_ND: np.ndarray,
    group: int,
    levels_L: np.ndarray,
    scales: Callable[[np.ndarray, int], np.ndarray],
    signed: bool,
    search: tuple[float, ...] = SEARCH[::2],
) -> tuple[np.ndarray, np.ndarray]:
    """16 levels in groups that share a scale; the scale of least squared error among those tried, each fitted."""
    decoded, stored = zip(
        *(
            _grouped(part_MD, group, levels_L, scales, signed, search)
            for part_MD in np.array_split(rows_ND, max(1, len(rows_ND) // 4096))
        ),
        strict=True,
    )
    return np.concatenate(decoded), np.concatenate(stored)


def _grouped(
    rows_MD: np.ndarray,
    group: int,
    levels_L: np.ndarray,
    scales: Callable[[np.ndarray, int], np.ndarray],
    signed: bool,
    search: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    values_GS = rows_MD.reshape(-1, group)
    peak_G1 = np.take_along_axis(values_GS, np.abs(values_GS).argmax(axis=1)[:, None], axis=1)
    width_G1 = -peak_G1 if signed else np.abs(peak_G1)
    levels_L = levels_L.astype(np.float32)
    middles = (levels_L[1:] + levels_L[:-1]) / 2
    best_GS, least_G = np.zeros(values_GS.shape, np.uint8), np.full(len(values_GS), np.inf)
    best_G1 = np.ones((len(values_GS), 1), np.float32)
    for multiple in search:
        scale_G1 = width_G1 * np.float32(multiple)
        fitted_GS = levels_L[np.searchsorted(middles, values_GS / scale_G1)]
        scale_G1 = (values_GS * fitted_GS).sum(axis=1, keepdims=True) / (fitted_GS**2).sum(axis=1, keepdims=True)
        scale_G1 = scales(scale_G1, len(rows_MD)).astype(np.float32)
        codes_GS = np.searchsorted(middles, values_GS / scale_G1).astype(np.uint8)
        error_G = ((levels_L[codes_GS] * scale_G1 - values_GS) ** 2).sum(axis=1)
        better_G = error_G < least_G
        best_GS[better_G], least_G[better_G] = codes_GS[better_G], error_G[better_G]
        best_G1[better_G] = scale_G1[better_G]
    packed_MB = (best_GS[:, ::2] | best_GS[:, 1::2] << 4).reshape(len(rows_MD), -1)
    scales_MG = best_G1.reshape(len(rows_MD), -1)
    stored = _scale_bytes(scales_MG) if scales is byte_scales else (scales_MG.view(np.uint32) >> 16).astype("<u2")
    stored_MB = np.ascontiguousarray(stored).view(np.uint8).reshape(len(rows_MD), -1)
    return (levels_L[best_GS] * best_G1).reshape(rows_MD.shape), np.concatenate([packed_MB, stored_MB], axis=1)


def _scale_bytes(scales_MG: np.ndarray) -> np.ndarray:
    """Sign, 4 bits of exponent, 3 of mantissa under a power of two of the row, and that power's byte: (M, G + 1) u8."""
    fraction_MG, exponent_MG = np.frexp(scales_MG)
    top_M1 = exponent_MG.max(axis=1, keepdims=True)
    below_MG = np.minimum(top_M1 - exponent_MG, 15)
    mantissa_MG = np.rint((np.abs(fraction_MG) - 0.5) * 16).clip(0, 7).astype(np.uint8)
    codes_MG = np.signbit(scales_MG).astype(np.uint8) << 7 | below_MG.astype(np.uint8) << 3 | mantissa_MG
    return np.concatenate([codes_MG, (top_M1 + 128).astype(np.uint8)], axis=1)
