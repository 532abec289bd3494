"""Rows stored as signed bytes and one f32 scale: about 8 bits a value. Implements docs/codecs.md, section int8."""

from __future__ import annotations

import numpy as np

from ngramstore.codec.base import Codec, refuse, scales_argument


class Int8(Codec):
    """value = code * scale, codes -127..127, scale = the row's largest magnitude / 127."""

    name = "int8"

    @property
    def row_bytes(self) -> int:
        return self.dim + 4

    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
        """codes (M, D) i8, scales (M,) f32, finite."""
        codes_MD = self._codes_argument(codes_MD, "int8")
        scales_M = scales_argument(scales, "float32", (len(codes_MD),))
        refuse(~np.isfinite(scales_M[:, None]), scales_M[:, None], 0, "scales are finite numbers")
        encoded_MB = np.empty((len(codes_MD), self.row_bytes), np.uint8)
        encoded_MB[:, : self.dim] = codes_MD.view(np.uint8)
        encoded_MB[:, self.dim :] = scales_M.astype("<f4").view(np.uint8).reshape(-1, 4)
        return encoded_MB

    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded_MB = self._encoded_argument(encoded_MB)
        scales_M = np.ascontiguousarray(encoded_MB[:, self.dim :]).view("<f4").reshape(-1)
        return np.ascontiguousarray(encoded_MB[:, : self.dim]).view(np.int8), scales_M

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        scales_M = _scales(rows_MD)
        with np.errstate(under="ignore"):
            codes_MD = rows_MD / np.where(scales_M == 0, np.float32(1), scales_M)[:, None]
        np.rint(codes_MD, out=codes_MD)
        np.clip(codes_MD, -127, 127, out=codes_MD)
        encoded_MB[:, : self.dim].view(np.int8)[...] = codes_MD
        encoded_MB[:, self.dim :] = scales_M.astype("<f4").view(np.uint8).reshape(-1, 4)

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        # Half a step, and the rounding of the division, the scale and the product, each below 127 * 2**-23 of a step.
        return np.broadcast_to(_scales(rows_MD).astype(np.float64)[:, None] * (0.5 + 2.0**-14), rows_MD.shape)


def _scales(rows_MD: np.ndarray) -> np.ndarray:
    """(M, D) -> (M,) f32: largest magnitude / 127, 0 for a row of zeros.

    Where that quotient is subnormal it has few bits: it is rounded up there, so that no value is beyond 127 steps.
    Where the largest magnitude is near the end of f32 it is rounded down, so that 127 steps are finite.
    """
    largest_M = np.maximum(np.abs(rows_MD.max(axis=1)), np.abs(rows_MD.min(axis=1)))
    with np.errstate(under="ignore", over="ignore"):
        scales_M = largest_M / np.float32(127)
        too_small_M = (scales_M < np.finfo(np.float32).tiny) & (scales_M.astype(np.float64) * 127 < largest_M)
        scales_M[too_small_M] = np.nextafter(scales_M[too_small_M], np.float32(np.inf))
        too_large_M = np.isinf(scales_M * np.float32(127))
        scales_M[too_large_M] = np.nextafter(scales_M[too_large_M], np.float32(0))
    return scales_M
