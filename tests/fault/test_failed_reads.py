"""A read that fails once, as one may that a signal interrupts, is done again: good rows are not taken for damaged ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_longcat
from helpers import build_ngrams, rows_of
from store_cases import build_rows, some_rows

import ngramstore as ngs
from ngramstore.errors import DamagedRows
from ngramstore.kernels.native import rows as native

COUNT = 60
NGRAMS = [(i, i % 7) for i in range(COUNT)]


@pytest.fixture
def fail_reads(monkeypatch) -> Callable[[], list[int]]:
    """Once it is called, the kernel fails to read every third row of a batch; it returns how many of each, as they come."""
    read_rows, counts = native.read_rows, []

    def fail_some(table, keys_U, seeds_U, slot_bytes, staging, lengths_U, status_U):
        num_bad, num_packed, num_bytes = read_rows(table, keys_U, seeds_U, slot_bytes, staging, lengths_U, status_U)
        failed = np.flatnonzero(status_U == native.GOOD)[::3]
        num_packed -= np.count_nonzero(lengths_U[failed] < slot_bytes - 4)
        status_U[failed] = native.CUT_SHORT
        staging.reshape(-1, slot_bytes)[failed] = 255
        counts.append(len(failed))
        return num_bad + len(failed), num_packed, num_bytes

    def begin() -> list[int]:
        monkeypatch.setattr(native, "read_rows", fail_some)
        return counts

    return begin


def plain(folder: Path) -> Path:
    build_ngrams(folder / "store", {ngram: stamp for stamp, ngram in enumerate(NGRAMS)}, compression="none")
    return folder / "store"


def compressed(folder: Path) -> Path:
    """Rows as frames, and among them some as they are."""
    rows = rows_of(range(COUNT), 256)
    rows[::4] = some_rows(len(rows[::4]), 256)
    with ngs.build(folder / "store", dim=256, max_n=3, codec="f32", compression="zstd") as builder:
        builder.add(NGRAMS, rows)
    return folder / "store"


def changed(folder: Path) -> Path:
    path = build_rows(folder / "store", some_rows(COUNT))
    with ngs.open(path, mode="rw") as writer:
        writer.put(np.arange(0, COUNT, 5), some_rows(COUNT // 5, seed=1))
    return path


def in_place(folder: Path) -> Path:
    write_longcat(folder / "checkpoint")
    ngs.import_checkpoint(folder / "checkpoint", folder / "store", checksums=True)
    return folder / "store"


def rows_in(store: ngs.Store) -> np.ndarray:
    """By lists, which go the way of all that has to be read."""
    return store.get(NGRAMS)[0] if store.spec.is_ngram else store.rows(list(range(COUNT)))


@pytest.mark.parametrize("make", [plain, compressed, changed, in_place])
def test_rows_that_could_not_be_read_are_read_again(quick_path, fail_reads, make):
    path = make(quick_path)
    with ngs.open(path, trust_external=True) as store:
        wanted = rows_in(store)
    counts = fail_reads()
    for cache_bytes, passes in ((0, 2), (1 << 20, 1)):
        with ngs.open(path, trust_external=True, cache_bytes=cache_bytes) as store:
            for _ in range(2):
                np.testing.assert_array_equal(rows_in(store), wanted)
            assert store.stats()["rows_read"] == COUNT * passes
    assert counts == [COUNT // 3] * 3


@pytest.mark.parametrize("make", [plain, changed])
def test_a_row_that_a_cut_file_does_not_hold_is_damaged_all_the_same(quick_path, fail_reads, make):
    path = make(quick_path)
    with ngs.open(path, cache_bytes=0) as store:
        rows = store._view.base.rows.path
        os.truncate(rows, rows.stat().st_size - 1)
        fail_reads()
        with pytest.raises(DamagedRows, match="the file ends inside it, or cannot be read there") as caught:
            rows_in(store)
        assert len(caught.value.keys) == 1
