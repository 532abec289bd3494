"""Byte positions: spelled out little-endian, of known sizes, and the same in the code and in the document."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from ngramstore import layout
from ngramstore.layout import INDEX_HEADER, PAGE_BYTES, ROWS_HEADER, SUMS_HEADER, TOKENS_HEADER, Field, Layout

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
LAYOUTS = [INDEX_HEADER, ROWS_HEADER, TOKENS_HEADER, SUMS_HEADER]
every_layout = pytest.mark.parametrize("table", LAYOUTS, ids=lambda table: table.name)


def marked(name: str) -> str:
    """What stands in docs/format.md between the markers of a table."""
    text = DOCUMENT.read_text()
    return text.split(f"<!-- layout: {name} -->\n")[1].split("\n<!-- end -->")[0]


def test_every_layout_of_the_code_is_in_this_test():
    assert [value for value in vars(layout).values() if isinstance(value, Layout)] == LAYOUTS


@every_layout
def test_the_document_prints_the_table_the_code_uses(table):
    assert marked(table.name) == table.markdown()


@every_layout
def test_byte_order_is_spelled_out(table):
    assert table.struct.format[0] == "<"


@every_layout
def test_a_layout_gives_back_what_it_took(table):
    values = {
        field.name: bytes(range(1, field.size + 1)) if field.code.endswith("s") else 200 + i
        for i, field in enumerate(table.fields)
    }
    data = table.pack(**values)
    assert len(data) == table.size < PAGE_BYTES - 4
    assert table.unpack(data) == values
    for field in table.fields:
        at = table.offset(field.name)
        piece = data[at : at + field.size]
        wanted = values[field.name]
        assert (piece if isinstance(wanted, bytes) else int.from_bytes(piece, "little")) == wanted


@every_layout
def test_numbers_are_aligned_to_their_size(table):
    for field in table.fields:
        if not field.code.endswith("s"):
            assert table.offset(field.name) % field.size == 0, field.name


def test_sizes_are_pinned():
    assert [table.size for table in LAYOUTS] == [136, 104, 104, 72]
    assert (layout.PAGE_BYTES, layout.BLOCK_ROWS, layout.CHECKSUM_BYTES) == (4096, 64, 4)
    assert layout.FORMAT_VERSION == 1
    assert layout.MAGIC == b"ngstore\x1a"
    assert (layout.KIND_INDEX, layout.KIND_ROWS, layout.KIND_TOKENS, layout.KIND_SUMS) == (1, 2, 3, 4)


@every_layout
def test_a_missing_or_extra_field_is_refused(table):
    values = {field.name: bytes(field.size) if field.code.endswith("s") else 0 for field in table.fields}
    with pytest.raises((TypeError, struct.error)):
        table.pack(**values, extra=1)
    values.popitem()
    with pytest.raises(KeyError):
        table.pack(**values)


def test_the_last_field_of_what_is_sealed_is_the_checksum_of_the_others():
    table = Layout("sealed", (Field("name", "3s", ""), Field("number", "Q", ""), Field("crc", "I", "")))
    body = b"abc" + (1 << 40).to_bytes(8, "little")
    assert table.sealed(name=b"abc", number=1 << 40) == body + zlib.crc32(body).to_bytes(4, "little")
    whole = table.sealed(zlib.crc32(b"before"), name=b"abc", number=1 << 40)
    assert whole == body + zlib.crc32(b"before" + body).to_bytes(4, "little")
    with pytest.raises(TypeError):
        table.sealed(name=b"abc", number=1, crc=0)


def test_an_unknown_field_has_no_offset():
    with pytest.raises(KeyError):
        INDEX_HEADER.offset("nothing")
