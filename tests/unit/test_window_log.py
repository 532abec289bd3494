"""Whatever writes compressed rows anew tries short blocks, as builds do: a third of the time of zstd's own choice."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import flip

import ngramstore as ngs
from ngramstore.codec.compress import with_window_log
from ngramstore.store.layers import rows_writer
from ngramstore.store.layers.layer import Batch
from ngramstore.store.repair.check import verify
from ngramstore.store.repair.repair import repair

NUM_ROWS, DIM = 1500, 1024
NGRAMS = np.stack([np.arange(NUM_ROWS), np.arange(NUM_ROWS) % 7], axis=1).astype(np.uint32)
ROWS = (
    np.random.default_rng(1).normal(0, 1, (NUM_ROWS, DIM)).astype(np.float32)
)  # only entropy coding makes them smaller


@pytest.fixture
def chosen(monkeypatch):
    """The windows of the compressors that are made, each once."""
    windows: set[int] = set()
    real = rows_writer.RowCompressor

    def recorded(dictionary, window_log=0):
        windows.add(window_log)
        return real(dictionary, window_log)

    monkeypatch.setattr(rows_writer, "RowCompressor", recorded)
    return windows


@pytest.fixture(params=["ngram", "row"])
def store(tmp_path, request, chosen):
    path, is_ngram = tmp_path / "store", request.param == "ngram"
    options = {"max_n": 2} if is_ngram else {"addressing": "row"}
    with ngs.build(path, dim=DIM, codec="int8", compression="zstd", **options) as builder:
        builder.add(NGRAMS, ROWS) if is_ngram else builder.add_rows(ROWS)
    assert chosen == {10}
    chosen.clear()
    return path


def test_a_compaction_compresses_as_the_build_did(store, chosen):
    with ngs.open(store, mode="rw") as opened:
        opened.put(NGRAMS[:3] if opened.spec.is_ngram else np.arange(3), ROWS[3:6])
        opened.flush()
        chosen.clear()
        opened.compact()
    assert chosen == {10}
    assert verify(store) == []
    with ngs.open(store) as opened:
        want = opened.spec.codec.decode(opened.spec.codec.encode(np.concatenate([ROWS[3:6], ROWS[3:]])))
        got = opened.get(NGRAMS)[0] if opened.spec.is_ngram else opened.rows(np.arange(NUM_ROWS))
        np.testing.assert_array_equal(got, want)


def test_a_repair_compresses_as_the_build_did(store, chosen, tmp_path):
    rows = next(store.glob("*.rows"))
    flip(rows, rows.stat().st_size - 100)
    report = repair(store, tmp_path / "repaired")
    assert chosen == {10}
    assert len(report.lost) == 1
    assert verify(tmp_path / "repaired") == []


def batch_of(first: int, count: int) -> Batch:
    rows = np.arange(first, first + count, dtype=np.uint64)
    return Batch(
        rows, rows.view(np.uint8).reshape(count, 8), np.zeros((count, 0), np.uint32), np.zeros(count, np.uint8)
    )


@pytest.mark.parametrize("sizes", [[], [1, 1, 1], [1, 5000, 3], [3000, 3000]])
@pytest.mark.parametrize("dictionary", [None, b"", b"any"])
def test_the_stream_stays_whole(sizes, dictionary):
    batches = [batch_of(100 * number, size) for number, size in enumerate(sizes)]
    window_log, same = with_window_log(iter(batches), dictionary)
    assert window_log == 0
    assert list(map(id, same)) == list(map(id, batches))
