"""A safetensors file, written a tensor at a time through `ngramstore.files`: little more memory, and a full disk says so.

u64 length of the header, the header (JSON, padded with spaces to 8 bytes), then the tensors' bytes without gaps:
wide types first, so that each tensor is aligned, and by name
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngramstore.errors import UsageError
from ngramstore.files import publish_pieces

_TYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Publish tensors, of any device, under a name; returns what checkpoint.json says of the file.

    Raises UsageError for a type that it does not know, DiskFull.
    """
    size, digest = 0, hashlib.sha256()

    def counted() -> Iterator[bytes | memoryview]:
        nonlocal size
        for piece in _pieces(tensors):
            digest.update(piece)
            size += len(piece)
            yield piece

    publish_pieces(path, counted())
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, in order: one piece for the header and one for each tensor that has any."""
    assert sys.byteorder == "little", "the bytes of a tensor are written as they lie in memory"
    header, end = {}, 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor, begin = tensors[name], end
        if tensor.dtype not in _TYPES:
            raise UsageError(f"{name} is of type {tensor.dtype}", hint=f"known are {', '.join(map(str, _TYPES))}")
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if data.numel():
            yield data.numpy().data
