"""Packed rows: raw and compressed rows come back, each under its own checksum; headers are not believed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from damage import forge_header
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import build, some_ngrams, some_rows

from ngramstore.codec.compress import RowCompressor, RowDecompressor, saving, train_dictionary, window_log_for
from ngramstore.errors import DamagedRows, DamagedStore, FormatError
from ngramstore.hashing import checksum
from ngramstore.layout import PAGE_BYTES, ROWS_HEADER
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.rows_file import RowsFile
from ngramstore.store.layers.rows_writer import RowsWriter
from ngramstore.store.view import View

STAMP = FileStamp(bytes(16), 1)


def plain_rows(count: int, row_bytes: int = 100) -> np.ndarray:
    """Rows that compress well, but for every fifth."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (count, row_bytes)).astype(np.uint8)
    rows[::5] = rng.integers(0, 256, (len(rows[::5]), row_bytes))
    return rows


def written(directory, rows, seeds, dictionary=None, *, step=10_000, **options) -> tuple[FileEntry, np.ndarray]:
    lengths: list[np.ndarray] = []

    def take(first: int, lengths_M: np.ndarray) -> None:
        assert first == sum(map(len, lengths))
        lengths.append(lengths_M)

    path = directory / "base-000001.rows"
    writer = RowsWriter(path, rows.shape[1], dictionary=dictionary, on_lengths=take, **options)
    for at in range(0, len(rows), step):
        writer.write(rows[at : at + step], seeds[at : at + step])
    return writer.finish(STAMP), np.concatenate([np.empty(0, np.int64), *lengths])


def test_raw_rows_lie_one_after_the_other_with_their_checksums(tmp_path):
    rows, seeds = plain_rows(70), np.arange(70, dtype=np.uint64) ** 2
    entry, lengths = written(tmp_path, rows, seeds)
    data = (tmp_path / entry.name).read_bytes()
    assert lengths.tolist() == [100] * 70
    assert len(data) == entry.file_bytes == PAGE_BYTES + 70 * 104
    for i in range(70):
        stored = data[PAGE_BYTES + 104 * i :][:104]
        assert stored[:100] == rows[i].tobytes()
        assert int.from_bytes(stored[100:], "little") == checksum(stored[:100], int(seeds[i]))


@pytest.mark.parametrize("with_dictionary", [True, False])
def test_compressed_rows_are_frames_where_those_are_smaller(tmp_path, with_dictionary):
    rows, seeds = plain_rows(700), np.arange(700, dtype=np.uint64)
    dictionary = train_dictionary(np.delete(rows, np.s_[::5], axis=0)) if with_dictionary else b""
    assert bool(dictionary) == with_dictionary
    entry, lengths = written(tmp_path, rows, seeds, dictionary)
    file = RowsFile(tmp_path, entry, STAMP, row_bytes=100, is_compressed=True)
    assert file.dictionary == dictionary
    assert (lengths[::5] == 100).all()  # random bytes stay as they are
    assert (np.delete(lengths, np.s_[::5]) < 100).all()
    assert file.data_at % PAGE_BYTES == 0
    at = file.data_at
    data = np.fromfile(tmp_path / entry.name, np.uint8)
    for i, length in enumerate(lengths.tolist()):
        stored = data[at : at + length]
        assert int.from_bytes(data[at + length : at + length + 4].tobytes(), "little") == checksum(stored, i)
        if length < 100:
            stored = file.decompressor.decompress(data, np.array([at]), np.array([length]))[0]
        assert (stored == rows[i]).all()
        at += length + 4
    assert at == entry.file_bytes


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1},
        {"step": 7},
        {"threads": 2},
        {"threads": 2, "chunk_bytes": 1700},
        {"threads": 3, "chunk_bytes": 900, "step": 100},
        {"is_uncached": True},
        {"is_uncached": True, "threads": 2, "chunk_bytes": 5000},
    ],
    ids=str,
)
def test_chunks_and_threads_do_not_change_the_bytes(tmp_path, options):
    rows, seeds = plain_rows(600), np.arange(600, dtype=np.uint64)
    for dictionary in (None, b"", train_dictionary(rows)):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        whole, lengths = written(tmp_path / "a", rows, seeds, dictionary)
        pieces, again = written(tmp_path / "b", rows, seeds, dictionary, **options)
        assert (tmp_path / "a" / whole.name).read_bytes() == (tmp_path / "b" / pieces.name).read_bytes()
        assert lengths.tolist() == again.tolist()
        assert whole == pieces


def test_a_writer_that_gives_up_lets_go_of_its_threads(tmp_path):
    writer = RowsWriter(tmp_path / "rows", 100, dictionary=None, threads=3, chunk_bytes=1000)
    writer.write(plain_rows(5000), np.arange(5000, dtype=np.uint64))
    writer.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ngramstore-pack")]


def test_what_fails_in_a_thread_is_raised(tmp_path, monkeypatch):
    def refuse(self, rows_MB):
        raise MemoryError("none left")

    monkeypatch.setattr(RowCompressor, "compress", refuse)
    writer = RowsWriter(tmp_path / "rows", 100, dictionary=b"", threads=2, chunk_bytes=1000)
    with pytest.raises(MemoryError, match="none left"):
        writer.write(plain_rows(500), np.arange(500, dtype=np.uint64))
    writer.close()


def gaussian_codes(count: int, row_bytes: int) -> np.ndarray:
    """Rows that only an entropy coder makes smaller."""
    return np.random.default_rng(1).normal(0, 20, (count, row_bytes)).astype(np.int8).view(np.uint8)


def test_short_blocks_are_chosen_where_they_cost_little():
    rows = gaussian_codes(2000, 1028)
    dictionary = train_dictionary(rows[::2])
    assert dictionary
    assert window_log_for(rows[1::2], dictionary) == 10
    short, whole = saving(rows[1::2], dictionary, 10), saving(rows[1::2], dictionary)
    assert 0.1 < short < whole
    assert 1 - short <= 1.01 * (1 - whole)
    frames, sizes = RowCompressor(dictionary, 10).compress(rows)
    assert (RowDecompressor(dictionary, 1028).decompress(frames, np.cumsum(sizes) - sizes, sizes) == rows).all()


def test_short_blocks_are_left_where_matches_reach_further():
    rows = gaussian_codes(2000, 3000)
    rows[:, 1500:] = rows[:, :1500]
    assert window_log_for(rows[1::2], train_dictionary(rows[::2])) == 0
    assert window_log_for(gaussian_codes(500, 3000), b"") == 0, "no dictionary, no table to take from it"
    small = gaussian_codes(2000, 1024)
    assert window_log_for(small[1::2], train_dictionary(small[::2])) == 0, "one short block as it is"


def test_a_file_of_no_rows_is_a_header(tmp_path):
    entry, _ = written(tmp_path, np.empty((0, 9), np.uint8), np.empty(0, np.uint64))
    assert entry.file_bytes == PAGE_BYTES
    assert RowsFile(tmp_path, entry, STAMP, row_bytes=9, is_compressed=False).num_rows == 0


def test_every_bit_of_the_dictionary_counts(tmp_path):
    rows = plain_rows(700)
    dictionary = train_dictionary(rows)
    entry, _ = written(tmp_path, rows, np.arange(700, dtype=np.uint64), dictionary)
    path = tmp_path / entry.name
    good = path.read_bytes()
    for bit in range(0, 8 * len(dictionary), 1009):
        bad = bytearray(good)
        bad[PAGE_BYTES + bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DamagedStore, match="dictionary"):
            RowsFile(tmp_path, entry, STAMP, row_bytes=100, is_compressed=True)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([field.name for field in ROWS_HEADER.fields[3:]]), st.integers(0, 2**32 - 1), st.booleans())
def test_a_header_that_lies_under_a_good_checksum_is_refused(tmp_path_factory, name, value, is_compressed):
    directory = tmp_path_factory.mktemp("rows")
    rows = plain_rows(5)
    entry, _ = written(directory, rows, np.arange(5, dtype=np.uint64), b"" if is_compressed else None)
    path = directory / entry.name
    fields = ROWS_HEADER.unpack(path.read_bytes()[: ROWS_HEADER.size])
    if fields[name] == value or name in ("identity", "reserved") or (name == "num_rows" and is_compressed):
        return  # the rows of a compressed file are counted by the index and the manifest
    crc = forge_header(path, ROWS_HEADER, **{name: value})
    with pytest.raises(DamagedStore):
        RowsFile(directory, replace(entry, header_crc=crc), STAMP, row_bytes=100, is_compressed=is_compressed)


def layer_of(path):
    view = View.open(path)
    view.base._view = view  # its files live as long
    return view.base


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_each_flipped_bit_takes_out_its_own_row_alone(tmp_path, compression):
    ngrams, rows = some_ngrams(130), some_rows(130)
    rows[:, 1:] = 0
    path = build(tmp_path / "store", ngrams, rows, compression=compression)
    layer = layer_of(path)
    starts, lengths = layer.places(0, 130)
    whole = layer.read_encoded(0, 130)
    good = layer.rows.path.read_bytes()
    for row in (0, 63, 64, 129):
        for byte in (0, int(lengths[row]) - 1, int(lengths[row]), int(lengths[row]) + 3):
            bad = bytearray(good)
            bad[starts[row] + byte] ^= 1 << row % 8
            layer.rows.path.write_bytes(bad)
            damaged: list[int] = []
            got = layer.read_encoded(0, 130, bad=damaged)
            assert damaged == [row]
            assert not got[row].any()
            assert (np.delete(got, row, axis=0) == np.delete(whole, row, axis=0)).all()
            with pytest.raises(DamagedRows, match=f"first row {row} at byte {starts[row]:,}") as caught:
                layer.read_encoded(0, 130)
            assert caught.value.keys == layer.seeds(row, 1).tolist()


def test_a_row_in_the_wrong_place_fails_like_a_damaged_one(tmp_path):
    path = build(tmp_path / "store", some_ngrams(10), some_rows(10))
    layer = layer_of(path)
    starts, _ = layer.places(0, 2)
    size = int(starts[1] - starts[0])
    data = bytearray(layer.rows.path.read_bytes())
    first, second = data[starts[0] : starts[1]], data[starts[1] : starts[1] + size]
    data[starts[0] : starts[1] + size] = second + first
    layer.rows.path.write_bytes(data)
    damaged: list[int] = []
    layer.read_encoded(0, 10, bad=damaged)
    assert damaged == [0, 1]


@pytest.mark.parametrize("copies", [1, 20])  # a few frames go one by one, many in one call
def test_a_frame_is_not_believed_on_its_size(copies):
    """What a frame says of its size would be allocated; two wrong sizes with the right sum would shift rows."""
    compressor = zstandard.ZstdCompressor()
    frames = [compressor.compress(b"a" * 500), compressor.compress(b"b" * 1500)] * copies
    huge = [b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"] * copies
    unsaid = [zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * size) for size in (500, 1500)] * copies
    for some in (frames, huge, unsaid):
        with pytest.raises(FormatError):
            decompressed(some, 1000)


@pytest.mark.parametrize("copies", [1, 20])
def test_a_frame_need_not_tell_its_size(copies):
    """format.md does not ask it of other writers; some rows and many are read alike."""
    silent = zstandard.ZstdCompressor(write_content_size=False)
    assert (decompressed([silent.compress(b"a" * 1000)] * copies, 1000) == ord("a")).all()
    for wrong in (999, 1001, 0):
        with pytest.raises(FormatError):
            decompressed([silent.compress(b"a" * wrong)] * copies, 1000)
    with pytest.raises(FormatError):
        decompressed([silent.compress(b"a" * 1000)[:-1]] * copies, 1000)


def decompressed(frames: list[bytes], row_bytes: int) -> np.ndarray:
    sizes = np.array([len(frame) for frame in frames])
    data = np.frombuffer(b"".join(frames), np.uint8)
    return RowDecompressor(b"", row_bytes).decompress(data, np.cumsum(sizes) - sizes, sizes)


def test_threads_decompress_side_by_side():
    rows = plain_rows(100, 30_000)
    frames, sizes = RowCompressor(b"").compress(rows)
    starts, shared = np.cumsum(sizes) - sizes, RowDecompressor(b"", 30_000)

    def work(seed: int) -> bool:
        rng, good = np.random.default_rng(seed), True
        for _ in range(150):
            some = rng.integers(0, 100, rng.integers(1, 16))  # few: one context, call by call
            good &= bool((shared.decompress(frames, starts[some], sizes[some]) == rows[some]).all())
        return good

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
