"""Every byte position of the format, as data: docs/format.md prints these tables and a test compares them.

All numbers are little-endian. Reserved bytes are written 0 and must be read as 0.
"""

from __future__ import annotations

import struct
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
