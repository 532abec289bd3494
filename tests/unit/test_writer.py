"""What a writer decides: which IDs are free, what one bad frame takes along, which options exist."""

from __future__ import annotations

import os

import numpy as np
import pytest
from helpers import rows_of
from store_cases import build, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore.errors import HashCollision, UsageError
from ngramstore.hashing import checksum
from ngramstore.store.changes import collisions
from ngramstore.store.layers.index import Index

NGRAMS = [(a, b) for a in range(20) for b in range(20)]


@pytest.fixture
def path(tmp_path):
    with ngs.build(tmp_path / "store", dim=64, max_n=2, codec="f32", compression="zstd") as build:
        build.add(NGRAMS, rows_of(range(400), 64))
    return tmp_path / "store"


@pytest.fixture
def sums_as_ids(monkeypatch):
    """IDs that collide whenever the tokens have the same sum."""
    monkeypatch.setattr(collisions, "ngram_ids", lambda tokens, lengths, seed: tokens.sum(axis=1).astype(np.uint64))


@pytest.mark.usefixtures("sums_as_ids")
@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_deletion_frees_the_id_before_it_is_flushed(path, is_flushed):
    with ngs.open(path, mode="rw") as store:
        store.put([(100, 200)], rows_of([1], 64))
        if is_flushed:
            store.flush()
        with pytest.raises(HashCollision):
            store.put([(200, 100)], rows_of([2], 64))
        assert store.delete([(100, 200)]) == 1
        store.put([(200, 100)], rows_of([2], 64))
        with pytest.raises(HashCollision):
            store.put([(100, 200)], rows_of([1], 64))


@pytest.mark.usefixtures("sums_as_ids")
@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_deletion_removes_no_other_ngram_with_its_id(path, is_flushed):
    with ngs.open(path, mode="rw") as store:
        store.put([(100, 200)], rows_of([1], 64))
        if is_flushed:
            store.flush()
        with pytest.raises(HashCollision):
            store.delete([(200, 100)])
        assert store._writer.num_pending == (not is_flushed)
        assert len(store) == 401
        store.flush()
        found = {ngram: int(row[0] // 8) for ngram, row in store.items()}
        assert found[100, 200] == 1
        assert len(found) == 401
        assert store.delete([(100, 200)]) == 1


def test_one_frame_that_lies_does_not_take_down_the_others(path):
    with ngs.open(path) as store:
        layer = store._view.base
        place, length = (int(found[0]) for found in layer.places(7, 1))
        seed = int(layer.seeds(7, 1)[0])
        wanted, _ = store.get(NGRAMS)
        ids = layer.index.ids().tolist()
    frame = bytes(length)  # no zstd frame, under a good checksum
    with open(next(path.glob("base-*.rows")), "r+b") as file:
        os.pwrite(file.fileno(), frame + checksum(frame, seed).to_bytes(4, "little"), place)
    with ngs.open(path, on_damage="missing") as store:
        rows, found = store.get(NGRAMS)
        lost = np.flatnonzero(~found)
        assert len(lost) == 1
        assert int(store._ids([NGRAMS[lost[0]]], "get")[0]) == ids[7]
        np.testing.assert_array_equal(rows[found], wanted[found])


def test_an_option_that_does_not_exist_is_named(path):
    with pytest.raises(TypeError, match="cahce_bytes"):
        ngs.open(path, cahce_bytes=1)


def test_a_numpy_number_is_a_number_of_bytes(path):
    with ngs.open(path, cache_bytes=np.int64(1 << 20)) as store:
        assert store.stats()["cache_budget_bytes"] == 1 << 20


def test_encoded_rows_that_are_no_array_are_refused(path):
    with ngs.open(path, mode="rw") as store, pytest.raises(UsageError, match="encoded rows are"):
        store.put_encoded([(1, 2)], [[1.0] * 256])


def test_compaction_takes_every_replaced_row(tmp_path):
    with ngs.build(tmp_path / "rows", dim=8, addressing="row", codec="f32") as build:
        build.add_rows(rows_of(range(500), 8))
    changed = np.arange(3, 500, 7)
    with ngs.open(tmp_path / "rows", mode="rw") as store:
        store.put(changed, rows_of(changed + 1000, 8))
        store.compact()
        wanted = np.arange(500)
        wanted[changed] += 1000
        np.testing.assert_array_equal(store.rows(np.arange(500)), rows_of(wanted, 8))
        assert store.stats()["overlay_rows"] == 0


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_compaction_writes_the_same_bytes_by_threads(tmp_path, monkeypatch, compression):
    rng = np.random.default_rng(0)
    ngrams = [(i, i + 1) for i in range(9_000)]
    rows = rng.integers(0, 50, (9_000, 512)).astype(np.float32)  # several chunks of 4 MiB
    written = []
    for threads in (1, 3):
        path = tmp_path / f"by {threads}"
        with ngs.build(path, dim=512, max_n=2, codec="f32", compression=compression) as build:
            build.add(ngrams, rows)
        monkeypatch.setattr("ngramstore.store.changes.compaction.default_threads", lambda threads=threads: threads)
        with ngs.open(path, mode="rw") as store:
            store.put(ngrams[::100], rows[1::100])
            store.delete(ngrams[50::100])
            store.compact()
            values, found = store.get(ngrams)
        assert found.sum() == 9_000 - 90
        np.testing.assert_array_equal(values[::100], rows[1::100])
        written.append({file.name: file.read_bytes() for file in path.glob("base-*")})
    assert written[0] == written[1]


@pytest.mark.parametrize("with_deletes", [False, True])
def test_a_lookup_after_each_put_does_not_index_all_that_is_pending(tmp_path, monkeypatch, with_deletes):
    """Keys are indexed again a logarithmic number of times: four times the keys, not sixteen times the work."""
    work: list[int] = []
    real = Index.from_ids.__func__
    monkeypatch.setattr(Index, "from_ids", classmethod(lambda cls, ids: work.append(len(ids)) or real(cls, ids)))

    def indexed(num_puts: int) -> int:
        path = tmp_path / f"store {num_puts}"
        with ngs.build(path, dim=1, max_n=1, codec="f32") as builder:
            builder.add([(0,)], [[0.0]])
        work.clear()
        with ngs.open(path, mode="rw") as store:
            for i in range(num_puts):
                keys = np.arange(1 + 32 * i, 33 + 32 * i, dtype=np.uint32)[:, None]
                store.put(keys, keys.astype(np.float32))
                if with_deletes and i % 3 == 0:
                    store.delete(keys[:4])
                assert store.get(keys[8:])[1].all()
                assert len(store) == 1 + 32 * (i + 1) - 4 * (i // 3 + 1) * with_deletes
        return sum(work)

    few, many = indexed(40), indexed(160)
    assert many < 30 * 32 * 160
    assert many < 7 * few


def test_a_store_without_tokens_is_flushed_again_and_again(tmp_path):
    """Each flush joins the changes before it with new ones."""
    ngrams = some_ngrams(130)
    base, first, second = ngrams[:50], ngrams[50:90], ngrams[90:]
    rows = some_rows(130)
    path = build(tmp_path / "store", base, rows[:50], tokens=False)
    with ngs.open(path, mode="rw") as store:
        for step, (changed, stored) in enumerate([(first, 90), (second, 130)]):
            at = 50 + 40 * step
            store.put(changed, rows[at : at + 40])
            store.flush()
            got, found = store.get(ngrams)
            assert found.tolist() == [i < stored for i in range(130)]
            np.testing.assert_array_equal(got[found], rows[:stored])
            assert len(store) == stored and store.verify() == []
        store.delete(ngrams[48:53])
        store.flush()
        for _ in range(2):
            got, found = store.get(ngrams)
            assert np.flatnonzero(~found).tolist() == list(range(48, 53))
            np.testing.assert_array_equal(got[found], rows[found])
            assert store.verify() == []
            store.compact()


@pytest.mark.usefixtures("sums_as_ids")
def test_two_ngrams_of_one_put_with_one_id_are_refused_and_named(path):
    with ngs.open(path, mode="rw") as store:
        with pytest.raises(HashCollision, match=r"\(100, 200\) and \(200, 100\)"):
            store.put([(100, 200), (300, 1), (200, 100)], rows_of([1, 2, 3], 64))
        assert store._writer.num_pending == 0 and len(store) == 400
