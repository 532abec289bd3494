"""Where the rows of a build come from: a matrix in a file, mapped, read a chunk at a time.

`.safetensors` and `.npy` (read here, no torch needed) and PyTorch checkpoints. A file is never loaded whole, and what
it says about itself is checked against its size before anything is mapped.

Shapes: N rows of a table, D numbers of a row, M rows of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import FormatError, MissingExtra, UsageError
from ngramstore.npy import map_npy
from ngramstore.safetensors_header import STORED, read_safetensors_header, types_of_tensors

_NAMES = {np.dtype(stored): name for name, stored in reversed(STORED.items()) if name[:2] not in ("BF", "F8")}
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt")
_ONE_ARRAY = "leave out --tensor; codes and the tensor of their --scales lie in one .safetensors or PyTorch file"


@dataclass(frozen=True)
class Table:
    """A matrix of N rows in a file. `array`: (N, D), mapped, the bits of `dtype` (as safetensors names types)."""

    name: str
    dtype: str
    array: np.ndarray

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.array)

    @property
    def width(self) -> int:
        """D."""
        return self.array.shape[1]

    def raw(self, first: int, count: int) -> np.ndarray:
        """Rows as they are stored, copied into memory: (M, D)."""
        return np.array(self.array[first : first + count])

    def floats(self, first: int, count: int) -> np.ndarray:
        """Rows as numbers: (M, D) f16, f32 or f64. UsageError for types that are codes, not numbers."""
        rows = self.raw(first, count)
        if self.dtype in ("F16", "F32", "F64"):
            return rows
        if self.dtype == "BF16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F8_E4M3":
            return _E4M3[rows]
        raise UsageError(
            f"{self.name} holds {self.dtype}, which are codes, not numbers",
            hint="name the tensor of their scales with --scales, or say --encoded if these are whole stored rows",
        )


def no_file(path: Path) -> str:
    """What a path is that is no regular file, in words."""
    if path.is_dir():
        return f"{str(path)!r} is a folder"
    return f"{str(path)!r} is no regular file" if path.exists() else f"there is no file {str(path)!r}"


def open_table(path: str | os.PathLike[str], tensor: str | None = None, *, may_be_vector: bool = False) -> Table:
    """The matrix in a `.safetensors`, `.npy` or PyTorch file; `tensor` names it where there are several.

    may_be_vector: (N,) is taken as (N, 1), as scales of one number a row are kept.
    Raises UsageError (no file, no such tensor, not a matrix), FormatError (the file is not what its name says),
    MissingExtra (a checkpoint without torch).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            no_file(path),
            hint="give a .safetensors, .npy or PyTorch file with the rows",
        )
    if path.suffix == ".npy":
        if tensor is not None:
            raise UsageError(f"{path} holds one array, not a tensor {tensor!r}", hint=_ONE_ARRAY)
        array = map_npy(path)
        if array.dtype not in _NAMES:
            raise UsageError(f"{path} holds {array.dtype}", hint="rows are float16, float32 or float64")
        return _matrix(str(path), _NAMES[array.dtype], array, may_be_vector)
    if path.suffix == ".safetensors":
        tensors = read_safetensors_header(path)
        if tensor is not None and tensor not in tensors:
            _require_known(path, tensor)
        name = _choose(path, tensor, {name: entry.shape for name, entry in tensors.items()})
        entry = tensors[name]
        shape = _shape(f"{path}: {name}", entry.shape, may_be_vector)
        return Table(f"{path}: {name}", entry.dtype, np.memmap(path, STORED[entry.dtype], "r", entry.begin, shape))
    if path.suffix in _CHECKPOINTS:
        return _open_checkpoint(path, tensor, may_be_vector)
    raise UsageError(
        f"{path}: rows in files of this kind cannot be read",
        hint=f"they may be .safetensors, .npy, or PyTorch's {', '.join(_CHECKPOINTS)}",
    )


def _require_known(path: Path, tensor: str) -> None:
    """UsageError for a tensor that is in a safetensors file, of a type that is not read."""
    dtype = types_of_tensors(path).get(tensor)
    if dtype is not None and dtype not in STORED:
        raise UsageError(f"{path}: {tensor} holds {dtype}", hint=f"types that are read: {', '.join(STORED)}")


def _open_checkpoint(path: Path, tensor: str | None, may_be_vector: bool) -> Table:
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtra("torch", "torch") from None
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others
        raise FormatError(
            f"{path} cannot be mapped as a PyTorch checkpoint: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="save the weights alone with torch.save(state_dict, path), or as .safetensors",
        ) from error
    tensors = dict(_tensors("", loaded, torch.Tensor))
    name = _choose(path, tensor, {name: tuple(value.shape) for name, value in tensors.items()})
    value = tensors[name].detach()
    views = {torch.bfloat16: ("BF16", torch.int16), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8)}
    if hasattr(torch, "float8_e8m0fnu"):  # since 2.7
        views[torch.float8_e8m0fnu] = ("F8_E8M0", torch.uint8)
    if value.dtype in views:
        dtype, as_type = views[value.dtype]
        return _matrix(f"{path}: {name}", dtype, value.view(as_type).numpy().view(STORED[dtype]), may_be_vector)
    try:
        array = value.numpy()
        return _matrix(f"{path}: {name}", _NAMES[array.dtype], array, may_be_vector)
    except (TypeError, KeyError):
        raise UsageError(f"{path}: {name} holds {value.dtype}", hint="rows are floats, or codes of 8 bits") from None


def _tensors(prefix: str, value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """Dotted name -> tensor of nested mappings."""
    if isinstance(value, kind):
        yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(f"{prefix}.{key}" if prefix else str(key), inner, kind)


def _choose(path: Path, wanted: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    if wanted is not None:
        if wanted in shapes:
            return wanted
        from difflib import get_close_matches

        close = get_close_matches(wanted, shapes, 3, 0.3) or list(shapes)[:3]
        raise UsageError(
            f"{path} has no tensor {wanted!r}", hint=f"it has {len(shapes)}, among them {', '.join(close)}"
        )
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) == 1:
        return matrices[0]
    raise UsageError(
        f"{path} holds {len(matrices)} matrices", hint=f"choose one with --tensor: {', '.join(matrices[:10]) or 'none'}"
    )


def _matrix(name: str, dtype: str, array: np.ndarray, may_be_vector: bool) -> Table:
    return Table(name, dtype, array.reshape(_shape(name, array.shape, may_be_vector)))


def _shape(name: str, shape: tuple[int, ...], may_be_vector: bool) -> tuple[int, ...]:
    """The shape of a table, (N, D). Raises UsageError."""
    matrix = (*shape, 1) if may_be_vector and len(shape) == 1 else shape
    if len(matrix) != 2 or 0 in matrix:
        raise UsageError(f"{name} has shape {shape}", hint="rows are a matrix (N, D)")
    return matrix


def _e4m3_values() -> np.ndarray:
    """Value of each FP8 E4M3FN code: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7F and 0xFF are NaN."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    values = np.where(exponents == 0, mantissas / 8 * 2.0**-6, (1 + mantissas / 8) * 2.0 ** (exponents - 7.0))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3_values()
