"""Rows stored as 4-bit codes with a bf16 scale for each group: 4.5 bits a value. Implements docs/codecs.md, section int4.

value = c * (8 + |c|) * scale with c = -8..7: the steps grow with the magnitude, and the sign of the scale puts the largest
value of a group at -8. Why these levels, this group and this scale: docs/codecs.md, from bench/results/codec_error.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ngramstore.codec.base import Codec, refuse, scales_argument
from ngramstore.errors import UsageError
from ngramstore.options import is_whole

_MAX_GROUP = 1024  # 8192 * 128 * 1024 = 2**30: the sums of the search fit 32 bits


@dataclass(frozen=True)
class Int4(Codec):
    """`group`: how many neighbouring values share a scale, 4 + 16 / group bits a value. Smaller: more exact and larger."""

    name = "int4"
    options: ClassVar[tuple[str, ...]] = ("group",)
    group: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.group) or self.group % 2 or not 2 <= self.group <= _MAX_GROUP:
            raise UsageError(f"int4 with group={self.group!r}", hint=f"group is an even number from 2 to {_MAX_GROUP}")
        object.__setattr__(self, "group", int(self.group))  # the manifest keeps it as JSON

    @property
    def num_groups(self) -> int:
        """Scales in a row; the last group is short where `group` does not divide `dim`."""
        return -(-self.dim // self.group)

    @property
    def row_bytes(self) -> int:
        return self._code_bytes + 2 * self.num_groups

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "group": self.group}

    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None, *, first_row: int = 0) -> np.ndarray:
        """codes (M, D) i8 in -8..7, scales (M, num_groups) u16: the bits of bf16 numbers, finite."""
        codes_MD = self._codes_argument(codes_MD, "int8")
        refuse((codes_MD < -8) | (codes_MD > 7), codes_MD, first_row, "int4 codes are -8 to 7")
        scales_MG = scales_argument(scales, "uint16", (len(codes_MD), self.num_groups))
        refuse((scales_MG & 0x7F80) == 0x7F80, scales_MG, first_row, "scales are finite numbers")
        encoded_MB = np.empty((len(codes_MD), self.row_bytes), np.uint8)
        stored_MD = (codes_MD + 8).astype(np.uint8)
        for start, half, n in self._group_places():
            bytes_MH = encoded_MB[:, start // 2 : start // 2 + half]
            bytes_MH[...] = stored_MD[:, start : start + half]
            bytes_MH[:, : n - half] |= stored_MD[:, start + half : start + n] << 4
        encoded_MB[:, self._code_bytes :] = scales_MG.astype("<u2").view(np.uint8)
        return encoded_MB

    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded_MB = self._encoded_argument(encoded_MB)
        codes_MD = np.empty((len(encoded_MB), self.dim), np.int8)
        for start, half, n in self._group_places():
            bytes_MH = encoded_MB[:, start // 2 : start // 2 + half]
            codes_MD[:, start : start + half] = bytes_MH & 15
            codes_MD[:, start + half : start + n] = bytes_MH[:, : n - half] >> 4
        codes_MD -= 8
        return codes_MD, encoded_MB[:, self._code_bytes :].copy().view("<u2")

    @property
    def _code_bytes(self) -> int:
        return (self.dim + 1) // 2

    def _group_places(self) -> list[tuple[int, int, int]]:
        """(first column, values in low halves, values) of each group."""
        sizes = ((start, min(self.group, self.dim - start)) for start in range(0, self.dim, self.group))
        return [(start, (n + 1) // 2, n) for start, n in sizes]

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        from ngramstore.kernels.native.quantize import quantize_int4

        scales_MG = np.empty((len(rows_MD), self.num_groups), np.uint16)
        quantize_int4(rows_MD, self.group, encoded_MB[:, : self._code_bytes], scales_MG)
        encoded_MB[:, self._code_bytes :] = scales_MG.astype("<u2").view(np.uint8)

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        """Half the widest gap between levels (105 to 128: 11.5 scales), and for values beyond the levels what is cut off."""
        _, scale_bits_MG = self.unpack(self.encode(rows_MD))
        scales_MG = (scale_bits_MG.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        scales_MD = np.repeat(scales_MG, self.group, axis=1)[:, : self.dim]
        ends_MD = np.stack([-128 * scales_MD, 105 * scales_MD])
        beyond_MD = np.maximum(rows_MD - ends_MD.max(axis=0), ends_MD.min(axis=0) - rows_MD)
        # The code is found from a quotient rounded to f32: a value may miss the nearest level by 128 * 2**-22 scales.
        return np.maximum((11.5 + 2.0**-14) * np.abs(scales_MD), beyond_MD)

    def _writer_arguments(self) -> tuple[int, int]:
        return self.group, 0
