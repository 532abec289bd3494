"""Stored rows -> numbers with torch operations, so that codes and scales travel to the accelerator and not floats.

The same values, bit by bit, as the store's own kernels (docs/codecs.md says what the bytes mean).

Shapes: M rows, R bytes of a stored row, D row width, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ngramstore.errors import UsageError

CODED = ("int8", "e4m3")
"""Codecs whose codes are numbers of 8 bits that an accelerator knows."""
_WIDE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def saves_transfer(codec: Any, dtype: torch.dtype) -> bool:
    """Stored rows of this codec are smaller than rows of `dtype`."""
    return codec.row_bytes < codec.dim * dtype.itemsize


def dequantize(codec: Any, stored_MR: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, R) u8 on any device -> (M, D) of `dtype`, rounded once from float32. A row of zero bytes is a row of zeros."""
    D = codec.dim
    if codec.name in _WIDE:
        return stored_MR.contiguous().view(_WIDE[codec.name]).to(dtype)
    if codec.name == "int8":
        scale_M1 = _copied(stored_MR[:, D:]).view(torch.float32)
        return (stored_MR[:, :D].view(torch.int8).float() * scale_M1).to(dtype)
    if codec.name == "int4":
        return _int4(stored_MR, D, codec.group).to(dtype)
    if codec.name != "e4m3":
        raise UsageError(f"rows of codec {codec.name} cannot be dequantized with torch", hint="let the store do it")
    values_MD = stored_MR[:, :D].contiguous().view(torch.float8_e4m3fn).float()
    if not codec.block:
        return (values_MD * float.fromhex(codec.scale)).to(dtype)
    scale_MG = _ue8m0(stored_MR[:, D:])
    # A row that was not found is all zero bytes: its scale byte 0 means 2**-127, and 0 * 2**-127 is 0.
    return (values_MD * scale_MG.repeat_interleave(codec.block, 1)[:, :D]).to(dtype)


def codes_and_scales(codec: Any, stored: Tensor) -> tuple[Tensor, Tensor]:
    """(.., R) u8 of codec int8 or e4m3 -> codes (.., D) int8 or float8_e4m3fn, and scales (.., G) f32.

    A row is codes * scales. int8, and e4m3 with block 0, have one scale for all of a row; else scale g is that of columns
    g * codec.block to (g + 1) * codec.block, the last of which may not be there. Codes are not copied.
    """
    codes, rest = stored[..., : codec.dim], stored[..., codec.dim :]
    if codec.name == "int8":
        return codes.view(torch.int8), _copied(rest).view(torch.float32)
    if codec.name not in CODED:
        raise UsageError(
            f"rows of codec {codec.name} hold no codes of 8 bits", hint=f"codecs that do: {', '.join(CODED)}"
        )
    if codec.block:
        return codes.view(torch.float8_e4m3fn), _ue8m0(rest)
    table_scale = torch.full((1,), float.fromhex(codec.scale), device=stored.device)
    return codes.view(torch.float8_e4m3fn), table_scale.expand(*stored.shape[:-1], 1)


def _copied(part: Tensor) -> Tensor:
    """Bytes that begin where wider numbers may: `contiguous` leaves a part of a single row where it is."""
    return part.clone(memory_format=torch.contiguous_format)


def _int4(stored_MR: Tensor, D: int, group: int) -> Tensor:
    code_bytes = (D + 1) // 2
    scale_MG = (_copied(stored_MR[:, code_bytes:]).view(torch.int16).int() << 16).view(torch.float32)
    full = D // group
    bytes_MGH = stored_MR[:, : full * group // 2].unflatten(1, (full, group // 2)) if full else None
    parts = []
    if bytes_MGH is not None:
        codes = torch.cat((bytes_MGH & 15, bytes_MGH >> 4), 2)
        parts.append((_level(codes) * scale_MG[:, :full, None]).flatten(1))
    if rest := D - full * group:
        tail = stored_MR[:, full * group // 2 : code_bytes]
        codes = torch.cat((tail & 15, tail >> 4), 1)[:, :rest]
        parts.append(_level(codes) * scale_MG[:, full:])
    return torch.cat(parts, 1) + 0.0  # of a row of zero bytes, -8 * 0 is -0.0


def _level(codes: Tensor) -> Tensor:
    """Stored code 0..15 -> c * (8 + |c|), c = code - 8."""
    c = codes.int() - 8
    return (c * (8 + c.abs())).float()


def _ue8m0(codes: Tensor) -> Tensor:
    """Scale byte -> 2**(code - 127); 0 is the subnormal 2**-127, 255 is NaN."""
    bits = codes.int() << 23
    bits = torch.where(codes == 0, 0x00400000, bits)
    return torch.where(codes == 255, 0x7FC00000, bits).int().view(torch.float32)
