"""Positions are numbered with one table for many shards, and no table is larger than the kernels can address."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from mining_cases import mined_bytes, shard_of

from ngramstore.kernels.native import mining as native
from ngramstore.mine import Shard, TokenShards, count

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
FITS = 1 << 24


@pytest.fixture
def filled(monkeypatch) -> list[int]:
    """How many keys each table was filled with."""
    sizes, real = [], native.fill_ids

    def counted(keys_N, first_id, table_C2):
        sizes.append(len(keys_N))
        real(keys_N, first_id, table_C2)

    monkeypatch.setattr(native, "fill_ids", counted)
    return sizes


def length_by_length(monkeypatch) -> None:
    monkeypatch.setattr("ngramstore.mine.miner.is_in_reach", lambda shards, memory_bytes: False)


@pytest.mark.parametrize("max_n", [3, 4])
def test_a_table_is_filled_once_a_length_for_all_shards(tmp_path, monkeypatch, filled, max_n):
    corpus = TokenShards([shard_of(tmp_path / f"{i}.bin", 2000, i) for i in range(8)], "eight shards")
    wanted = mined_bytes(corpus, tmp_path, max_n=max_n, memory_bytes=FITS)
    assert filled == []  # all lengths at once: nothing is numbered
    length_by_length(monkeypatch)
    assert mined_bytes(corpus, tmp_path, max_n=max_n, memory_bytes=FITS) == wanted
    assert len(filled) == max_n - 2  # nothing is counted after the last length
    assert min(filled) > 100


def test_numbering_in_parts_keeps_the_files_of_some_shards_open_at_a_time(tmp_path, monkeypatch, filled):
    corpus = TokenShards([shard_of(tmp_path / f"{i}.bin", 100, i) for i in range(300)], "many shards")
    wanted = mined_bytes(corpus, tmp_path, max_n=3, held_out=0.0, memory_bytes=FITS)
    length_by_length(monkeypatch)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))  # what macOS allows
    try:
        assert mined_bytes(corpus, tmp_path, max_n=3, held_out=0.0, memory_bytes=1 << 14) == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    num_groups = 5  # of at most 64 shards
    assert len(filled) > num_groups and len(filled) % num_groups == 0
    assert sum(filled) % num_groups == 0


def test_held_out_spans_are_masked_wherever_blocks_end(tmp_path):
    """Tokens are read 2**20 at a time; one span lies across that place, one begins there."""
    block = 1 << 20
    tokens = np.arange(2 * block + 300, dtype=np.uint32).astype("<u2")
    tokens.tofile(tmp_path / "t.bin")
    shard = Shard(tmp_path / "t.bin", "<u2", len(tokens), 1, starts_array=np.array([0, len(tokens)], np.uint64))
    spans = np.array([[5, 9], [block - 100, block + 50], [2 * block, 2 * block + 200]])
    count.mask_shard(shard, spans, tmp_path / "numbers")
    wanted = tokens.astype(np.uint32)
    for begin, end in spans.tolist():
        wanted[begin:end] = count.NO_ID
    assert np.array_equal(np.fromfile(tmp_path / "numbers", "<u4"), wanted)


def test_no_table_has_more_slots_than_the_kernels_can_address():
    """They multiply the number of slots by a number of 32 bits, in 64."""
    for slots in (count._most_slots(1 << 40), 2 * count._most_numbers(1 << 40)):
        assert slots * (2**32 - 1) < 2**64
        assert slots == 2**32
    assert count._most_slots(34 << 20) == count._most_numbers(96 << 20) == 1 << 20
