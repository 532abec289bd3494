"""Files that lie under good checksums: every checksum is made right again, so that only the readers' own checks are left.

Whatever such files say, an answer is a FormatError or has the shape it should have: no crash, no other error, nothing
allocated on their word.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xxhash
from damage import forge_header
from helpers import build_ngrams, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import build_rows

import ngramstore as ngs
from ngramstore.errors import DamagedStore, FormatError, NgramStoreError
from ngramstore.hashing import ngram_ids
from ngramstore.layout import INDEX_HEADER, PAGE_BYTES, TOKENS_HEADER
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.manifest import read_manifest
from ngramstore.store.repair.check import Fault, verify
from ngramstore.store.repair.repair import repair
from ngramstore.store.view import View

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
SECTIONS = ["groups_at", "directory_at", "remainders_at", "low_bits_at", "offsets_at", "lengths_at"]


def write_resealed(file: Path, data: bytearray) -> None:
    """Write an index with all that vouches for it right again: page checksums, digest, header, manifest."""
    header = INDEX_HEADER.unpack(bytes(data[: INDEX_HEADER.size]))
    sums = int(header["checksums_at"])
    for page in range(1, sums // PAGE_BYTES):
        value = xxhash.xxh64_intdigest(bytes(data[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]), page) & 0xFFFFFFFF
        data[sums + 4 * (page - 1) : sums + 4 * page] = value.to_bytes(4, "little")
    data[-4:] = zlib.crc32(data[sums:-4]).to_bytes(4, "little")
    at = INDEX_HEADER.offset("content")
    old_content, old_crc = data[at : at + 16].hex(), int.from_bytes(data[PAGE_BYTES - 4 : PAGE_BYTES], "little")
    data[at : at + 16] = hashlib.blake2b(data[sums:-4], digest_size=16).digest()
    crc = zlib.crc32(data[: PAGE_BYTES - 4])
    data[PAGE_BYTES - 4 : PAGE_BYTES] = crc.to_bytes(4, "little")
    file.write_bytes(data)
    body = (file.parent / "MANIFEST").read_text().split("\n", 1)[1]
    assert old_content in body and str(old_crc) in body
    body = body.replace(old_content, data[at : at + 16].hex()).replace(f"{old_crc},", f"{crc},")
    first = f"ngramstore manifest 1 {zlib.crc32(body.encode()):08x} {len(body)}\n"
    (file.parent / "MANIFEST").write_text(first + body)


def questions(store: ngs.Store, keys: list[tuple[int, ...]], expected: dict) -> list[Callable[[], object]]:
    """What a reader can ask: all rows, single rows, longest matches, the list of all."""
    if not store.spec.is_ngram:
        numbers = [key[0] for key in keys]
        return [lambda: store.rows(numbers), lambda: store.rows(7), lambda: list(store.items())]
    return [
        lambda: store.get(keys)[0],
        lambda: [store.get([key])[0] for key in keys[:5]],
        lambda: store.lookup(expected["tokens"]).rows,
        lambda: list(store.items()),
    ]


def use(path: Path, expected: dict) -> None:
    """Everything a reader can ask; FormatErrors are fine."""
    keys = [tuple(key) for key in expected["keys"]]
    for options in ({"cache_bytes": 0}, {"resident": True}, {"on_damage": "missing"}):
        try:
            store = ngs.open(path, **options)
        except FormatError:
            continue
        for ask in questions(store, keys, expected):
            try:
                got = ask()
            except FormatError:
                continue
            if isinstance(got, np.ndarray):
                assert got.shape[-1] == store.dim
        store.close()


def lying(tmp_path_factory, name: str) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("lies") / name
    shutil.copytree(GOLDEN / name, path)
    return path, json.loads((GOLDEN / f"{name}.json").read_text())


number = st.one_of(
    st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 70_000)
)


@pytest.mark.parametrize("name", ["ngram_zstd", "ngram_overlay", "rows_overlay"])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_index_that_lies_leads_nowhere(tmp_path_factory, name, data):
    path, expected = lying(tmp_path_factory, name)
    file = path / data.draw(st.sampled_from(sorted(entry.name for entry in path.glob("*.index"))))
    content = bytearray(file.read_bytes())
    header = INDEX_HEADER.unpack(bytes(content[: INDEX_HEADER.size]))
    sections = [section for section in SECTIONS if header[section] and header[section] < header["checksums_at"]]
    for _ in range(data.draw(st.integers(1, 4))):
        if not sections:
            return
        at = int(header[data.draw(st.sampled_from(sections))]) + 2 * data.draw(st.integers(0, 40))
        size = data.draw(st.sampled_from([2, 4, 8]))
        content[at : at + size] = (data.draw(number) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    write_resealed(file, content)
    View.open(path)  # what lies is not noticed here, only by who reads it
    use(path, expected)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_tokens_that_lie_are_not_listed(tmp_path_factory, data):
    path, expected = lying(tmp_path_factory, "ngram_overlay")
    file = path / "base-000001.tokens"
    content = bytearray(file.read_bytes())
    header = TOKENS_HEADER.unpack(bytes(content[: TOKENS_HEADER.size]))
    offsets = int(header["offsets_at"])
    if data.draw(st.booleans()):
        at = offsets + 8 * data.draw(st.integers(0, int(header["num_blocks"])))
        content[at : at + 8] = data.draw(number).to_bytes(8, "little")
    else:
        begin, end = (int.from_bytes(content[offsets + i : offsets + i + 8], "little") for i in (0, 8))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(begin, end - 5))] = data.draw(st.integers(0, 255))
        value = xxhash.xxh64_intdigest(bytes(content[begin : end - 4]), 0) & 0xFFFFFFFF
        content[end - 4 : end] = value.to_bytes(4, "little")
    file.write_bytes(content)
    use(path, expected)


@pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", b"junk that is no frame", bytes(63)], ids=repr)
def test_a_row_that_is_no_frame_is_damaged_not_fatal(tmp_path, frame):
    """The checksum over it is right, the length fits: only the decompressor can tell."""
    shutil.copytree(GOLDEN / "ngram_zstd", tmp_path / "store")
    expected = json.loads((GOLDEN / "ngram_zstd.json").read_text())
    index_path, rows_path = tmp_path / "store" / "base-000001.index", tmp_path / "store" / "base-000001.rows"
    index, rows = bytearray(index_path.read_bytes()), bytearray(rows_path.read_bytes())
    header = INDEX_HEADER.unpack(bytes(index[: INDEX_HEADER.size]))
    with ngs.open(tmp_path / "store") as store:
        first_id = int(store._view.base.index.ids(0, 1)[0])
        place = int(store._view.base.places(0, 1)[0][0])
    index[int(header["lengths_at"]) : int(header["lengths_at"]) + 2] = len(frame).to_bytes(2, "little")
    rows[place : place + len(frame)] = frame
    at = place + len(frame)
    value = xxhash.xxh64_intdigest(frame, first_id) & 0xFFFFFFFF
    rows[at : at + 4] = value.to_bytes(4, "little")
    write_resealed(index_path, index)
    rows_path.write_bytes(rows)
    use(tmp_path / "store", expected)
    with ngs.open(tmp_path / "store") as store, pytest.raises(FormatError):
        store.get([tuple(key) for key in expected["keys"]])


COUNTS = [10**10, (1 << 61) + 1, 1 << 200]
LYING_NAMES = ["ngram_int8", "ngram_overlay", "rows_overlay", "rows_e4m3"]
LYING_PLACES = [
    ("base", "num_rows"),
    ("base", "index", "bytes"),
    ("base", "rows", "bytes"),
    ("base", "tokens", "bytes"),
    ("base", "rows", "header_crc"),
    ("overlay", "tombstones", "bytes"),
    ("overlay", "puts", "num_rows"),
    ("overlay", "puts", "index", "bytes"),
    ("num_rows",),
    ("dim",),
]


@contextmanager
def little_memory() -> Iterator[None]:
    """What asks for more than 4 GiB in here is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tell(path: Path, lies: dict[tuple[str, ...], int | list[int]]) -> bool:
    """Make a manifest, under a right checksum, say something else; False where it says nothing there."""
    body = json.loads((path / "MANIFEST").read_bytes().split(b"\n", 1)[1])
    for place, value in lies.items():
        at = body
        for name in place[:-1]:
            at = at[name]
            if at is None:
                return False
        at[place[-1]] = value
    data = json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
    (path / "MANIFEST").write_bytes(b"ngramstore manifest 1 %08x %d\n" % (zlib.crc32(data), len(data)) + data)
    return True


def check_and_repair(path: Path) -> list[Fault]:
    """What `verify` finds; it and `repair` end, with errors of ours at most, and take no memory on the manifest's word."""
    with little_memory():
        faults = verify(path)
        try:
            repair(path, path.with_name("mended"))
        except NgramStoreError:
            return faults
    assert not faults or verify(path.with_name("mended")) == []
    return faults


@pytest.mark.parametrize("place", LYING_PLACES, ids="/".join)
@pytest.mark.parametrize("name", LYING_NAMES)
def test_a_manifest_that_lies_is_a_fault_to_verify_and_repair(quick_path, name, place):
    for number, value in enumerate(COUNTS):
        path = quick_path / f"{number}" / name
        shutil.copytree(GOLDEN / name, path)
        body = json.loads((path / "MANIFEST").read_bytes().split(b"\n", 1)[1])
        if tell(path, {place: value}) and json.loads((path / "MANIFEST").read_bytes().split(b"\n", 1)[1]) != body:
            assert check_and_repair(path), value


@pytest.mark.parametrize("name", LYING_NAMES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_manifest_that_lies_in_harmony_is_a_fault_too(tmp_path_factory, name, data):
    """Sizes of files that fit the number of rows: only the files themselves know better."""
    path, _ = lying(tmp_path_factory, name)
    manifest = read_manifest(path)
    codec, base = manifest.spec.codec, manifest.base
    count = data.draw(st.one_of(st.sampled_from([0, 10**10, 1 << 40]), st.integers(0, 1 << 40)))
    plan = IndexPlan(count, manifest.spec.is_ngram, base.is_compressed)
    lies = {("base", "num_rows"): count, ("base", "index", "bytes"): plan.file_bytes}
    stored = (codec.row_bytes if not base.is_compressed else data.draw(st.integers(1, codec.row_bytes))) + 4
    lies["base", "rows", "bytes"] = PAGE_BYTES + stored * count
    if base.tokens:
        lies["base", "tokens", "bytes"] = PAGE_BYTES * (1 + count // 1000) + 8 * (-(-count // 64) + 1)
    if count == base.num_rows or max(lies.values()) >= 1 << 62:
        return
    assert tell(path, lies)
    with little_memory():
        assert verify(path)


CLOSED = {(1,): 1, (2,): 2, (1, 2): 3}


@pytest.mark.parametrize(
    ("stored", "puts", "deletes", "is_true"),
    [
        (CLOSED, [], [], True),
        (CLOSED, [], [(1, 2)], True),
        (CLOSED, [(2, 2), (1, 2)], [], True),
        (CLOSED, [(3,), (1, 3)], [], True),
        ({(1,): 1, (1, 2): 2}, [], [], False),
        (CLOSED, [], [(2,)], False),
        (CLOSED, [(1, 3)], [], False),
    ],
)  # fmt: skip
def test_a_manifest_that_lies_about_endings_is_a_fault(quick_path, stored, puts, deletes, is_true):
    """In the base, or by what is deleted and put since."""
    path = quick_path / "store"
    build_ngrams(path, stored, max_n=2)
    with ngs.open(path, mode="rw") as store:
        if puts:
            store.put(puts, rows_of(range(len(puts)), 4))
        if deletes:
            store.delete(deletes)
    assert tell(path, {("suffix_closed",): True})
    told = [fault.what for fault in verify(path)]
    assert told == ([] if is_true else ["it says that the n-grams are closed under suffixes, and they are not"])


@pytest.mark.parametrize("is_put", [True, False])
def test_tombstones_that_contradict_the_layers_are_a_fault(quick_path, monkeypatch, is_put):
    """Of an n-gram that is put, or of one that the base does not have."""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(5)})
    ids = ngram_ids(np.array([[1 if is_put else 77]], np.uint32))
    monkeypatch.setattr("ngramstore.store.changes.overlay._tombstones", lambda view, changed, deleted: ids)
    with ngs.open(path, mode="rw") as store:
        store.put([(1,)], rows_of([10], 4))
    both, none = "is among the tombstones and in the overlay", "1 tombstones belong to no row of the base"
    assert [fault.what for fault in verify(path)] == [f"ID 0x{int(ids[0]):016x} {both}" if is_put else none]


def test_a_changed_row_that_the_base_does_not_have_is_a_fault(quick_path):
    path = build_rows(quick_path / "store", rows_of(range(20), 4))
    with ngs.open(path, mode="rw") as store:
        store._writer.put_rows(np.array([99]), store.rows_encoded([0]))
        store.flush()
    assert [fault.what for fault in verify(path)] == ["the overlay holds rows that the base does not have"]


def test_fewer_ngrams_by_length_than_rows_are_a_fault_and_repair_lets_all_be_found(quick_path):
    """Without tokens nobody can count them; a length that is said to be none is never looked for."""
    path = quick_path / "store"
    build_ngrams(path, CLOSED, tokens=False)
    assert tell(path, {("length_counts",): [0, 0, 0, 0]})
    with ngs.open(path) as store:
        assert store.lookup([1, 2]).length.tolist() == [0, 0]
    assert ["n-grams by length" in fault.what for fault in verify(path)] == [True]
    assert repair(path).lost == []
    assert verify(path) == []
    with ngs.open(path) as store:
        assert store.lookup([1, 2]).length.tolist() == [1, 2]


@pytest.mark.parametrize(
    "lies", [{("length_counts",): [0, 0, 0]}, {("num_rows",): 0}, {("generation",): (1 << 62) - 1}], ids=str
)
def test_a_flush_that_would_publish_what_nobody_reads_changes_nothing(quick_path, lies):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1, (2,): 2, (1, 2): 3}, max_n=2)
    assert tell(path, lies)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOCK"}
    store = ngs.open(path, mode="rw")
    store.delete([(1,), (1, 2)])
    for _ in range(2):
        with pytest.raises(DamagedStore, match="MANIFEST stays as it is"):
            store.flush()
    store._shut()
    assert {file.name: file.read_bytes() for file in path.glob("[Mb]*")} == before
    with ngs.open(path, mode="rw") as store:
        assert store.get([(1,), (2,), (1, 2)])[1].tolist() == [False, True, False], (
            "the changes are in the journal still"
        )
        store._shut()


@pytest.mark.parametrize("max_n", [1, 3, 16])
def test_tokens_of_another_longest_ngram_than_the_store_has_are_damage(quick_path, max_n):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1, (2,): 2, (1, 2): 3}, max_n=2)
    crc = forge_header(path / "base-000001.tokens", TOKENS_HEADER, max_n=max_n)
    assert tell(path, {("base", "tokens", "header_crc"): crc})
    with pytest.raises(DamagedStore, match=rf"base-000001\.tokens holds 3 n-grams of up to {max_n} tokens"):
        ngs.open(path, mode="rw")
    assert verify(path)[0].file == "base-000001.tokens"


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 7, 10**10])
def test_a_compaction_of_other_rows_than_the_manifest_counts_is_refused(quick_path, count):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(5)})
    with ngs.open(path, mode="rw") as store:
        store.put([(1,), (7,)], rows_of([10, 70], 4))
        store.delete([(2,), (3,)])
    assert tell(path, {("num_rows",): count})
    with ngs.open(path, mode="rw") as store, little_memory():
        with pytest.raises(DamagedStore, match=rf"{count:,} rows"):
            store.compact()
        assert store.get([(1,), (2,)])[1].tolist() == [True, False]
    assert not list(path.glob("base-000003.*"))


def test_a_compaction_of_another_number_of_numbered_rows_is_refused(quick_path):
    path = build_rows(quick_path / "store", rows_of(range(20), 4))
    with ngs.open(path, mode="rw") as store:
        store.put([3], rows_of([30], 4))
    assert tell(path, {("num_rows",): 21})
    with ngs.open(path, mode="rw") as store, pytest.raises(DamagedStore, match="21 rows"):
        store.compact()


@pytest.mark.parametrize(
    ("act", "layer"), [("flush", "overlay-000002"), ("compact", "overlay-000002"), ("compact", "base-000001")]
)
def test_ids_that_do_not_ascend_are_damage_to_who_merges_them(quick_path, layer, act):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(5)})
    with ngs.open(path, mode="rw") as store:
        store.put([(i,) for i in range(20, 25)], rows_of(range(5), 4))
    index = bytearray((path / f"{layer}.index").read_bytes())
    at = int(INDEX_HEADER.unpack(bytes(index[: INDEX_HEADER.size]))["remainders_at"])
    remainders = np.frombuffer(index, "<u4", 5, at)
    index[at : at + 20] = remainders[[4, 3, 2, 1, 0]].tobytes()
    write_resealed(path / f"{layer}.index", index)
    store = ngs.open(path, mode="rw")
    opened = store._view.base if layer.startswith("base") else store._view.overlay
    rows = bytearray((path / f"{layer}.rows").read_bytes())
    for identity, at in zip(opened.index.ids().tolist(), range(PAGE_BYTES, len(rows), 20), strict=True):
        value = xxhash.xxh64_intdigest(bytes(rows[at : at + 16]), identity) & 0xFFFFFFFF
        rows[at + 16 : at + 20] = value.to_bytes(4, "little")
    (path / f"{layer}.rows").write_bytes(rows)
    store.put([(30,)], rows_of([30], 4))
    with pytest.raises(DamagedStore, match="not above the one before"):
        getattr(store, act)()
    store._shut()


@pytest.mark.parametrize("offset", [(1 << 63) - 10, (1 << 62) + 1, 3])
def test_a_block_said_to_begin_outside_of_its_file_is_a_fault(tmp_path, offset):
    """After a row whose length is not known nothing else tells where the next block begins."""
    path = tmp_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=64, compression="zstd")
    with ngs.open(path) as store:
        (place,), (size,) = (values.tolist() for values in store._view.base.places(5, 1))
    index, rows = path / "base-000001.index", path / "base-000001.rows"
    content = bytearray(index.read_bytes())
    header = INDEX_HEADER.unpack(bytes(content[: INDEX_HEADER.size]))
    at = int(header["lengths_at"]) + 2 * 5
    content[at : at + 2] = bytes(2)
    for block in (1, 2):
        at = int(header["offsets_at"]) + 8 * block
        content[at : at + 8] = offset.to_bytes(8, "little")
    write_resealed(index, content)
    data = bytearray(rows.read_bytes())
    data[place + size // 2] ^= 255
    rows.write_bytes(data)
    told = [fault.what for fault in verify(path)]
    assert sum(f"begin at byte {offset} of the rows" in what for what in told) == 2, told
    assert len(repair(path, tmp_path / "out").lost) >= 1
    assert verify(tmp_path / "out") == []
