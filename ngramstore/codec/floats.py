"""Rows stored as floats: f32 and, at half the bytes, f16 and bf16 (lossless for rows that were so before).

Implements docs/codecs.md, sections f32, f16 and bf16.
"""

from __future__ import annotations

import numpy as np

from ngramstore.codec.base import Codec, refuse
from ngramstore.errors import UsageError


class _FloatCodec(Codec):
    """D little-endian numbers, nothing else. The codes of pack and unpack are these numbers."""

    _stored: str
    _codes: str

    @property
    def row_bytes(self) -> int:
        return np.dtype(self._stored).itemsize * self.dim

    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None, *, first_row: int = 0) -> np.ndarray:
        if scales is not None:
            raise UsageError(
                f"{self.name} has no scales", hint="leave the scales out, or choose the codec they belong to"
            )
        return self._codes_argument(codes_MD, self._codes).astype(self._stored).view(np.uint8)

    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, None]:
        return self._encoded_argument(encoded_MB).view(self._stored).copy(), None


class F32(_FloatCodec):
    """4 bytes a value, every f32 kept bit by bit."""

    name = "f32"
    _stored = "<f4"
    _codes = "float32"

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        encoded_MB.view(self._stored)[...] = rows_MD

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        return np.zeros(rows_MD.shape)


class F16(_FloatCodec):
    """2 bytes a value: 11 significant bits, up to 65504."""

    name = "f16"
    _stored = "<f2"
    _codes = "float16"

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        stored_MD = encoded_MB.view(self._stored)
        with np.errstate(over="ignore", under="ignore"):
            stored_MD[...] = rows_MD
        refuse(np.isinf(stored_MD), rows_MD, first_row, "f16 ends at 65504; use bf16 or int8")

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(rows_MD.astype(np.float64)) * 2.0**-11, 2.0**-25)


class BF16(_FloatCodec):
    """2 bytes a value: 8 significant bits, the range of f32. The codes of pack and unpack are its bits in u16."""

    name = "bf16"
    _stored = "<u2"
    _codes = "uint16"

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        bits_MD = rows_MD.view(np.uint32)
        rounded_MD = (bits_MD + np.uint32(0x7FFF) + (bits_MD >> 16 & 1)) >> 16
        refuse((rounded_MD & 0x7FFF) == 0x7F80, rows_MD, first_row, "bf16 ends at 3.3895e38")
        encoded_MB.view(self._stored)[...] = rounded_MD

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(rows_MD.astype(np.float64)) * 2.0**-8, 2.0**-134)
