"""Where the rows and n-grams of a build come from: files of tensors and vocabularies, mapped, read a chunk at a time.

Rows: `.safetensors` and `.npy` (read here, no torch needed) and PyTorch checkpoints. N-grams: `.ngv`, `.npy`, text. A file is
never loaded whole, and what it says about itself is checked against its size before anything is mapped.

Shapes: N rows of a table, D numbers of a row, M rows of a chunk, K longest n-gram.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import FormatError, MissingExtra, UsageError
from ngramstore.hashing import MAX_N

_STORED = {
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
_NAMES = {np.dtype(stored): name for name, stored in reversed(_STORED.items()) if name[:2] not in ("BF", "F8")}
_MAX_HEADER_BYTES = 100 << 20
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt")


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


def open_table(path: str | os.PathLike[str], tensor: str | None = None) -> Table:
    """The matrix in a `.safetensors`, `.npy` or PyTorch file; `tensor` names it where there are several.

    Raises UsageError (no file, no such tensor, not a matrix), FormatError (the file is not what its name says),
    MissingExtra (a checkpoint without torch).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"{str(path)!r} is a folder" if path.is_dir() else f"there is no file {str(path)!r}",
            hint="give a .safetensors, .npy or PyTorch file with the rows",
        )
    if path.suffix == ".npy":
        if tensor is not None:
            raise UsageError(f"{path} holds one array, not a tensor {tensor!r}", hint="leave out --tensor")
        array = _map_npy(path)
        if array.dtype not in _NAMES:
            raise UsageError(f"{path} holds {array.dtype}", hint="rows are float16, float32 or float64")
        return _matrix(str(path), _NAMES[array.dtype], array)
    if path.suffix == ".safetensors":
        tensors = read_safetensors_header(path)
        name = _choose(path, tensor, {name: entry.shape for name, entry in tensors.items()})
        entry = tensors[name]
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise UsageError(f"{path}: {name} has shape {entry.shape}", hint="rows are a matrix (N, D)")
        return _matrix(
            f"{path}: {name}", entry.dtype, np.memmap(path, _STORED[entry.dtype], "r", entry.begin, entry.shape)
        )
    if path.suffix in _CHECKPOINTS:
        return _open_checkpoint(path, tensor)
    raise UsageError(
        f"{path}: rows in files of this kind cannot be read",
        hint=f"they may be .safetensors, .npy, or PyTorch's {', '.join(_CHECKPOINTS)}",
    )


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Name -> place of every tensor whose type we know; any bytes at all give that or a FormatError."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        header_bytes = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
            raise FormatError(f"{path} is not a safetensors file: a header of {header_bytes:,} bytes in {size:,}")
        text = file.read(header_bytes)
    try:
        header = json.loads(text)
        entries = {
            name: _tensor_entry(name, value, 8 + header_bytes, size)
            for name, value in header.items()
            if name != "__metadata__" and value["dtype"] in _STORED
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: the safetensors header does not say what it must: {error!r:.200}") from error
    return entries


def _tensor_entry(name: str, value: dict[str, Any], data_at: int, file_bytes: int) -> TensorEntry:
    shape, (begin, end) = value["shape"], value["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError(f"{name}: {numbers}")
    wanted = math.prod(shape) * np.dtype(_STORED[value["dtype"]]).itemsize
    if end - begin != wanted or data_at + end > file_bytes:
        raise ValueError(f"{name}: bytes {begin} to {end}, wanted {wanted} of {file_bytes - data_at}")
    return TensorEntry(value["dtype"], tuple(shape), data_at + begin)


def _map_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(
            f"{path} is not an array that can be mapped: {error}", hint="save it with numpy.save"
        ) from error


def _open_checkpoint(path: Path, tensor: str | None) -> Table:
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
    if value.dtype in views:
        dtype, as_type = views[value.dtype]
        return _matrix(f"{path}: {name}", dtype, value.view(as_type).numpy().view(_STORED[dtype]))
    try:
        array = value.numpy()
        return _matrix(f"{path}: {name}", _NAMES[array.dtype], array)
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


def _matrix(name: str, dtype: str, array: np.ndarray) -> Table:
    if array.ndim != 2 or 0 in array.shape:
        raise UsageError(f"{name} has shape {array.shape}", hint="rows are a matrix (N, D)")
    return Table(name, dtype, array)


def _e4m3_values() -> np.ndarray:
    """Value of each FP8 E4M3FN code: sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7F and 0xFF are NaN."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    values = np.where(exponents == 0, mantissas / 8 * 2.0**-6, (1 + mantissas / 8) * 2.0 ** (exponents - 7.0))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -values, values).astype(np.float32)


_E4M3 = _e4m3_values()


@dataclass(frozen=True)
class NgramFile:
    """N-grams in the order of their rows. `chunks(step)`: tokens (M, K) u32 left-aligned and lengths (M,), in turn."""

    num_ngrams: int
    max_n: int
    chunks: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    facts: dict[str, Any] = field(default_factory=dict)


def open_ngrams(path: str | os.PathLike[str]) -> NgramFile:
    """The n-grams in a vocabulary of `mine`, an `.npy` array (M, n), a folder with tokens.npy and lengths.npy, or text.

    Text: an n-gram a line, as token ids with spaces or commas between, or a JSON list. Raises UsageError, FormatError.
    """
    path = Path(path)
    if path.is_dir():
        tokens, lengths = _integers(path / "tokens.npy", 2), _integers(path / "lengths.npy", 1)
        if len(tokens) != len(lengths):
            raise UsageError(f"{path}: {len(tokens):,} lines of tokens, {len(lengths):,} lengths")
        return _from_arrays(tokens, lengths)
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="`ngramstore mine` writes vocabularies")
    if path.suffix == ".ngv":
        from ngramstore.mine.vocab_file import read_vocab

        tokens, lengths, _, facts = read_vocab(path)
        return _from_arrays(tokens, lengths, {name: fact for name, fact in facts.items() if fact != ""})
    if path.suffix == ".npy":
        tokens = _integers(path, 2)
        return _from_arrays(tokens, np.broadcast_to(np.int64(tokens.shape[1]), len(tokens)))
    return _TextNgrams(path).as_file()


def _integers(path: Path, ndim: int) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="a folder of n-grams holds tokens.npy and lengths.npy")
    array = _map_npy(path)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {array.dtype} {array.shape}", hint=f"wanted integers in {ndim} dimensions")
    return array


def _from_arrays(tokens: np.ndarray, lengths: np.ndarray, facts: dict[str, Any] | None = None) -> NgramFile:
    def chunks(step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(tokens), step):
            yield np.array(tokens[at : at + step]), np.array(lengths[at : at + step])

    return NgramFile(len(tokens), tokens.shape[1], chunks, facts or {})


class _TextNgrams:
    """Lines of token ids. Read twice: once to count, once to build."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def as_file(self) -> NgramFile:
        return NgramFile(*self._extent, self._chunks)

    @cached_property
    def _extent(self) -> tuple[int, int]:
        count, longest = 0, 1
        for ngram in self._ngrams():
            count += 1
            longest = max(longest, len(ngram))
        return count, longest

    def _chunks(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        width = self._extent[1]
        pending: list[list[int]] = []
        for ngram in self._ngrams():
            pending.append(ngram)
            if len(pending) == step:
                yield _aligned(pending, width)
                pending = []
        if pending:
            yield _aligned(pending, width)

    def _ngrams(self) -> Iterator[list[int]]:
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    ngram = json.loads(line) if line.lstrip()[:1] in b"[{" else line.replace(b",", b" ").split()
                    if isinstance(ngram, dict):
                        ngram = ngram["tokens"]
                    tokens = [int(token) for token in ngram if not isinstance(token, float)]
                except (ValueError, KeyError, TypeError):
                    tokens = []
                if not 1 <= len(tokens) == len(ngram) <= MAX_N or min(tokens) < 0 or max(tokens) >= 1 << 32:
                    raise UsageError(
                        f"{self._path}, line {number}: {line.strip()[:80]!r} is not an n-gram",
                        hint=f"a line holds 1 to {MAX_N} token ids (0 .. 2**32 - 1), with spaces or commas, or a JSON list",
                    )
                yield tokens


def _aligned(ngrams: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(ngram) for ngram in ngrams])
    tokens = np.zeros((len(ngrams), width), np.uint32)
    tokens[np.arange(width) < lengths[:, None]] = [token for ngram in ngrams for token in ngram]
    return tokens, lengths
