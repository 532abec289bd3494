"""The tokens file: n-grams come back by row, damage is found by block."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from damage import forge_header
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.errors import DamagedStore
from ngramstore.layout import PAGE_BYTES, TOKENS_HEADER
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.tokens import TokensFile, TokensWriter

STAMP = FileStamp(bytes(16), 1)


def some(count: int, max_n: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Left-aligned n-grams with zeros behind, tokens of every size of varint."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, max_n + 1, count).astype(np.uint8)
    tokens = rng.integers(0, 1 << 32, (count, max_n)).astype(np.uint32) >> rng.integers(0, 32, (count, max_n)).astype(
        np.uint32
    )
    return np.where(np.arange(max_n) < lengths[:, None], tokens, 0).astype(np.uint32), lengths


def written(directory, tokens, lengths, *, max_n=5, step=10_000) -> FileEntry:
    writer = TokensWriter(directory / "base-000001.tokens", max_n)
    for at in range(0, len(lengths), step):
        writer.write(tokens[at : at + step], lengths[at : at + step])
    return writer.finish(STAMP)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 500])
def test_ngrams_come_back_by_block_and_by_row(tmp_path, count):
    tokens, lengths = some(count)
    file = TokensFile(tmp_path, written(tmp_path, tokens, lengths), STAMP)
    assert (file.num_rows, file.num_blocks) == (count, -(-count // 64))
    if count:
        got_tokens, got_lengths = file.blocks(0, file.num_blocks)
        assert (got_tokens == tokens).all()
        assert (got_lengths == lengths).all()
        last_tokens, _ = file.blocks(file.num_blocks - 1, 1)
        assert (last_tokens == tokens[(file.num_blocks - 1) * 64 :]).all()
    rows = np.random.default_rng(1).integers(0, max(1, count), 20 if count else 0)
    got_tokens, got_lengths = file.rows(rows)
    assert (got_tokens == tokens[rows]).all()
    assert (got_lengths == lengths[rows]).all()


@pytest.mark.parametrize("run_blocks", [1, 3, 1024])
def test_rows_of_many_blocks_come_back_in_the_order_asked_for(tmp_path, monkeypatch, run_blocks):
    monkeypatch.setattr("ngramstore.store.layers.tokens._RUN_BLOCKS", run_blocks)
    tokens, lengths = some(64 * 9 + 7)
    file = TokensFile(tmp_path, written(tmp_path, tokens, lengths), STAMP)
    rows = np.concatenate([np.random.default_rng(2).integers(0, len(lengths), 300), [len(lengths) - 1, 0, 0]])
    got_tokens, got_lengths = file.rows(rows)
    assert (got_tokens == tokens[rows]).all()
    assert (got_lengths == lengths[rows]).all()


def test_a_flipped_bit_in_one_of_many_blocks_names_it_or_its_place(tmp_path):
    tokens, lengths = some(64 * 5, max_n=3)
    entry = written(tmp_path, tokens, lengths, max_n=3)
    path = tmp_path / entry.name
    good = path.read_bytes()
    offsets = np.frombuffer(good[TOKENS_HEADER.unpack(good[: TOKENS_HEADER.size])["offsets_at"] :], "<u8")
    rows = np.array([200, 10, 300])  # blocks 3, 0, 4
    for block in range(5):
        bad = bytearray(good)
        bad[int(offsets[block]) + 5] ^= 4
        path.write_bytes(bad)
        file = TokensFile(tmp_path, entry, STAMP)
        if block in (0, 3, 4):
            with pytest.raises(DamagedStore, match=f"block {block} "):
                file.rows(rows)
        else:
            assert (file.rows(rows)[0] == tokens[rows]).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=16), min_size=1, max_size=9), st.integers(1, 4)
)
def test_any_ngrams_come_back(tmp_path_factory, ngrams, step):
    tokens = np.zeros((len(ngrams), 16), np.uint32)
    for i, ngram in enumerate(ngrams):
        tokens[i, : len(ngram)] = ngram
    lengths = np.array([len(ngram) for ngram in ngrams], np.uint8)
    directory = tmp_path_factory.mktemp("tokens")
    file = TokensFile(directory, written(directory, tokens, lengths, max_n=16, step=step), STAMP)
    got_tokens, got_lengths = file.rows(np.arange(len(ngrams)))
    assert (got_tokens == tokens).all()
    assert (got_lengths == lengths).all()


def test_more_rows_than_one_run_and_odd_chunks_give_the_same_bytes(tmp_path):
    tokens, lengths = some(70_000, max_n=2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = written(tmp_path / "a", tokens, lengths, max_n=2, step=1 << 30)
    pieces = written(tmp_path / "b", tokens, lengths, max_n=2, step=9_999)
    assert (tmp_path / "a" / whole.name).read_bytes() == (tmp_path / "b" / pieces.name).read_bytes()
    got_tokens, got_lengths = TokensFile(tmp_path / "b", pieces, STAMP).rows(np.array([69_999, 65_535, 65_536]))
    assert (got_tokens == tokens[[69_999, 65_535, 65_536]]).all()
    assert (got_lengths == lengths[[69_999, 65_535, 65_536]]).all()


def test_each_flipped_bit_is_found_and_named_by_block(tmp_path):
    tokens, lengths = some(150, max_n=3)
    entry = written(tmp_path, tokens, lengths, max_n=3)
    path = tmp_path / entry.name
    good = path.read_bytes()
    header = TOKENS_HEADER.unpack(good[: TOKENS_HEADER.size])
    offsets = np.frombuffer(good[header["offsets_at"] :], "<u8")
    for bit in range(8 * PAGE_BYTES, 8 * int(offsets[-1]), 13):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        block = int(np.searchsorted(offsets, bit // 8, side="right")) - 1
        with pytest.raises(DamagedStore, match=f"block {block} "):
            TokensFile(tmp_path, entry, STAMP).blocks(0, 3)


def test_a_flipped_bit_in_the_block_table_never_gives_other_ngrams(tmp_path):
    tokens, lengths = some(150, max_n=3)
    entry = written(tmp_path, tokens, lengths, max_n=3)
    path = tmp_path / entry.name
    good = path.read_bytes()
    for bit in range(8 * (len(good) - 32), 8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(DamagedStore):
            TokensFile(tmp_path, entry, STAMP).blocks(0, 3)


def test_a_file_cut_after_it_was_opened_is_an_error(tmp_path):
    tokens, lengths = some(150)
    entry = written(tmp_path, tokens, lengths)
    file = TokensFile(tmp_path, entry, STAMP)
    os.truncate(tmp_path / entry.name, PAGE_BYTES + 10)
    with pytest.raises(DamagedStore, match="too early"):
        file.blocks(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([field.name for field in TOKENS_HEADER.fields[3:]]), st.integers(0, 2**32 - 1))
def test_a_header_that_lies_under_a_good_checksum_is_refused_or_harmless(tmp_path_factory, name, value):
    directory = tmp_path_factory.mktemp("tokens")
    tokens, lengths = some(70)
    entry = written(directory, tokens, lengths)
    path = directory / entry.name
    if isinstance(TOKENS_HEADER.unpack(path.read_bytes()[: TOKENS_HEADER.size])[name], bytes):
        return
    crc = forge_header(path, TOKENS_HEADER, **{name: value})
    try:
        got_tokens, got_lengths = TokensFile(directory, replace(entry, header_crc=crc), STAMP).rows(np.arange(70))
    except DamagedStore:
        return
    assert (got_tokens[:, :5] == tokens).all()
    assert (got_lengths == lengths).all()
