"""What `build` and `put` read: rows from a file of tensors and the n-grams they belong to, a part at a time.

Shapes: M rows of a part, D numbers of a row, B bytes of a stored row, K longest n-gram of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngramstore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.codec import Codec
    from ngramstore.store.building.ngram_files import NgramFile
    from ngramstore.store.building.row_files import Table

PART_BYTES = 16 << 20
_TOKEN_BYTES = 4
_SCALES = {"int8": ("F32", "F16", "BF16"), "int4": ("BF16", "U16"), "e4m3": ("F8_E8M0", "U8")}
"""Types of scales that a codec takes, or that widen to its own without loss. The bits of other types mean other numbers."""


def rows_of_a_part(row_bytes: int, tokens: int = 0) -> int:
    """How many rows, each of so many bytes and of an n-gram of so many tokens, are about PART_BYTES; one at least."""
    return max(1, PART_BYTES // (row_bytes + _TOKEN_BYTES * tokens))


@dataclass(frozen=True)
class RowInput:
    """Files that were opened and found to fit together. ngrams: None for rows by number."""

    rows: Table
    scales: Table | None
    ngrams: NgramFile | None
    codec: Codec
    dim: int
    is_encoded: bool

    @property
    def is_stored_form(self) -> bool:
        """`parts` gives rows as the store keeps them; else numbers to encode."""
        return self.is_encoded or self.scales is not None

    def parts(self) -> Iterator[tuple[int, Any, np.ndarray]]:
        """First row, n-grams (tokens (M, K), lengths (M,)) or None, and rows: (M, D) floats, or (M, B) u8 that cannot change."""
        width = 0 if self.ngrams is None else self.ngrams.max_n
        step = rows_of_a_part(self.rows.width * self.rows.array.itemsize, width)
        ngrams = None if self.ngrams is None else self.ngrams.chunks(step)
        for at in range(0, self.rows.num_rows, step):
            count = min(step, self.rows.num_rows - at)
            part = None if ngrams is None else next(ngrams, None)
            if ngrams is not None and (part is None or len(part[1]) != count):
                raise UsageError(
                    "the file of n-grams changed while it was read", hint="leave it alone until the command ends"
                )
            yield at, part, self._read(at, count)

    def _read(self, at: int, count: int) -> np.ndarray:
        if self.is_encoded:
            return self.rows.array[at : at + count]  # part of the mapped file: not copied
        if self.scales is None:
            return self.rows.floats(at, count)
        part = self.codec.pack(self.rows.raw(at, count), _scales(self.codec.name, self.scales, at, count), first_row=at)
        part.flags.writeable = False  # so that a build need not copy it
        return part


def open_row_input(
    rows_file: Path,
    vocab: Path | None,
    *,
    tensor: str | None,
    scales: str | None,
    is_encoded: bool,
    codec: str | Mapping[str, Any],
    dim: int | None,
) -> RowInput:
    """Open the files for rows of a codec; dim: None for that of the tensor.

    tensor, scales: names of tensors in `rows_file`. Raises UsageError where options or shapes contradict one another,
    FormatError where a file is not what its name says.
    """
    from ngramstore.codec import codec_from_spec
    from ngramstore.store.building.ngram_files import open_ngrams
    from ngramstore.store.building.row_files import open_table

    if is_encoded and scales:
        raise UsageError("--encoded has no use for --scales", hint="encoded rows hold their scales")
    rows = open_table(rows_file, tensor)
    scale_table = open_table(rows_file, scales, may_be_vector=True) if scales else None
    dim = rows.width if dim is None else dim
    chosen = codec_from_spec(codec, dim)
    width = chosen.row_bytes if is_encoded else dim
    if rows.width != width:
        whole = f", {chosen.row_bytes} bytes as {chosen.name} stores it" if is_encoded else ""
        raise UsageError(f"{rows.name} has rows of {rows.width}, wanted {width}", hint=f"a row is {dim} numbers{whole}")
    if is_encoded and rows.dtype != "U8":
        raise UsageError(f"{rows.name} holds {rows.dtype}", hint="encoded rows are uint8")
    if scale_table is not None:
        _check_scales(chosen.name, rows, scale_table)
    ngrams = None if vocab is None else open_ngrams(vocab)
    if ngrams is not None and ngrams.num_ngrams != rows.num_rows:
        raise UsageError(
            f"{vocab} has {ngrams.num_ngrams:,} n-grams, {rows.name} has {rows.num_rows:,} rows",
            hint="row i belongs to n-gram i: there must be as many of each",
        )
    return RowInput(rows, scale_table, ngrams, chosen, dim, is_encoded)


def _check_scales(codec: str, rows: Table, scales: Table) -> None:
    if scales.dtype not in _SCALES.get(codec, (scales.dtype,)):
        raise UsageError(
            f"{scales.name} holds {scales.dtype}", hint=f"scales of {codec} are {' or '.join(_SCALES[codec])}"
        )
    if scales.num_rows != rows.num_rows:
        raise UsageError(f"{rows.num_rows:,} rows of codes, {scales.num_rows:,} rows of scales")


def _scales(codec: str, table: Table, at: int, count: int) -> Any:
    """Scales as `codec.pack` takes them: one f32 a row for int8, else a line of bits a row."""
    if codec != "int8":
        return table.raw(at, count)
    scales = table.floats(at, count).astype("f4")
    return scales.reshape(-1) if scales.shape[1] == 1 else scales
