"""The end of an index of compressed rows takes a few megabytes, however many rows there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

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
