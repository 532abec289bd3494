"""The index file: IDs back from the planes, planned sizes, damage found on first touch, headers not believed."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from damage import forge_header
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ngramstore.errors import DamagedStore, DiskFull, FormatError, UnsupportedVersion
from ngramstore.kernels.native import index as native
from ngramstore.kernels.native import probe
from ngramstore.layout import INDEX_HEADER, PAGE_BYTES
from ngramstore.store.layers import index_builder
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan

STAMP = FileStamp(bytes(range(16)), 3)


def fail_with(code: int):
    def fallocate(*_):
        raise OSError(code, os.strerror(code))

    return fallocate


@pytest.mark.parametrize("code", [None, errno.EINVAL, errno.EOPNOTSUPP])
def test_planes_in_files_find_room_also_where_it_cannot_be_taken_at_once(tmp_path, monkeypatch, code):
    ids = some_ids(3000)
    plan = IndexPlan(len(ids), is_keyed=True, is_sized=False)
    wanted = write_index(tmp_path / "in-memory", ids)
    monkeypatch.setattr(index_builder, "_LARGE_BYTES", 0)
    monkeypatch.setattr(index_builder, "_WRITE_BYTES", 8192)
    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", fail_with(code))
    builder = IndexBuilder(plan, scratch=tmp_path)
    assert index_builder.scratch_bytes(plan) > 6 * len(ids)
    builder.add(ids)
    builder.write(tmp_path / "in-files", STAMP)
    assert (tmp_path / "in-files").read_bytes() == wanted


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_planes_that_find_no_room_are_a_full_disk(tmp_path, monkeypatch, code):
    monkeypatch.setattr(index_builder, "_LARGE_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", fail_with(code))
    with pytest.raises(DiskFull):
        IndexBuilder(IndexPlan(3000, is_keyed=True, is_sized=False), scratch=tmp_path)
    assert os.listdir(tmp_path) == []


def test_planes_in_files_that_did_not_come_there_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(index_builder, "_LARGE_BYTES", 0)

    def fail(plane: np.memmap) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(np.memmap, "flush", fail)
    ids = some_ids(3000)
    builder = IndexBuilder(IndexPlan(len(ids), is_keyed=True, is_sized=False), scratch=tmp_path)
    builder.add(ids)
    with pytest.raises(OSError, match=f"lost.*{tmp_path.name}"):
        builder.write(tmp_path / "index", STAMP)


def write_index(path, ids: np.ndarray) -> bytes:
    """An index of sorted IDs, its planes in memory."""
    builder = IndexBuilder(IndexPlan(len(ids), is_keyed=True, is_sized=False))
    builder.add(ids)
    builder.write(path, STAMP)
    return path.read_bytes()


def some_ids(count: int, seed: int = 0) -> np.ndarray:
    """Sorted distinct IDs."""
    return np.unique(np.random.default_rng(seed).integers(0, 1 << 64, count, np.uint64, endpoint=False))


def written(directory, ids, *, step=10_000, lengths=None, is_keyed=True, scratch=None) -> FileEntry:
    """The file of an index of those IDs."""
    count = len(lengths) if not is_keyed else len(ids)
    builder = IndexBuilder(IndexPlan(count, is_keyed, lengths is not None), scratch)
    for at in range(0, len(ids), step):
        builder.add(ids[at : at + step])
    if lengths is not None:
        builder.set_lengths(0, lengths)
    return builder.write(directory / "base-000001.index", STAMP, data_at=PAGE_BYTES)


def opened(directory, entry, *, is_keyed=True, is_sized=False, lock=False) -> Index:
    index, _file = Index.open(directory, entry, STAMP, is_keyed=is_keyed, is_sized=is_sized, lock=lock)
    index._file = _file  # type: ignore[attr-defined]  # stays open as long as the index
    return index


def find(index: Index, ids: np.ndarray) -> tuple[int, np.ndarray]:
    keys = np.empty(len(ids), np.int64)
    return probe.find(index.line[None], ids, keys), keys


@pytest.mark.parametrize("count", [0, 1, 15, 16, 31, 32, 1000])
@pytest.mark.parametrize("lock", [False, True])
def test_a_rows_number_is_the_rank_of_its_id(tmp_path, count, lock):
    ids = some_ids(count)
    entry = written(tmp_path, ids)
    assert entry.file_bytes == os.path.getsize(tmp_path / entry.name) == IndexPlan(len(ids), True, False).file_bytes
    index = opened(tmp_path, entry, lock=lock)
    assert len(index) == count
    assert (index.ids() == ids).all()
    done, keys = find(index, ids)
    assert done == count
    assert keys.tolist() == list(range(count))
    assert (find(index, ids ^ np.uint64(1))[1] == -1).all()
    assert index.bad_pages() == []
    assert (Index.from_ids(ids).ids() == ids).all()


def test_the_first_and_the_last_id_there_is_can_be_stored(tmp_path):
    ids = np.array([0, 1, (1 << 64) - 2, (1 << 64) - 1], np.uint64)
    index = opened(tmp_path, written(tmp_path, ids))
    assert find(index, ids)[1].tolist() == [0, 1, 2, 3]
    assert index.ids(1, 2).tolist() == ids[1:3].tolist()


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
@pytest.mark.parametrize("chunk", [1, 9, 40])
def test_chunks_do_not_change_the_bytes(tmp_path, monkeypatch, chunk, step):
    """A chunk ends inside a bucket, and would end inside a byte of low bits if it were not cut to whole ones."""
    ids = some_ids(300)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = written(tmp_path / "a", ids, step=300)
    monkeypatch.setattr(index_builder, "_CHUNK_ROWS", chunk)
    taken: list[bool] = []
    real = IndexBuilder._take

    def take(builder: IndexBuilder, *, full_bytes: bool) -> None:
        taken.append(full_bytes)
        real(builder, full_bytes=full_bytes)

    monkeypatch.setattr(IndexBuilder, "_take", take)
    pieces = written(tmp_path / "b", ids, step=step)
    assert True in taken
    assert whole == pieces
    assert (tmp_path / "a" / whole.name).read_bytes() == (tmp_path / "b" / pieces.name).read_bytes()
    index = opened(tmp_path / "b", pieces)
    assert (index.ids() == ids).all()
    assert find(index, ids)[1].tolist() == list(range(300))


def test_sections_in_many_pieces_are_the_same_bytes(tmp_path, monkeypatch):
    """A directory of two chunks, sections of many writes, planes in files."""
    ids, lengths = some_ids(20_000), np.random.default_rng(1).integers(1, 2000, 20_000)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = written(tmp_path / "a", ids, lengths=lengths)
    for name, value in {
        "_CHUNK_ROWS": 100,
        "_CHUNK_BUCKETS": 1024,
        "_WRITE_BYTES": PAGE_BYTES,
        "_LARGE_BYTES": 1,
    }.items():
        monkeypatch.setattr(index_builder, name, value)
    pieces = written(tmp_path / "b", ids, lengths=lengths, step=77, scratch=tmp_path)
    assert (tmp_path / "a" / whole.name).read_bytes() == (tmp_path / "b" / pieces.name).read_bytes()
    index = opened(tmp_path / "b", pieces, is_sized=True)
    assert find(index, ids)[1].tolist() == list(range(20_000))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]  # files without names


@pytest.mark.parametrize("wrong", [[2, 1], [1, 1], [5]])
def test_ids_that_do_not_ascend_are_our_mistake(wrong):
    builder = IndexBuilder(IndexPlan(3, True, False))
    builder.add(np.array([5], np.uint64))
    with pytest.raises(AssertionError, match="ascend"):
        builder.add(np.array(wrong, np.uint64))


@given(st.integers(0, 1 << 34))
@settings(deadline=None)
def test_buckets_hold_8_to_15_ids_on_average(count):
    bits = IndexPlan(count, True, False).bucket_bits
    assert 1 <= bits <= 32
    if count >= 32:
        assert 8 <= count / (1 << bits) < 16


def test_sections_are_pages_apart_and_in_order():
    plan = IndexPlan(5000, True, True)
    sections = list(plan.sections().items())
    assert [name for name, _ in sections] == [
        "groups", "directory", "remainders", "low_bits", "offsets", "lengths", "checksums",
    ]  # fmt: skip
    end = PAGE_BYTES
    for _, (position, size) in sections:
        assert position == end
        end += -(-size // PAGE_BYTES) * PAGE_BYTES
    million = IndexPlan(10**6, True, False)
    assert 6 <= million.file_bytes / 10**6 < 7  # 4 + 16 bits, and 4 bytes a bucket


@pytest.mark.parametrize("is_keyed", [True, False])
def test_places_of_compressed_rows_are_sums_of_lengths(tmp_path, is_keyed):
    lengths = np.random.default_rng(0).integers(1, 2000, 200)
    ids = some_ids(200) if is_keyed else np.empty(0, np.uint64)
    entry = written(tmp_path, ids, lengths=lengths, is_keyed=is_keyed)
    index = opened(tmp_path, entry, is_keyed=is_keyed, is_sized=True)
    starts = PAGE_BYTES + np.concatenate([[0], np.cumsum(lengths + 4)[:-1]])
    for first, count in ((0, 200), (0, 1), (63, 2), (64, 64), (199, 1), (130, 7)):
        got_starts, got_lengths = index.places(first, count)
        assert (got_starts == starts[first : first + count]).all()
        assert (got_lengths == lengths[first : first + count]).all()


def test_every_changed_page_is_found_by_whoever_touches_it(tmp_path):
    ids = some_ids(3000)
    entry = written(tmp_path, ids)
    path = tmp_path / entry.name
    good = path.read_bytes()
    pages = IndexPlan(len(ids), True, False).sections()["checksums"][0] // PAGE_BYTES
    for page in range(1, pages):
        bad = bytearray(good)
        bad[page * PAGE_BYTES + 5] ^= 0x10
        path.write_bytes(bad)
        index = opened(tmp_path, entry)
        assert index.bad_pages() == [page]
        with pytest.raises(DamagedStore, match=f"page {page} "):
            index.verify_all()
        with pytest.raises(DamagedStore, match=f"page {page} "):
            opened(tmp_path, entry, lock=True)
        with pytest.raises(DamagedStore, match=f"page {page} "):
            index.ids()
        done, keys = find(opened(tmp_path, entry), ids)
        if done < len(ids):
            assert keys[done] == -2 - page * native.MAX_LINES
        else:
            assert (keys == np.arange(len(ids))).all()


def test_a_damaged_page_of_places_is_found(tmp_path):
    entry = written(tmp_path, some_ids(100), lengths=np.full(100, 9))
    path = tmp_path / entry.name
    bad = bytearray(path.read_bytes())
    bad[IndexPlan(100, True, True).sections()["lengths"][0]] ^= 1
    path.write_bytes(bad)
    with pytest.raises(DamagedStore, match="fails its checksum"):
        opened(tmp_path, entry, is_sized=True).places(3, 5)


def test_the_table_of_checksums_has_one_of_its_own(tmp_path):
    entry = written(tmp_path, some_ids(10))
    path = tmp_path / entry.name
    for back in (1, 4, 5, 8):
        bad = bytearray(path.read_bytes())
        bad[-back] ^= 1
        path.write_bytes(bad)
        with pytest.raises(DamagedStore, match="checksum"):
            opened(tmp_path, entry)
        bad[-back] ^= 1
        path.write_bytes(bad)
    opened(tmp_path, entry)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, -1])
def test_a_cut_file_is_refused_at_open(tmp_path, size):
    entry = written(tmp_path, some_ids(10))
    path = tmp_path / entry.name
    os.truncate(path, size if size >= 0 else entry.file_bytes - 1)
    with pytest.raises(DamagedStore, match="the manifest says"):
        opened(tmp_path, entry)


def test_every_bit_of_the_header_page_counts(tmp_path):
    entry = written(tmp_path, some_ids(10))
    path = tmp_path / entry.name
    good = path.read_bytes()
    for bit in [*range(8 * INDEX_HEADER.size), *range(8 * INDEX_HEADER.size, 8 * PAGE_BYTES, 997), 8 * PAGE_BYTES - 1]:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            opened(tmp_path, entry)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([field.name for field in INDEX_HEADER.fields[3:]]), st.integers(0, 2**32 - 1))
@example("num_rows", 32)  # fills the same pages as 40
def test_a_header_that_lies_under_a_good_checksum_is_refused(tmp_path_factory, name, value):
    """Nothing is allocated or mapped on its word: sizes are computed again and compared.

    A number of rows that fills the same pages is the layer's to refuse, which has the manifest's to compare with.
    Groups of another size that fill the same pages lead to no rank that is not there.
    """
    directory = tmp_path_factory.mktemp("index")
    entry = written(directory, some_ids(40))
    path = directory / entry.name
    fields = INDEX_HEADER.unpack(path.read_bytes()[: INDEX_HEADER.size])
    if fields[name] == value or name in ("identity", "reserved"):
        return
    crc = forge_header(path, INDEX_HEADER, **{name: value})
    said, true = (IndexPlan(num, True, False, fields["group_bits"]).header_fields() for num in (value, 40))
    if name == "num_rows" and said | {"num_rows": 40} == true:
        assert len(opened(directory, replace(entry, header_crc=crc))) == value
        return
    if name == "group_bits" and 1 <= value <= 32:
        plan = IndexPlan(40, True, False, value)
        if plan.header_fields() | {"group_bits": 0} == {key: fields[key] for key in plan.header_fields()} | {
            "group_bits": 0
        }:
            index, keys = opened(directory, replace(entry, header_crc=crc)), np.empty(40, np.int64)
            done = probe.find(index.line[None], some_ids(40), keys)
            assert (keys[:done] < 40).all()
            return
    with pytest.raises(DamagedStore):
        opened(directory, replace(entry, header_crc=crc))


def test_a_newer_format_is_called_that(tmp_path):
    entry = written(tmp_path, some_ids(10))
    path = tmp_path / entry.name
    data = bytearray(path.read_bytes())
    data[INDEX_HEADER.offset("version")] = 2
    path.write_bytes(data)
    with pytest.raises(UnsupportedVersion, match="format version 2, this release reads 1"):
        opened(tmp_path, entry)


def test_a_link_or_a_directory_is_not_followed(tmp_path):
    entry = written(tmp_path, some_ids(10))
    path = tmp_path / entry.name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStore, match="cannot open"):
        opened(tmp_path, entry)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedStore, match="not a regular file"):
        opened(tmp_path, entry)
    path.rmdir()
    os.mkfifo(path)  # nobody writes to it: opening must not wait
    with pytest.raises(DamagedStore, match="not a regular file"):
        opened(tmp_path, entry)
