"""Files of one name, size and generation from two histories of a store: an old copy put back is noticed, live and at open.

Two stores are built alike, so they have one identity; then other changes are made to each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from helpers import build_ngrams, published, put_in_place, rows_of

import ngramstore as ngs
from ngramstore.errors import DamagedStore
from ngramstore.layout import INDEX_HEADER, PAGE_BYTES, ROWS_HEADER, TOKENS_HEADER
from ngramstore.store.repair.check import verify

STORED = {(i, i % 5): i for i in range(80)}
FIRST = {(1, 1): 500, (900,): 501}
SECOND = {(2, 2): 600, (901,): 601}
GONE = {"first": (3, 3), "second": (4, 4)}


def two_histories(room: Path, *, is_compacted: bool = False, values_only: bool = False) -> tuple[Path, Path]:
    """Stores of equal generations, names and sizes; values_only: also of equal keys."""
    paths = room / "first", room / "second"
    for path, changes in zip(paths, (FIRST, SECOND), strict=True):
        build_ngrams(path, STORED)
        with ngs.open(path, mode="rw") as writer:
            keys = list(FIRST if values_only else changes)
            writer.put(keys, rows_of(list(changes.values()), 4))
            writer.delete([GONE["first" if values_only else path.name]])
            if is_compacted:
                writer.compact()
    first, second = paths
    assert {f.name: f.stat().st_size for f in first.iterdir() if f.name not in ("MANIFEST", "LOCK")} == {
        f.name: f.stat().st_size for f in second.iterdir() if f.name not in ("MANIFEST", "LOCK")
    }
    return first, second


def changed_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.suffix)


@pytest.mark.parametrize("is_compacted", [False, True])
@pytest.mark.parametrize("values_only", [False, True])
def test_a_file_of_another_history_is_refused_or_is_the_same(quick_path, is_compacted, values_only):
    first, second = two_histories(quick_path, is_compacted=is_compacted, values_only=values_only)
    good, refused = published(first), []
    for name in changed_files(first):
        ours = (first / name).read_bytes()
        if ours == (second / name).read_bytes():
            continue  # the base of both, or an index of the same keys
        put_in_place(second / name, first)
        with pytest.raises(DamagedStore, match=f"{name} is not the file the manifest names"):
            published(first)
        assert any(fault.file == name for fault in verify(first))
        (first / name).write_bytes(ours)
        refused.append(name.split("-")[0] + "." + name.split(".")[1])
    layer = "base" if is_compacted else "overlay"
    wanted = [f"{layer}.rows"] if values_only else [f"{layer}.index", f"{layer}.rows", f"{layer}.tokens"]
    assert refused == wanted + ["tombstones.index"] * (not is_compacted and not values_only)
    assert published(first) == good


@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {}, {"lock_index": True}], ids=str)
def test_a_live_reader_keeps_its_state_while_a_writer_goes_on_from_a_restored_one(quick_path, options):
    """The writer's next generation has the file names that the reader has open."""
    first, second = two_histories(quick_path, values_only=True)
    with ngs.open(first, mode="rw") as writer:
        writer.put([(1, 1)], rows_of([700], 4))
    with ngs.open(first, **options) as reader:
        generation = reader.generation
        before = {key: row.tobytes() for key, row in reader.items()}
        for name in [*changed_files(second), "MANIFEST"]:
            put_in_place(second / name, first)
        in_a_process = "import sys, numpy, ngramstore as ngs\nwith ngs.open(sys.argv[1], mode='rw') as writer:\n"
        in_a_process += "    writer.put([(5, 5)], numpy.ones((1, writer.dim), numpy.float32))"
        subprocess.run([sys.executable, "-c", in_a_process, str(first)], check=True)
        assert reader.generation == generation
        assert {key: row.tobytes() for key, row in reader.items()} == before
        assert reader.get([(1, 1)])[0][0, 0] == 8 * 700 and (5, 5) not in reader


@pytest.mark.parametrize("is_compacted", [False, True])
@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {}, {"resident": True}, {"lock_index": True}], ids=str)
def test_a_live_reader_follows_a_restored_state_of_its_own_generation(quick_path, is_compacted, options):
    first, second = two_histories(quick_path, is_compacted=is_compacted, values_only=True)
    with ngs.open(first, **options) as reader:
        assert reader.get([(1, 1)])[0][0, 0] == 8 * 500
        generation = reader.generation
        for name in [*changed_files(second), "MANIFEST"]:
            put_in_place(second / name, first)
        assert reader.refresh()
        assert reader.generation == generation
        assert reader.get([(1, 1), (900,)])[0][:, 0].tolist() == [8 * 600, 8 * 601]
        assert not reader.refresh()


def test_a_live_reader_follows_a_restored_state_of_an_earlier_generation(quick_path):
    first, second = two_histories(quick_path, values_only=True)
    with ngs.open(first, mode="rw") as writer:
        writer.put([(1, 1)], rows_of([700], 4))
    with ngs.open(first) as reader:
        assert reader.get([(1, 1)])[0][0, 0] == 8 * 700
        for name in [*changed_files(second), "MANIFEST"]:
            put_in_place(second / name, first)
        assert reader.refresh()
        assert reader.get([(1, 1)])[0][0, 0] == 8 * 600
    assert published(first) == published(second)


@pytest.mark.parametrize(("suffix", "values_only"), [("rows", True), ("index", False), ("tokens", False)])
def test_the_inside_of_another_file_under_the_right_header_is_found(quick_path, suffix, values_only):
    """What a copy leaves that was interrupted: the index says so when it is opened, for the others `verify` does."""
    first, second = two_histories(quick_path, values_only=values_only)
    name = f"overlay-000002.{suffix}"
    ours, other = (first / name).read_bytes(), (second / name).read_bytes()
    (first / name).write_bytes(ours[:PAGE_BYTES] + other[PAGE_BYTES:])
    faults = verify(first)
    assert {fault.file for fault in faults} >= {name}
    assert any("that the manifest names" in fault.what for fault in faults)
    if suffix == "index":
        with pytest.raises(DamagedStore, match=f"{name}.*not those of its header"):
            ngs.open(first)


def without_digests(path: Path) -> None:
    """Make the store one whose writer knew of no digests: zeros in its headers, nothing in its manifest."""
    body = json.loads((path / "MANIFEST").read_bytes().split(b"\n", 1)[1])
    layouts = {"index": INDEX_HEADER, "rows": ROWS_HEADER, "tokens": TOKENS_HEADER}
    layers = [body["base"], body["overlay"]["puts"]]
    entries = [layer[kind] for layer in layers for kind in layouts] + [body["overlay"]["tombstones"]]
    for entry in entries:
        layout, file = layouts[entry["name"].split(".")[1]], path / entry["name"]
        data = bytearray(file.read_bytes())
        at = layout.offset("content")
        assert data[at : at + 16].hex() == entry.pop("content")
        data[at : at + 16] = bytes(16)
        entry["header_crc"] = zlib.crc32(data[: PAGE_BYTES - 4])
        data[PAGE_BYTES - 4 : PAGE_BYTES] = entry["header_crc"].to_bytes(4, "little")
        file.write_bytes(data)
    text = json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
    first = b"ngramstore manifest 1 %08x %d\n" % (zlib.crc32(text), len(text))
    (path / "MANIFEST").write_bytes(first + text)


def test_a_store_without_digests_is_read_and_changed(quick_path):
    path, _ = two_histories(quick_path)
    good = published(path)
    without_digests(path)
    assert verify(path) == []
    assert published(path) == good
    with ngs.open(path, mode="rw") as writer:
        writer.put([(9, 9)], rows_of([9], 4))
    assert published(path) == {**good, (9, 9): 9}
    assert verify(path) == []
