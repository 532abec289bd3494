"""A row codec: how one row of D numbers becomes `row_bytes` bytes, and what is lost.

Byte layouts: docs/codecs.md (a section of the format). Rows are encoded one by one: the bytes of a row depend on that
row and the spec alone. Codecs are immutable; any number of threads may share one.

Shapes: M rows, D row width, B bytes in a stored row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.options import is_whole

MAX_DIM = 1 << 20
_CHUNK_VALUES = (
    1 << 16
)  # 256 KiB of f32 at a time stays in the L2 cache: int8 encodes 1.6 times as fast as in one piece
_OUTPUTS = {"f": ("f32", 4), "e": ("f16", 2), "H": ("bf16", 2), "B": ("copy", 0)}
"""dtype char of an output array -> output type and bytes of a value."""
_IN_ORDER = np.empty(0, np.int64)


@dataclass(frozen=True)
class Codec(ABC):
    """One way to store rows of `dim` numbers. Subclasses say how; see the module docstring for what holds for all."""

    dim: int
    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.dim) or not 1 <= self.dim <= MAX_DIM:
            raise UsageError(f"dim={self.dim!r}", hint=f"dim is the width of a row: an integer from 1 to {MAX_DIM}")

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Bytes of one stored row, codes and scales together."""

    def spec(self) -> dict[str, Any]:
        """What the manifest keeps: `codec_from_spec(codec.spec(), codec.dim) == codec`. JSON-able, no bit lost."""
        return {"name": self.name}

    def encode(self, rows_MD: np.ndarray, *, first_row: int = 0) -> np.ndarray:
        """Rows -> stored rows: (M, D) f16, bf16, f32 or f64 -> (M, row_bytes) u8, C-contiguous.

        Raises UsageError for NaN, infinity, and values outside the codec's range, naming row (`first_row` + i), column
        and value.
        """
        rows_MD = self._rows_argument(rows_MD)
        encoded_MB = np.empty((len(rows_MD), self.row_bytes), np.uint8)
        step = max(1, _CHUNK_VALUES // self.dim)
        for start in range(0, len(rows_MD), step):
            given_MD = rows_MD[start : start + step]
            chunk_MD = as_f32(given_MD)
            if not (finite_MD := np.isfinite(chunk_MD)).all():
                refuse(~finite_MD, given_MD, first_row + start, "rows hold finite f32 numbers only")
            self._encode(chunk_MD, encoded_MB[start : start + step], first_row + start)
        return encoded_MB

    def decode(self, encoded_MB: np.ndarray) -> np.ndarray:
        """Stored rows -> rows: (M, row_bytes) u8 -> (M, D) f32. Plain numpy: the meaning of the bytes."""
        encoded_MB = self._encoded_argument(encoded_MB)
        rows_MD = np.empty((len(encoded_MB), self.dim), np.float32)
        offsets_M = np.arange(len(encoded_MB), dtype=np.int64) * self.row_bytes
        self.scatter(encoded_MB.reshape(-1), offsets_M, rows_MD, kernels="reference")
        return rows_MD

    def scatter(self, source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray, kernels: str = "native") -> None:
        """out[m] = the row at byte offsets[m] of `source`, or zeros where offsets[m] == -1. Writes every row of out.

        source: flat u8, any alignment. offsets_M: i64. out_MD: C-contiguous; f32, f16, or u16 for bf16 bits, rounded to
        nearest even, too large a value becomes infinity. Does not hold the GIL while it works. An offset that leaves
        `source` is our mistake: nothing outside is read, and an AssertionError follows.
        """
        if kernels == "native":
            from ngramstore.kernels.native import dequantize as module
        else:
            from ngramstore.kernels.reference import dequantize as module  # type: ignore[no-redef]
        assert out_MD.shape == (len(offsets_M), self.dim) and out_MD.flags.c_contiguous
        num_bad = module.scatter(
            self.plan(out_MD.dtype.char, kernels), source, offsets_M, _IN_ORDER, out_MD.view(np.uint8)
        )
        assert num_bad == 0, f"{num_bad} offsets outside the {len(source)} bytes of source"

    def plan(self, char: str, kernels: str = "native") -> np.ndarray:
        """How kernels write rows for an output of this dtype char: kernels/native/dequantize.py says what the numbers are.

        "f", "e" and "H": f32, f16, and u16 for bf16 bits. "B": the stored bytes as they are.
        """
        return self._plans[kernels, char]

    def error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        """(M, D) -> (M, D) f64: |decode(encode(x)) - x| is never larger, element by element."""
        rows_MD = self._rows_argument(rows_MD)
        chunk_MD = as_f32(rows_MD)
        narrowing_MD = np.abs(chunk_MD.astype(np.float64) - rows_MD.astype(np.float64))
        return self._error_bound(chunk_MD) + narrowing_MD

    @abstractmethod
    def pack(self, codes_MD: np.ndarray, scales: np.ndarray | None = None, *, first_row: int = 0) -> np.ndarray:
        """Codes and scales -> (M, row_bytes) u8, for rows that arrive encoded; `unpack` gives them back bit by bit.

        first_row: what an error calls the first of these rows.
        """

    @abstractmethod
    def unpack(self, encoded_MB: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(M, row_bytes) u8 -> codes and scales, as `pack` takes them (None: this codec has no scales)."""

    @abstractmethod
    def _encode(self, rows_MD: np.ndarray, encoded_MB: np.ndarray, first_row: int) -> None:
        """Finite f32 rows -> their bytes in `encoded_MB`."""

    @abstractmethod
    def _error_bound(self, rows_MD: np.ndarray) -> np.ndarray:
        """The bound for f32 rows."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_plans"}  # addresses of this process

    def _writer_arguments(self) -> tuple[int, int]:
        """What the row writer needs to know beside `dim`: an integer, and the bits of an f32."""
        return 0, 0

    @cached_property
    def _plans(self) -> _Plans:
        return _Plans(self)

    def _rows_argument(self, rows_MD: np.ndarray) -> np.ndarray:
        rows_MD = np.asarray(rows_MD)
        if rows_MD.ndim != 2 or rows_MD.shape[1] != self.dim:
            raise UsageError(f"rows of shape {rows_MD.shape}", hint=f"this store takes (M, {self.dim})")
        if rows_MD.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise UsageError(f"rows of type {rows_MD.dtype}", hint="rows are float16, bfloat16, float32 or float64")
        return rows_MD

    def _encoded_argument(self, encoded_MB: np.ndarray) -> np.ndarray:
        encoded_MB = np.asarray(encoded_MB)
        if encoded_MB.dtype != np.uint8 or encoded_MB.ndim != 2 or encoded_MB.shape[1] != self.row_bytes:
            raise UsageError(
                f"stored rows of type {encoded_MB.dtype} and shape {encoded_MB.shape}",
                hint=f"{self.name} at dim {self.dim} stores (M, {self.row_bytes}) uint8",
            )
        return np.ascontiguousarray(encoded_MB)

    def _codes_argument(self, codes_MD: np.ndarray, *dtypes: str) -> np.ndarray:
        codes_MD = np.asarray(codes_MD)
        if codes_MD.dtype.name not in dtypes or codes_MD.ndim != 2 or codes_MD.shape[1] != self.dim:
            raise UsageError(
                f"codes of type {codes_MD.dtype} and shape {codes_MD.shape}",
                hint=f"{self.name} takes {' or '.join(dtypes)} of shape (M, {self.dim})",
            )
        return np.ascontiguousarray(codes_MD)


class _Plans(dict[tuple[str, str], np.ndarray]):
    """(kernels, dtype char of out) -> plan. Imports numba and compiles the row writer on first use."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self._codec = codec

    def __missing__(self, key: tuple[str, str]) -> np.ndarray:
        kernels, char = key
        if kernels == "native":
            from ngramstore.kernels.native.dequantize import row_writer
        else:
            from ngramstore.kernels.reference.dequantize import row_writer
        codec = self._codec
        output, item_bytes = _OUTPUTS[char]
        if output in ("copy", codec.name):
            out_bytes = codec.row_bytes
            writer, arguments = row_writer("copy", output), (out_bytes, 0)
        else:
            out_bytes = item_bytes * codec.dim
            writer, arguments = row_writer(codec.name, output), codec._writer_arguments()
        plan = np.array([writer, codec.row_bytes, out_bytes, codec.dim, *arguments], np.int64)
        self[key] = plan
        return plan


def as_f32(rows_MD: np.ndarray) -> np.ndarray:
    """f16, bf16, f32 or f64 -> C-contiguous f32, to nearest even."""
    if rows_MD.dtype.name == "bfloat16":
        return (np.ascontiguousarray(rows_MD).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(rows_MD, np.float32)


def refuse(wrong_MD: np.ndarray, rows_MD: np.ndarray, first_row: int, hint: str) -> None:
    """Raise UsageError naming the first value that `wrong_MD` marks, if there is one."""
    if wrong_MD.any():
        i, column = np.argwhere(wrong_MD)[0]
        raise UsageError(f"row {first_row + i}, column {column}: {rows_MD[i, column]}", hint=hint)


def scales_argument(scales: np.ndarray | None, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """`scales` as a C-contiguous array, if it has that type and shape."""
    found = np.asarray(scales)
    if found.dtype.name != dtype or found.shape != shape:
        raise UsageError(
            f"scales of type {found.dtype} and shape {found.shape}", hint=f"they are {dtype} of shape {shape}"
        )
    return np.ascontiguousarray(found)
