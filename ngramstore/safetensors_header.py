"""What a safetensors file holds: where each of its tensors lies, believed only as far as the file's size allows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import FormatError

STORED = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E8M0": "u1",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
}
"""Type as safetensors names it -> how numpy holds its bits."""
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Name -> place of every tensor whose type we know; any bytes at all give that or a FormatError."""
    text, size = _header_of(path)
    try:
        entries = {
            name: _tensor_entry(name, value, 8 + len(text), size)
            for name, value in json.loads(text).items()
            if name != "__metadata__" and value["dtype"] in STORED
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: the safetensors header does not say what it must: {error!r:.200}") from error
    return entries


def types_of_tensors(path: Path) -> dict[str, str]:
    """Name -> type of every tensor, as safetensors names types, of a file whose header `read_safetensors_header` has read."""
    text, _ = _header_of(path)
    return {name: str(value["dtype"]) for name, value in json.loads(text).items() if name != "__metadata__"}


def _header_of(path: Path) -> tuple[bytes, int]:
    """The header's JSON, and the bytes of the whole file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        header_bytes = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
            raise FormatError(f"{path} is not a safetensors file: a header of {header_bytes:,} bytes in {size:,}")
        return file.read(header_bytes), size


def _tensor_entry(name: str, value: dict[str, Any], data_at: int, file_bytes: int) -> TensorEntry:
    shape, (begin, end) = value["shape"], value["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError(f"{name}: {numbers}")
    wanted = math.prod(shape) * np.dtype(STORED[value["dtype"]]).itemsize
    if end - begin != wanted or data_at + end > file_bytes:
        raise ValueError(f"{name}: bytes {begin} to {end}, wanted {wanted} of {file_bytes - data_at}")
    return TensorEntry(value["dtype"], tuple(shape), data_at + begin)
