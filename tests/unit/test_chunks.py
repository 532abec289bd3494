"""A store whose every stream is cut in tens of rows answers as a dict does, at every step from build to compaction."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers import NGram, assert_verifies, build_ngrams, contents, published, rows_of, stamps_of
from store_cases import some_ngrams

import ngramstore as ngs
from ngramstore.serve import resident
from ngramstore.store.changes import compaction
from ngramstore.store.journal.journal import Journal
from ngramstore.store.layers import index_builder, layer, tokens

DIM = 16
NGRAMS = some_ngrams(900, vocabulary=12)
STORED, ABSENT = NGRAMS[:600], NGRAMS[600:]


@pytest.fixture
def small_chunks(monkeypatch):
    """Index 24 rows, layers and resident rows 64, tokens a block or two, scans of the journal some ten changes."""
    monkeypatch.setattr(index_builder, "_CHUNK_ROWS", 24)
    monkeypatch.setattr(index_builder, "_LARGE_BYTES", 1)
    monkeypatch.setattr(layer, "_READ_BYTES", 1)
    monkeypatch.setattr(resident, "STAGING_BYTES", 1)
    monkeypatch.setattr(compaction, "_TOKEN_BLOCKS", 1)
    monkeypatch.setattr(tokens, "_RUN_BLOCKS", 2)
    assert Journal.scan.__defaults__ == (64 << 20,)
    monkeypatch.setattr(Journal.scan, "__defaults__", (1000,))


def is_closed(model: dict[NGram, int]) -> bool:
    """Whether every n-gram longer than the shortest has its ending."""
    shortest = min(map(len, model), default=0)
    return all(ngram[1:] in model for ngram in model if len(ngram) > shortest)


def check_answers(store: ngs.Store, model: dict[NGram, int]) -> None:
    rows, found = store.get(NGRAMS)
    assert found.tolist() == [ngram in model for ngram in NGRAMS]
    assert stamps_of(rows[found]) == [model[ngram] for ngram in NGRAMS if ngram in model]
    assert len(store) == len(model)


def check_published(path, model: dict[NGram, int]) -> None:
    assert published(path) == model
    for options in ({}, {"resident": True}, {"resident": True, "lock_index": True}):
        with ngs.open(path, **options) as store:
            check_answers(store, model)
            assert contents(store) == model
            stats = store.stats()
            counts = {n: sum(len(ngram) == n for ngram in model) for n in (1, 2, 3)}
            assert stats["ngrams_by_length"] == {n: count for n, count in counts.items() if count}
            if stats["overlay_rows"] == stats["tombstones"] == 0:
                assert stats["suffix_closed"] == is_closed(model)
    assert_verifies(path)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("seed", range(3))
def test_a_store_of_small_chunks_is_a_dict(quick_path, compression, seed):
    rng, path = random.Random(seed), quick_path / "store"
    model = {ngram: stamp for stamp, ngram in enumerate(STORED)}
    build_ngrams(path, model, dim=DIM, compression=compression)
    check_published(path, model)
    stamp = 1000
    with ngs.open(path, mode="rw") as store:
        for turn in range(5):
            for _ in range(2):
                put = rng.sample(NGRAMS, 150)
                stamps = list(range(stamp, stamp + len(put)))
                stamp += len(put)
                store.put(put, rows_of(stamps, DIM))
                model.update(zip(put, stamps, strict=True))
                gone = rng.sample(NGRAMS, 60)
                assert store.delete(gone) == sum(ngram in model for ngram in gone)
                for ngram in gone:
                    model.pop(ngram, None)
                check_answers(store, model)
            store.compact() if turn % 2 else store.flush()
            check_answers(store, model)
            check_published(path, model)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("gap", [None, "first", "last"])
def test_compaction_asks_every_block_of_tokens_for_its_endings(quick_path, gap):
    """Closed; or one ending is missing, of an n-gram in the first or in the last block."""
    path = quick_path / "store"
    model = dict.fromkeys({ngram[i:] for ngram in NGRAMS for i in range(len(ngram))}, 1)
    build_ngrams(path, model)
    with ngs.open(path, mode="rw") as store:
        listed = [ngram for ngram, _ in store.items()]
        ordered = listed if gap == "first" else listed[::-1]
        victim = next(ngram for ngram in ordered if len(ngram) == 3)
        store.delete([victim[1:]] if gap else [])
        store.put([(0,)], rows_of([5], 4))
        store.compact()
        assert store.stats()["suffix_closed"] == (gap is None)


@pytest.mark.usefixtures("small_chunks")
def test_one_ending_deleted_among_the_first_changes_is_not_forgotten_by_the_others(quick_path):
    path = quick_path / "store"
    model = dict.fromkeys({ngram[i:] for ngram in NGRAMS for i in range(len(ngram))}, 1)
    build_ngrams(path, model)
    with ngs.open(path, mode="rw") as store:
        endings = {ngram[1:] for ngram in model}
        victim = next(ngram for ngram, _ in store.items() if ngram in endings)  # in the order in which changes are read
        del model[victim]
        store.delete([victim])
        store.put(list(model), rows_of([2] * len(model), 4))
        store.flush()
        assert not store.stats()["suffix_closed"]


@pytest.mark.usefixtures("small_chunks")
def test_a_row_store_of_small_chunks_is_a_list(quick_path):
    path, rng = quick_path / "store", np.random.default_rng(0)
    wanted = np.arange(700)
    with ngs.build(path, dim=DIM, addressing="row", codec="f32", compression="zstd") as builder:
        builder.add_rows(rows_of(wanted, DIM))
    with ngs.open(path, mode="rw") as store:
        for turn in range(4):
            changed = rng.choice(700, 200, replace=False)
            wanted[changed] = 1000 * (turn + 1) + changed
            store.put(changed, rows_of(wanted[changed], DIM))
            store.compact() if turn % 2 else store.flush()
            assert stamps_of(store.rows(np.arange(700))) == wanted.tolist()
            for options in ({"cache_bytes": 0}, {"resident": True}):
                with ngs.open(path, **options) as reader:
                    assert stamps_of(reader.rows(np.arange(700))) == wanted.tolist()
                    assert stamps_of(np.stack([row for _, row in reader.items()])) == wanted.tolist()
    assert_verifies(path)
