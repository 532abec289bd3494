"""The end of an index of compressed rows takes a few megabytes, however many rows there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import ngramstore as ngs
from ngramstore import files
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES
from ngramstore.store.layers import index_builder
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan

STAMP = FileStamp(bytes(16), 1)


def test_stored_sizes_are_summed_a_chunk_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(index_builder, "_LARGE_BYTES", 0)  # planes in files: what is left is what the sums take
    plan = IndexPlan(6 << 20, is_keyed=False, is_sized=True)
    builder = IndexBuilder(plan, scratch=tmp_path)
    tracemalloc.start()
    try:
        builder.write(tmp_path / "base-000001.index", STAMP)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20  # the sums of all rows at once would take 48 MiB


@pytest.mark.parametrize("count", [1, 64, 65, 32768, 32769, 98304, 100_000])
def test_blocks_begin_behind_all_rows_before_them_whatever_the_chunk(tmp_path, monkeypatch, count):
    monkeypatch.setattr(index_builder, "_SIZED_ROWS", 1 << 15)
    lengths = np.random.default_rng(count).integers(1, 1 << 16, count).astype(np.uint16)
    plan = IndexPlan(count, is_keyed=False, is_sized=True)
    builder = IndexBuilder(plan)
    builder.set_lengths(0, lengths)
    builder.write(tmp_path / "index", STAMP, data_at=12345)
    at, size = plan.sections()["offsets"]
    places = np.frombuffer((tmp_path / "index").read_bytes()[at : at + size], "<u8")
    ends = np.cumsum(lengths.astype(np.int64) + CHECKSUM_BYTES) + 12345
    assert places.tolist() == [12345, *ends[BLOCK_ROWS - 1 : -1 : BLOCK_ROWS].tolist()]


def test_an_index_read_into_memory_takes_as_much_as_it_is_long(tmp_path, monkeypatch):
    """One read of the system gives 2 GiB at most; pieces were kept beside the whole."""
    monkeypatch.setattr(files, "_READ_BYTES", 1 << 16)
    with ngs.build(tmp_path / "store", dim=1, max_n=1) as build:
        build.add(np.arange(300_000, dtype=np.uint32)[:, None], np.ones((300_000, 1), np.float32))
    with ngs.open(tmp_path / "store", lock_index=True, cache_bytes=0) as store:
        store.contains([(5,)])  # compiles
    size = (tmp_path / "store" / "base-000001.index").stat().st_size
    tracemalloc.start()
    with ngs.open(tmp_path / "store", lock_index=True, cache_bytes=0) as store:
        assert store.contains([(5,), (299_999,), (300_000,)]).tolist() == [True, True, False]
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.3 * size
