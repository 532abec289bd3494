"""Rows stored as 8-bit floats (OCP FP8 E4M3FN) with power-of-two block scales. Implements docs/codecs.md, section e4m3.

Tables that ship in this format are taken over bit by bit with `pack`. Formats: OCP 8-bit Floating Point Specification (OFP8)
and OCP Microscaling Formats (MX) 1.0 for the scales, ue8m0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ngramstore.codec.base import Codec, refuse, scales_argument
from ngramstore.errors import UsageError
from ngramstore.options import is_whole

_LARGEST_CODED = 464.0  # halfway from 448, the largest code, to what would be the next; rounds to 448
_ENDS_AT = float.fromhex("0x1.fp127")  # with four significant bits this rounds to 2**128, which is not an f32


@dataclass(frozen=True)
class E4M3(Codec):
    """`block`: how many neighbouring values share a scale byte. block=0: none, `scale` is the f32 scale of the whole table.

    `scale` is given as a number or, exactly, as a hexadecimal string such as "0x1.8p-3".
    """

    name = "e4m3"
    options: ClassVar[tuple[str, ...]] = ("block", "scale")
    block: int = 32
    scale: str | float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_whole(self.block) or not 0 <= self.block <= 1 << 20:
            raise UsageError(
                f"e4m3 with block={self.block!r}", hint="block is 0 (one scale for the table) or, usually, 32"
            )
        if self.block and self.scale is not None:
            raise UsageError(
                f"e4m3 with block={self.block} and scale={self.scale!r}", hint="a table scale needs block=0"
            )
        object.__setattr__(self, "block", int(self.block))  # the manifest keeps it as JSON
        if not self.block:
            object.__setattr__(self, "scale", _table_scale(self.scale).hex())

    @property
    def num_blocks(self) -> int:
        """Scale bytes in a row; the last block is short where `block` does not divide `dim`."""
        return -(-self.dim // self.block) if self.block else 0

    @property
    def row_bytes(self) -> int:
        return self.dim + self.num_blocks

    def spec(self) -> dict[str, Any]:
        return {"name": self.name, "block": self.block} | ({} if self.block else {"scale": self.scale})

    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None, *, first_row: int = 0) -> np.ndarray:
        """codes (M, D) u8 or float8_e4m3fn, scales (M, num_blocks) u8 or float8_e8m0fnu (None where block is 0)."""
        codes_MD = self._codes_argument(codes_MD, "uint8", "float8_e4m3fn").view(np.uint8)
        if not self.block:
            if scales is not None:
                raise UsageError(
                    "e4m3 with block=0 has no scales a row", hint="its one scale is an option of the codec"
                )
            return codes_MD.copy()
        if np.asarray(scales).dtype.name == "float8_e8m0fnu":
            scales = np.asarray(scales).view(np.uint8)
        return np.concatenate([codes_MD, scales_argument(scales, "uint8", (len(codes_MD), self.num_blocks))], axis=1)

    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes and scales as u8."""
        encoded_MB = self._encoded_argument(encoded_MB)
        return encoded_MB[:, : self.dim].copy(), encoded_MB[:, self.dim :].copy() if self.block else None

    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        from ngramstore.kernels.native.quantize import quantize_e4m3

        if not self.block:
            with np.errstate(over="ignore", under="ignore"):
                divided_MD = rows_MD / self._scale
            hint = f"e4m3 with scale {self.scale} ends at {448 * self._scale:.6g}; use a larger scale, or block=32"
            refuse(np.abs(divided_MD) > _LARGEST_CODED, rows_MD, first_row, hint)
            rows_MD = divided_MD
        else:
            refuse(np.abs(rows_MD) >= _ENDS_AT, rows_MD, first_row, f"e4m3 with block scales ends below {_ENDS_AT:.5g}")
        quantize_e4m3(rows_MD, self.block, encoded_MB[:, : self.dim], encoded_MB[:, self.dim :])

    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        """A sixteenth of the value (4 significant bits) or half the least step, and with a table scale f32 roundings."""
        sizes_MD = np.abs(rows_MD.astype(np.float64))
        if not self.block:
            scale = float(self._scale)
            return np.maximum(sizes_MD * (2.0**-4 + 2.0**-22), scale * (2.0**-10 + 2.0**-32))
        _, scales_MG = self.unpack(self.encode(rows_MD))
        assert scales_MG is not None
        steps_MG = np.ldexp(1.0, scales_MG.astype(np.int32) - 127 - 10)
        return np.maximum(sizes_MD * 2.0**-4, np.repeat(steps_MG, self.block, axis=1)[:, : self.dim])

    @property
    def _scale(self) -> np.float32:
        return np.float32(1) if self.block else np.float32(float.fromhex(str(self.scale)))

    def _writer_arguments(self) -> tuple[int, int]:
        return self.block, int(self._scale.view(np.uint32))


def _table_scale(scale: object) -> float:
    hint = 'block=0 needs scale, a positive f32 number, such as "0x1.8p-3"'
    try:
        is_hex = isinstance(scale, str) and "0x" in scale.lower()
        value = float.fromhex(str(scale)) if is_hex else float(scale)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"e4m3 with block=0 and scale={scale!r}", hint=hint) from None
    if not 2.0**-126 <= value <= 2.0**118 or value != float(np.float32(value)):
        raise UsageError(f"e4m3 with scale={scale!r}", hint=f"{hint}, from 2**-126 to 2**118, exactly representable")
    return value
