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

    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None, *, first_row: int = 0) -> np.ndarray:
        """codes (M, D) i8, scales (M,) f32, finite."""
        codes_MD = self._codes_argument(codes_MD, "int8")
        scales_M = scales_argument(scales, "float32", (len(codes_MD),))
        refuse(~np.isfinite(scales_M[:, None]), scales_M[:, None], first_row, "scales are finite numbers")
        encoded_MB = np.empty((len(codes_MD), self.row_bytes), np.uint8)
        encoded_MB[:, : self.dim] = codes_MD.view(np.uint8)
        encoded_MB[:, self.dim :] = scales_M.astype("<f4").view(np.uint8).reshape(-1, 4)
        return encoded_MB

    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded_MB = self._encoded_argument(encoded_MB)
        scales_M = encoded_MB[:, self.dim :].copy().view("<f4").reshape(-1)
        return encoded_MB[:, : self.dim].copy().view(np.int8), scales_M

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        from ngramstore.kernels.native.quantize import quantize_int8

        scales_M = np.empty(len(rows_MD), np.float32)
        quantize_int8(rows_MD, encoded_MB[:, : self.dim].view(np.int8), scales_M)
        encoded_MB[:, self.dim :] = scales_M.astype("<f4").view(np.uint8).reshape(-1, 4)

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        # Half a step, and the rounding of the division, the scale and the product, each below 127 * 2**-23 of a step.
        _, scales_M = self.unpack(self.encode(rows_MD))
        return np.broadcast_to(scales_M.astype(np.float64)[:, None] * (0.5 + 2.0**-14), rows_MD.shape)
