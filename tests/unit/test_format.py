"""docs/format.md is enough to read a store: its example is made here, and a reader that knows the document alone agrees.

`plain_reader.py` shares no code with the package. To print the example anew: python tests/unit/test_format.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import plain_reader
import pytest
import xxhash
from store_cases import build, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore import layout
from ngramstore.codec.registry import CODECS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "format.md"
GOLDEN = ROOT / "tests" / "golden"
NGRAMS = [(3,), (14,), (3, 14)]
ROWS = np.array([[1, 2, 3, 4], [-1, 0, 0, 1], [0.5, 0.25, 0, -127]], np.float32)


def hexdump(data: bytes, at: int) -> str:
    """Lines of 16 bytes behind their position."""
    return "\n".join(f"{at + i:08x}  {data[i : i + 16].hex(' ')}" for i in range(0, len(data), 16))


def example(directory: Path) -> str:
    """The worked example of the document: a store of three rows, and its bytes that are not zero."""
    path = build(directory / "example", NGRAMS, ROWS, max_n=2, codec="int8")
    lines = ["The three n-grams and their IDs, in ID order:", "", "```"]
    ids = {plain_reader.ngram_id(ngram, 0): ngram for ngram in NGRAMS}
    lines += [f"rank {rank}  {identity:016x}  {ids[identity]}" for rank, identity in enumerate(sorted(ids))]
    body = json.loads((path / "MANIFEST").read_bytes().split(b"\n", 1)[1])
    text = json.dumps({**body, "release": "0.1.0"}, indent=1, sort_keys=True) + "\n"
    first = f"ngramstore manifest 1 {zlib.crc32(text.encode()):08x} {len(text)}"
    lines += ["```", "", "`MANIFEST`:", "", "```", first, *text.rstrip().splitlines(), "```"]
    for suffix in ("index", "rows", "tokens"):
        data = (path / f"base-000001.{suffix}").read_bytes()
        lines += ["", f"`base-000001.{suffix}`, {len(data):,} bytes; all that is not shown is zero:", "", "```"]
        shown = [at for at in range(0, len(data), 16) if any(data[at : at + 16])]
        lines += [hexdump(data[at : at + 16], at) for at in shown]
        lines += ["```"]
    return "\n".join(lines)


def marked(name: str) -> str:
    """What stands between the markers of that name."""
    return DOCUMENT.read_text().split(f"<!-- {name} -->\n")[1].split("\n<!-- end -->")[0]


def test_the_worked_example_is_what_the_writer_writes(tmp_path):
    assert marked("example") == example(tmp_path)


def test_the_document_prints_the_pinned_ids():
    rows = [line.split("|")[1:4] for line in marked("pinned ids").splitlines()[2:]]
    assert len(rows) >= 8
    for ngram, seed, identity in rows:
        tokens = tuple(int(token) for token in ngram.strip(" ()`").split(",") if token.strip())
        assert plain_reader.ngram_id(tokens, int(seed)) == int(identity.strip(" `"), 16)


def test_the_document_states_the_limits_of_the_code():
    text = DOCUMENT.read_text()
    assert f"{layout.MAX_ROW_BYTES:,} bytes" in text
    assert f"\n| {layout.FORMAT_VERSION} | " in text.split("## Versions")[1]
    assert all(f"`{name}`" in text for name in CODECS)


def golden_stores() -> list[Path]:
    return sorted(path.parent for path in GOLDEN.glob("v*/*/MANIFEST"))


@pytest.mark.parametrize("path", golden_stores(), ids=lambda path: path.name)
def test_a_reader_made_from_the_document_reads_the_golden_stores(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    store = plain_reader.Reader(path)
    with ngs.open(path) as real:
        for key in expected["keys"]:
            wanted = real.rows_encoded(key[0]) if store.is_row else real.get_encoded([tuple(key)])[0][0]
            assert store.get(tuple(key)) == wanted.tobytes()
        for key in expected.get("absent", []):
            assert store.get(tuple(key)) is None
        if store.manifest["has_tokens"]:
            assert store.ngrams() == {tuple(key) for key in expected["keys"]}


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"seed": 9, "codec": "int4"}], ids=str)
@pytest.mark.parametrize("count", [1, 64, 700])
def test_a_reader_made_from_the_document_reads_what_is_built_today(tmp_path, count, options):
    ngrams, rows = some_ngrams(count, vocabulary=5000), np.round(some_rows(count))
    store = plain_reader.Reader(build(tmp_path / "store", ngrams, rows, **options))
    with ngs.open(tmp_path / "store") as real:
        encoded, _ = real.get_encoded(ngrams)
    assert [store.get(ngram) for ngram in ngrams] == [row.tobytes() for row in encoded]
    assert store.ngrams() == set(ngrams)
    assert store.get((4_000_000_000,)) is None


def test_the_plain_readers_checksum_is_the_published_one():
    assert plain_reader.checksum(b"abc", 5) == xxhash.xxh64_intdigest(b"abc", 5) & 0xFFFFFFFF


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.stdout.write(example(Path(name)) + "\n")
