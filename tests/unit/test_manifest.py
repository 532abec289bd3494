"""The manifest: published whole, parsed with suspicion, and clear about what it is not."""

from __future__ import annotations

import json
import os
import uuid
import zlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.codec.registry import codec_from_spec
from ngramstore.errors import DamagedStore, FormatError, IncompleteStore, NotAStore, UnsupportedVersion, UsageError
from ngramstore.store.layers.datafile import FileEntry
from ngramstore.store.layers.external_entry import ExternalEntry, Piece, Segment, SourceEntry
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Manifest, Spec, decode_manifest, read_manifest


def entry(name: str) -> FileEntry:
    return FileEntry(name, 8192, 0xDEADBEEF)


def layer(prefix: str, *, tokens: bool = True, compressed: bool = False) -> LayerEntry:
    return LayerEntry(
        num_rows=5,
        is_compressed=compressed,
        index=entry(f"{prefix}.index"),
        rows=entry(f"{prefix}.rows"),
        tokens=entry(f"{prefix}.tokens") if tokens else None,
    )


def some_manifest(**changes) -> Manifest:
    spec = Spec(
        addressing="ngram", dim=8, max_n=3, codec=codec_from_spec("int8", 8), seed=2**64 - 1, metadata={"a": [1, "ü"]}
    )
    plain = {
        "spec": spec,
        "identity": str(uuid.UUID(int=7)),
        "generation": 1,
        "release": "0.1.0",
        "base": layer("base-000001"),
        "base_generation": 1,
        "num_rows": 5,
        "length_counts": (0, 2, 2, 1),
        "suffix_closed": True,
        "journal": "journal-000001",
    }
    return Manifest(**{**plain, **changes})


MANIFESTS = [
    some_manifest(),
    some_manifest(
        generation=3,
        overlay=layer("overlay-000003", compressed=True),
        tombstones=entry("tombstones-000003.index"),
        overlay_generation=3,
        suffix_closed=False,
    ),
    some_manifest(base=layer("base-000001", tokens=False), spec=Spec(addressing="row", dim=8, max_n=1, codec=codec_from_spec("f16", 8), has_tokens=False), length_counts=()),
]  # fmt: skip


ROWS_IN_PLACE = ExternalEntry(
    sources=(SourceEntry("/models/a.safetensors", 10_000, "aa", "bb", 2**60, 2**61),),
    segments=(Segment(3, (Piece(0, 100, 8), Piece(0, 200, 4))), Segment(2, (Piece(0, 500, 8), Piece(0, 600, 4)))),
    sums=entry("base-000001.sums"),
)
MANIFESTS.append(
    some_manifest(
        base=ROWS_IN_PLACE,
        spec=Spec(addressing="row", dim=8, max_n=1, codec=codec_from_spec("int8", 8), has_tokens=False),
        length_counts=(),
    )
)


def dressed(body: bytes, version: int = 1) -> bytes:
    """A body behind the first line that fits it."""
    return b"ngramstore manifest %d %08x %d\n" % (version, zlib.crc32(body), len(body)) + body


def as_json(manifest: Manifest) -> dict:
    return json.loads(manifest.encode().split(b"\n", 1)[1])


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_comes_back(tmp_path, manifest):
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["MANIFEST"]


def test_the_bytes_of_a_manifest_are_a_function_of_what_it_says():
    assert some_manifest().encode() == some_manifest().encode()
    assert some_manifest().encode().split(b"\n", 1)[0].startswith(b"ngramstore manifest 1 ")


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_bit_flip_and_every_cut_is_a_format_error(tmp_path, manifest):
    good = manifest.encode()
    for size in range(len(good)):
        with pytest.raises(FormatError):
            decode_manifest(good[:size], tmp_path)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_manifest(bytes(bad), tmp_path)
    with pytest.raises(FormatError):
        decode_manifest(good + b"\n", tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(dressed)))
def test_any_bytes_are_a_manifest_or_a_format_error(tmp_path_factory, data):
    try:
        decode_manifest(data, tmp_path_factory.getbasetemp())
    except FormatError:
        return
    raise AssertionError("random bytes were taken for a manifest")


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("1" * 5000), st.just(2**63)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip


def places(value, path=()):
    """Every place in a tree of JSON."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MANIFESTS), st.data(), anything)
def test_anything_anywhere_in_the_json_is_read_or_a_format_error(tmp_path_factory, manifest, data, value):
    tree = as_json(manifest)
    path = data.draw(st.sampled_from(list(places(tree))))
    if not path:
        tree = value
    else:
        inner = tree
        for step in path[:-1]:
            inner = inner[step]
        if data.draw(st.booleans()):
            inner[path[-1]] = value
        else:
            del inner[path[-1]]
    try:
        got = decode_manifest(dressed(json.dumps(tree).encode()), tmp_path_factory.getbasetemp())
    except FormatError:
        return
    assert decode_manifest(got.encode(), tmp_path_factory.getbasetemp()).encode() == got.encode()
    assert len(got.length_counts) == (got.spec.max_n + 1 if got.spec.is_ngram else 0)
    assert got.spec.has_tokens == (got.base.tokens is not None)


@pytest.mark.parametrize(
    "name",
    ["../base-000001.rows", "/etc/passwd", "base-000001.rows/", "a/b-000001.rows", "", ".", "base-000001.rows\n", "base-1.rows", "MANIFEST", "base-000001.rows\0"],
)  # fmt: skip
def test_a_manifest_names_only_bare_files_of_its_own_directory(tmp_path, name):
    tree = as_json(some_manifest())
    tree["base"]["rows"]["name"] = name
    with pytest.raises(FormatError, match="names a file"):
        decode_manifest(dressed(json.dumps(tree).encode()), tmp_path)


@pytest.mark.parametrize("name", ["../journal-000001", "journal-1", "journal-000001/x", "x", 5, None])
def test_the_journal_is_a_bare_name_too(tmp_path, name):
    tree = as_json(some_manifest())
    tree["journal"] = name
    with pytest.raises(FormatError):
        decode_manifest(dressed(json.dumps(tree).encode()), tmp_path)


def test_a_newer_format_is_called_that_whatever_follows(tmp_path):
    with pytest.raises(UnsupportedVersion, match="format version 2, this release reads 1"):
        decode_manifest(dressed(b"whatever a later release writes", version=2), tmp_path)
    with pytest.raises(UnsupportedVersion):
        decode_manifest(b"ngramstore manifest 2 00000000 0\nmore", tmp_path)


@pytest.mark.parametrize(("where", "value"), [(("hash", "name"), "mix14"), (("base", "compression"), "lz5")])
def test_an_unknown_hash_or_compression_is_unsupported(tmp_path, where, value):
    tree = as_json(some_manifest())
    tree[where[0]][where[1]] = value
    with pytest.raises(UnsupportedVersion, match=value):
        decode_manifest(dressed(json.dumps(tree).encode()), tmp_path)


def test_fields_that_a_later_release_adds_are_passed_over(tmp_path):
    tree = as_json(some_manifest())
    tree["new"] = tree["base"]["new"] = {"x": 1}
    assert decode_manifest(dressed(json.dumps(tree).encode()), tmp_path) == some_manifest()


def test_what_is_no_store_says_what_it_is(tmp_path):
    with pytest.raises(NotAStore, match="does not exist"):
        read_manifest(tmp_path / "none")
    with pytest.raises(NotAStore, match="no file MANIFEST"):
        read_manifest(tmp_path)
    (tmp_path / "BUILDING").write_text("{}")
    with pytest.raises(IncompleteStore):
        read_manifest(tmp_path)
    (tmp_path / "MANIFEST").write_bytes(b"# notes\n")
    with pytest.raises(NotAStore, match="does not begin like"):
        read_manifest(tmp_path)
    with pytest.raises(NotAStore, match="not a directory"):
        read_manifest(tmp_path / "BUILDING")
    (tmp_path / "MANIFEST").unlink()
    (tmp_path / "MANIFEST").mkdir()
    with pytest.raises(NotAStore, match="not a regular file"):
        read_manifest(tmp_path)
    (tmp_path / "MANIFEST").rmdir()
    os.mkfifo(tmp_path / "MANIFEST")  # nobody writes to it: reading must not wait
    with pytest.raises(NotAStore, match="not a regular file"):
        read_manifest(tmp_path)


def test_a_huge_file_is_not_read_to_its_end(tmp_path):
    with open(tmp_path / "MANIFEST", "wb") as file:
        file.write(dressed(b"{}")[:30])
        file.truncate(1 << 40)
    with pytest.raises(FormatError):
        read_manifest(tmp_path)


def test_a_checksum_that_fails_is_damage(tmp_path):
    data = bytearray(some_manifest().encode())
    data[-5] ^= 1
    with pytest.raises(DamagedStore, match="checksum"):
        decode_manifest(bytes(data), tmp_path)


UNREADABLE = {
    "a count below zero": {"num_rows": -1},
    "a length count below zero": {"length_counts": (0, 2, -2, 1)},
    "a generation past the last": {"generation": 1 << 62},
    "a length too many": {"length_counts": (0, 2, 2, 1, 1)},
}


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE)
def test_a_manifest_that_nobody_could_read_is_not_published(tmp_path, changes):
    some_manifest().write(tmp_path)
    with pytest.raises(DamagedStore, match="MANIFEST stays as it is") as caught:
        some_manifest(**changes).write(tmp_path)
    assert "repair" in caught.value.hint
    assert read_manifest(tmp_path) == some_manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["MANIFEST"]


def test_a_manifest_that_is_too_long_to_be_read_is_not_published(tmp_path):
    def of_metadata(size: int) -> Manifest:
        plain = some_manifest()
        return replace(plain, spec=replace(plain.spec, metadata={"text": "x" * size}))

    room = (1 << 20) - len(of_metadata(10**6).encode())
    fits = of_metadata(10**6 + room)
    fits.write(tmp_path)
    with pytest.raises(UsageError, match="1,048,577 bytes"):
        of_metadata(10**6 + room + 1).write(tmp_path)
    assert read_manifest(tmp_path) == fits
