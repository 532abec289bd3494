"""Every byte position of the format, as data: docs/format.md prints these tables and a test compares them.

All numbers are little-endian. Reserved bytes are written 0 and must be read as 0.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One field of a fixed structure: name, struct code, and what it holds."""

    name: str
    code: str
    meaning: str

    @property
    def size(self) -> int:
        return struct.calcsize("<" + self.code)


class Layout:
    """A fixed structure: its fields in order, as a struct and as a table for the document."""

    def __init__(self, name: str, fields: tuple[Field, ...]) -> None:
        self.name = name
        self.fields = fields
        self.struct = struct.Struct("<" + "".join(field.code for field in fields))
        self.size = self.struct.size

    def pack(self, **values: int | bytes) -> bytes:
        """Bytes of one structure; every field must be given."""
        return self.struct.pack(*(values.pop(field.name) for field in self.fields), *values)

    def sealed(self, crc: int = 0, /, **values: int | bytes) -> bytes:
        """`pack` for all but the last field, a u32: the CRC-32 of what is before it, going on from `crc`."""
        body = self.pack(**values, **{self.fields[-1].name: 0})[:-4]
        return body + zlib.crc32(body, crc).to_bytes(4, "little")

    def unpack(self, data: bytes) -> dict[str, int | bytes]:
        """Field name -> value; `data` must have exactly `size` bytes."""
        return dict(zip((field.name for field in self.fields), self.struct.unpack(data), strict=True))

    def offset(self, name: str) -> int:
        """Byte position of a field."""
        position = 0
        for field in self.fields:
            if field.name == name:
                return position
            position += field.size
        raise KeyError(name)

    def markdown(self) -> str:
        """The table of docs/format.md."""
        lines = ["| offset | size | field | meaning |", "|---:|---:|---|---|"]
        position = 0
        for field in self.fields:
            lines.append(f"| {position} | {field.size} | `{field.name}` | {field.meaning} |")
            position += field.size
        return "\n".join(lines)


FORMAT_VERSION = 1
"""Version of the files below and of the manifest. Separate from the release version."""

PAGE_BYTES = 4096
"""Unit of the header, of sections and of index checksums."""

BLOCK_ROWS = 64
"""Rows in a block: the unit of offsets, tokens, verification and repair."""

CHECKSUM_BYTES = 4
"""Behind each stored row and each token block: low 32 bits of XXH64."""

MAX_ROW_BYTES = 1 << 20
"""Widest encoded row a store takes."""

MAGIC = b"ngstore\x1a"
KIND_INDEX, KIND_ROWS, KIND_TOKENS, KIND_SUMS = 1, 2, 3, 4

CONTENT_BYTES = 16

_CONTENT = Field("content", "16s", "digest of what is behind the header; zeros: not known")
_COMMON = (
    Field("magic", "8s", "`ngstore\\x1a`"),
    Field("version", "H", "1"),
    Field("kind", "H", "1 index, 2 rows, 3 tokens, 4 sums"),
    Field("reserved", "I", "0"),
    Field("identity", "16s", "the store's UUID; every file of a store carries the same"),
    Field("generation", "Q", "the generation that wrote the file"),
    Field("num_rows", "Q", "rows, N"),
    Field("file_bytes", "Q", "size of the whole file"),
)

INDEX_HEADER = Layout(
    "index header",
    (
        *_COMMON,
        Field("bucket_bits", "I", "b: the top b bits of an ID name its bucket, 1..32; 0 in a base by row number"),
        Field("group_bits", "I", "g: 2**g buckets share one u64 base"),
        Field("groups_at", "Q", "u64 per group of buckets: rank that its directory entries count from"),
        Field(
            "directory_at", "Q", "u32 per bucket, and one more: rank of the bucket's first ID, less its group's base"
        ),
        Field("remainders_at", "Q", "u32 per row: the 32 bits of its ID below the bucket bits"),
        Field("low_bits_at", "Q", "32 - b bits per row, packed from the lowest bit up: the last bits of its ID"),
        Field("offsets_at", "Q", "u64 per block of 64 rows: where its first row is stored; 0 when rows have one size"),
        Field("lengths_at", "Q", "u16 per row: stored bytes without the checksum; 0 when rows have one size"),
        Field("checksums_at", "Q", "u32 per page of the sections, then the CRC-32 of this table"),
        _CONTENT,
    ),
)

ROWS_HEADER = Layout(
    "rows header",
    (
        *_COMMON,
        Field("row_bytes", "I", "bytes of an encoded row"),
        Field(
            "compression", "I", "0 none: every row takes row_bytes + 4; 1 zstd: one frame a row, where it is smaller"
        ),
        Field("data_at", "Q", "first stored row"),
        Field("dictionary_at", "Q", "zstd dictionary, 0 if none"),
        Field("dictionary_bytes", "I", "its size"),
        Field("dictionary_crc", "I", "its CRC-32"),
        _CONTENT,
    ),
)

TOKENS_HEADER = Layout(
    "tokens header",
    (
        *_COMMON,
        Field("max_n", "I", "K: longest n-gram the store takes"),
        Field("reserved2", "I", "0"),
        Field("num_blocks", "Q", "blocks of 64 rows"),
        Field("data_at", "Q", "first block"),
        Field("offsets_at", "Q", "u64 per block, and one more: where its bytes begin"),
        _CONTENT,
    ),
)

SUMS_HEADER = Layout("sums header", (*_COMMON, _CONTENT))

if __name__ == "__main__":
    for table in (INDEX_HEADER, ROWS_HEADER, TOKENS_HEADER, SUMS_HEADER):
        print(f"<!-- layout: {table.name} -->\n{table.markdown()}\n<!-- end -->\n")
