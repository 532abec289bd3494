"""Bulk builds: the same bytes for any order, memory and threads; refusals before anything is written; nobody's files lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import build, build_rows, files_of, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import (
    DiskFull,
    DuplicateKey,
    HashCollision,
    IncompleteStore,
    StoreClosed,
    UsageError,
    WriterLocked,
)
from ngramstore.hashing import ngram_ids
from ngramstore.store.building import build as build_module
from ngramstore.store.building import packing, runs
from ngramstore.store.building.build import Builder
from ngramstore.store.layers import rows_writer
from ngramstore.store.layers.manifest import read_manifest
from ngramstore.writer_lock import WriterLock


def contents(path) -> dict:
    """N-gram -> row, of a whole store."""
    with ngs.open(path) as store:
        return {ngram: row.tolist() for ngram, row in store.items()}


# The same bytes


@pytest.mark.parametrize("options", [{}, {"codec": "int8"}, {"compression": "zstd"}, {"tokens": False}], ids=str)
def test_any_order_of_adding_gives_the_same_bytes(tmp_path, options):
    ngrams, rows = some_ngrams(300), some_rows(300)
    wanted = files_of(build(tmp_path / "sorted", ngrams, rows, **options))
    for seed, step in ((1, 300), (2, 7), (3, 64)):
        order = np.random.default_rng(seed).permutation(300)
        shuffled = build(tmp_path / f"{seed}", [ngrams[i] for i in order], rows[order], step=step, **options)
        assert files_of(shuffled) == wanted


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 40_000])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"duplicates": "last"}], ids=str)
def test_a_memory_budget_that_spills_gives_the_same_bytes(tmp_path, memory_bytes, options):
    ngrams, rows = some_ngrams(700), some_rows(700)
    rows[:, 2:] = 1  # so that frames are smaller than rows
    if "duplicates" in options:
        ngrams[500:600] = ngrams[:100]
    wanted = files_of(build(tmp_path / "memory", ngrams, rows, **options))
    spilled = tmp_path / "spilled"
    with Builder(
        spilled, dim=6, max_n=3, codec="f32", memory_bytes=memory_bytes, threads=1, **{"compression": "none", **options}
    ) as b:
        for at in range(0, 700, 90):
            b.add(ngrams[at : at + 90], rows[at : at + 90])
        assert os.listdir(spilled / "runs")
    assert files_of(spilled) == wanted
    assert "runs" not in os.listdir(spilled)


def test_a_run_written_in_many_pieces_gives_the_same_bytes(tmp_path, monkeypatch):
    ngrams, rows = some_ngrams(700), some_rows(700)
    wanted = files_of(build(tmp_path / "memory", ngrams, rows))
    monkeypatch.setattr(runs, "_SPILL_BYTES", 100)  # four rows; a run has about 160
    assert files_of(build(tmp_path / "spilled", ngrams, rows, memory_bytes=20_000, step=90)) == wanted


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_one_thread_or_two_give_the_same_bytes(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(packing, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(packing, "_MIN_CHUNK_BYTES", 1)
    pools, real = [], rows_writer.ThreadPoolExecutor
    monkeypatch.setattr(rows_writer, "ThreadPoolExecutor", lambda *given: pools.append(given[0]) or real(*given))
    ngrams, rows = some_ngrams(900), np.round(some_rows(900))
    wanted = files_of(build(tmp_path / "one", ngrams, rows, compression=compression, threads=1))
    assert files_of(build(tmp_path / "two", ngrams, rows, compression=compression, threads=2)) == wanted
    assert pools == [2]


def test_floats_encoded_in_threads_give_the_same_bytes(tmp_path, monkeypatch):
    ngrams, rows = some_ngrams(500), some_rows(500)
    wanted = files_of(build(tmp_path / "one", ngrams, rows, codec="int8", threads=1))
    monkeypatch.setattr(build_module, "_ENCODE_BYTES", 0)
    for threads in (2, 3):
        assert files_of(build(tmp_path / f"{threads}", ngrams, rows, codec="int8", threads=threads)) == wanted
    numbered = files_of(build_rows(tmp_path / "rows", rows, codec="int8", threads=3))
    assert files_of(build_rows(tmp_path / "rows one", rows, codec="int8", threads=1)) == numbered


@pytest.mark.parametrize("threads", [1, 3])
def test_of_several_bad_rows_the_first_is_named(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(build_module, "_ENCODE_BYTES", 0)
    rows = some_rows(90)
    rows[[17, 50, 80], 2] = np.nan
    builder = Builder(tmp_path / "store", dim=6, max_n=3, threads=threads)
    builder.add(some_ngrams(30), some_rows(30))
    with pytest.raises(UsageError, match="row 47, column 2"):
        builder.add(some_ngrams(90), rows)
    builder.abort()


def test_the_three_forms_of_ngrams_give_the_same_bytes(tmp_path):
    ngrams, rows = some_ngrams(100), some_rows(100)
    wanted = files_of(build(tmp_path / "list", ngrams, rows))
    wide = np.full((100, 3), 77, np.uint32)  # what stands behind an n-gram does not count
    for i, ngram in enumerate(ngrams):
        wide[i, : len(ngram)] = ngram
    lengths = np.array([len(ngram) for ngram in ngrams])
    with Builder(tmp_path / "pair", dim=6, max_n=3, codec="f32", compression="none") as builder:
        builder.add((wide, lengths), rows)
    assert files_of(tmp_path / "pair") == wanted


def test_a_wider_array_of_ngrams_gives_the_same_bytes(tmp_path):
    ngrams, rows = some_ngrams(40), some_rows(40)
    wide = np.zeros((40, 7), np.int64)
    for i, ngram in enumerate(ngrams):
        wide[i, : len(ngram)] = ngram
    with Builder(tmp_path / "wide", dim=6, max_n=3, codec="f32", compression="none") as builder:
        builder.add((wide, np.array([len(ngram) for ngram in ngrams])), rows)
    assert files_of(tmp_path / "wide") == files_of(build(tmp_path / "list", ngrams, rows))


def test_rows_already_encoded_give_the_same_bytes(tmp_path):
    ngrams, rows = some_ngrams(50), some_rows(50)
    wanted = files_of(build(tmp_path / "plain", ngrams, rows, codec="int8"))
    with Builder(tmp_path / "encoded", dim=6, max_n=3, codec="int8", compression="none") as builder:
        builder.add_encoded(ngrams, builder.spec.codec.encode(rows))
    assert files_of(tmp_path / "encoded") == wanted


def test_the_identity_stands_for_what_the_store_holds(tmp_path):
    ngrams, rows = some_ngrams(20), some_rows(20)
    changed = rows.copy()
    changed[7, 3] += 1
    identities = [
        read_manifest(build(tmp_path / str(i), ngrams, these, **options)).identity
        for i, (these, options) in enumerate(
            [(rows, {}), (changed, {}), (rows, {"seed": 1}), (rows, {"metadata": {"a": 1}}), (rows, {"max_n": 4})]
        )
    ]
    assert len(set(identities)) == 5


# What it holds


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=30), st.integers(1, 5)
)
def test_of_equal_ngrams_the_last_one_added_stays(tmp_path_factory, ngrams, step):
    path = tmp_path_factory.mktemp("build") / "store"
    rows = some_rows(len(ngrams))
    build(path, ngrams, rows, step=step, duplicates="last", memory_bytes=1)
    assert contents(path) == {ngram: row.tolist() for ngram, row in zip(ngrams, rows, strict=True)}


@pytest.mark.parametrize("batch_rows", [1, 2])
def test_of_equal_ngrams_in_different_batches_the_last_stays_too(tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr(runs, "BATCH_ROWS", batch_rows)
    ngrams = some_ngrams(40) * 3
    rows = some_rows(120)
    build(tmp_path / "store", ngrams, rows, duplicates="last")
    assert contents(tmp_path / "store") == {ngram: row.tolist() for ngram, row in zip(ngrams, rows, strict=True)}


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_a_duplicate_is_refused_by_name(tmp_path, memory_bytes):
    ngrams = some_ngrams(200)
    ngrams[150] = ngrams[3]
    with pytest.raises(DuplicateKey, match=str(ngrams[3]).replace("(", r"\(").replace(")", r"\)")):
        build(tmp_path / "store", ngrams, some_rows(200), memory_bytes=memory_bytes, step=60)
    assert not (tmp_path / "store").exists()


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=1, max_size=25),
    st.booleans(),
    st.booleans(),
)
def test_suffix_closed_says_what_is_true(tmp_path_factory, chosen, close, spill):
    if close:
        shortest = min(map(len, chosen))
        chosen = chosen | {n[i:] for n in chosen for i in range(len(n)) if len(n) - i >= shortest}
    path = tmp_path_factory.mktemp("build") / "store"
    ngrams = sorted(chosen)
    build(path, ngrams, some_rows(len(ngrams)), memory_bytes=1 if spill else 1 << 20)
    shortest = min(map(len, ngrams))
    closed = all(ngram[1:] in chosen for ngram in ngrams if len(ngram) > shortest)
    manifest = read_manifest(path)
    assert manifest.suffix_closed == closed
    assert manifest.length_counts == tuple(sum(len(ngram) == n for ngram in ngrams) for n in range(4))
    assert manifest.num_rows == len(ngrams)


def colliding(tokens, lengths=None, seed=0):
    """IDs by which every n-gram that begins with 7 is the same."""
    ids = ngram_ids(tokens, lengths, seed)
    return np.where(tokens[:, 0] == 7, np.uint64(42), ids)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
@pytest.mark.parametrize("duplicates", ["error", "last"])
def test_two_ngrams_with_one_id_are_named_with_the_seed_to_try(tmp_path, monkeypatch, memory_bytes, duplicates):
    monkeypatch.setattr(build_module, "ngram_ids", colliding)
    ngrams = [(i,) for i in range(100) if i != 7] + [(7, 1), (7, 2)]
    with pytest.raises(HashCollision) as caught:
        build(tmp_path / "store", ngrams, some_rows(101), seed=5, memory_bytes=memory_bytes, duplicates=duplicates)
    assert "(7, 1)" in str(caught.value)
    assert "(7, 2)" in str(caught.value)
    assert "seed=6" in caught.value.hint
    assert not (tmp_path / "store").exists()


# By number


def test_rows_by_number_in_any_order_give_the_same_bytes(tmp_path):
    rows = some_rows(150)
    wanted = files_of(build_rows(tmp_path / "inorder", rows))
    order = np.random.default_rng(0).permutation(150)
    with Builder(tmp_path / "shuffled", dim=6, codec="f32", compression="none", addressing="row", memory_bytes=1) as b:
        for at in range(0, 150, 40):
            b.add_rows(rows[order[at : at + 40]], order[at : at + 40])
    assert files_of(tmp_path / "shuffled") == wanted
    with ngs.open(tmp_path / "shuffled") as store:
        assert (store.rows(np.arange(150)) == rows).all()


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ([0, 1, 3], UsageError, "row 2 was never added"),
        ([1, 2, 3], UsageError, "row 0 was never added"),
        ([0, 1, 1], DuplicateKey, "row 1 was added twice"),
        ([0, -1, 1], UsageError, "integers from 0 up"),
        ([0.0, 1.0, 2.0], UsageError, "must be integers"),
        ([0, 1], UsageError, "must be 3 integers"),
    ],
)
@pytest.mark.parametrize("copies", [1, 200])
def test_row_numbers_are_all_of_0_to_n_once(tmp_path, numbers, error, says, copies):
    builder = Builder(tmp_path / "store", dim=6, codec="f32", addressing="row", memory_bytes=1)

    def fill() -> None:
        with builder:
            if copies > 1:
                builder.add_rows(some_rows(copies), np.arange(copies) + 10)
            builder.add_rows(some_rows(3), numbers)

    with pytest.raises(error, match=says):
        fill()
    assert not (tmp_path / "store").exists()


def test_the_last_of_equal_numbers_stays_where_that_is_asked_for(tmp_path):
    rows = some_rows(5)
    with Builder(tmp_path / "store", dim=6, codec="f32", addressing="row", duplicates="last") as builder:
        builder.add_rows(rows[:3], [0, 1, 2])
        builder.add_rows(rows[3:], [2, 0])
    with ngs.open(tmp_path / "store") as store:
        assert (store.rows([0, 1, 2]) == rows[[4, 1, 3]]).all()


# Wrong use


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 2.5}, "dim"),
        ({"max_n": None}, "max_n is missing"),
        ({"max_n": 0}, "max_n must be 1 to 16"),
        ({"max_n": 17}, "max_n must be 1 to 16"),
        ({"addressing": "row"}, "max_n=3 has no meaning"),
        ({"addressing": "row", "max_n": None, "tokens": False}, "tokens=False has no meaning"),
        ({"addressing": "row", "max_n": None, "seed": 7}, "seed=7 has no meaning"),
        ({"addressing": "hash"}, "addressing is 'hash'"),
        ({"codec": "int7"}, "unknown codec"),
        ({"compression": "lz4"}, "compression is 'lz4'"),
        ({"duplicates": "first"}, "duplicates is 'first'"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"metadata": {"a": b"bytes"}}, "metadata"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"metadata": {"a": "x" * (1 << 19)}}, "metadata takes"),
        ({"memory_bytes": 1e8}, r"memory_bytes is 100000000\.0"),
        ({"memory_bytes": "1GiB"}, "memory_bytes is '1GiB'"),
        ({"memory_bytes": True}, "memory_bytes is True"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"memory_bytes": 1 << 62}, "memory_bytes is 4611686018427387904"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": "2"}, "threads is '2'"),
        ({"threads": 257}, "threads is 257"),
        ({"codec": "f32", "dim": 262_145}, "a row takes 1,048,580 bytes"),
        ({"codec": "f32", "dim": 20_000, "compression": "zstd"}, "cannot be compressed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_options_are_refused_before_a_directory_is_made(tmp_path, options, says):
    with pytest.raises(UsageError, match=says):
        Builder(tmp_path / "store", **{"dim": 6, "max_n": 3, **options})
    assert not (tmp_path / "store").exists()


def test_memory_that_cannot_be_had_is_refused_before_a_directory_is_made(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("ngramstore.store.building.runs.HeldRows.__init__", no_memory)
    with pytest.raises(UsageError, match="memory_bytes is 1,000: Unable to allocate"):
        Builder(tmp_path / "store", dim=6, max_n=3, memory_bytes=1000)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_build_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch, operation):
    def fail(seen, path):
        if seen == operation and path.name.startswith("BUILDING"):
            raise OSError(errno.ENOSPC, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        with pytest.raises(DiskFull):
            Builder(tmp_path / "store", dim=6, max_n=3)
    assert not (tmp_path / "store").exists()


def test_numpy_numbers_are_numbers_of_a_build(tmp_path):
    path = tmp_path / "store"
    with Builder(
        path, dim=6, max_n=1, codec={"name": "e4m3", "block": np.int64(2)}, memory_bytes=np.int64(1), threads=np.int8(2)
    ) as builder:
        builder.add([(1,)], some_rows(1))
    assert read_manifest(path).spec.codec.spec() == {"name": "e4m3", "block": 2}


def test_a_codec_that_a_manifest_cannot_hold_is_refused_before_a_directory_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("ngramstore.codec.int4.Int4.spec", lambda codec: {"name": "int4", "group": np.int64(32)})
    with pytest.raises(UsageError, match=r"int4.*JSON cannot hold"):
        Builder(tmp_path / "store", dim=6, max_n=1, codec="int4")
    assert not (tmp_path / "store").exists()


def test_encoded_rows_may_be_a_list_and_are_refused_as_an_array_would_be(tmp_path):
    with Builder(tmp_path / "store", dim=6, max_n=3, codec="int8") as builder:
        with pytest.raises(UsageError, match=r"encoded rows are int64 \(1, 10\)"):
            builder.add_encoded([(1,)], [[0] * 10])
        builder.add_encoded([(1,)], [np.zeros(10, np.uint8)])
    with Builder(tmp_path / "rows", dim=6, addressing="row", codec="int8") as builder:
        for wrong in ([[0] * 10], 5, None):
            with pytest.raises(UsageError, match="encoded rows are"):
                builder.add_encoded_rows(wrong)
        builder.add_encoded_rows([np.zeros(10, np.uint8)])


@pytest.mark.parametrize(
    ("ngrams", "rows", "says"),
    [
        ([(1,)], np.zeros((1, 5)), r"rows have shape \(1, 5\), wanted \(1, 6\)"),
        ([(1,), (2,)], np.zeros((1, 6)), r"wanted \(2, 6\)"),
        ([(1, 2, 3, 4)], np.zeros((1, 6)), "4 tokens"),
        ([(1,)], np.full((1, 6), np.nan), "column 0: nan"),
        ([(1,)], np.full((1, 6), np.inf), "column 0: inf"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, ngrams, rows, says):
    with pytest.raises(UsageError, match=says), Builder(tmp_path / "store", dim=6, max_n=3) as builder:
        builder.add(ngrams, rows)


def test_a_build_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nothing was added"):
        build(tmp_path / "store", [], some_rows(0))
    assert not (tmp_path / "store").exists()


def test_the_other_addressing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="add_rows"), Builder(tmp_path / "a", dim=6, addressing="row") as builder:
        builder.add([(1,)], some_rows(1))
    with pytest.raises(UsageError, match="add\\(ngrams, rows\\)"), Builder(tmp_path / "b", dim=6, max_n=2) as builder:
        builder.add_rows(some_rows(1))


def test_a_builder_ends_once(tmp_path):
    with Builder(tmp_path / "store", dim=6, max_n=3) as builder:
        builder.add([(1,)], some_rows(1))
    with pytest.raises(StoreClosed):
        builder.add([(2,)], some_rows(1))
    with pytest.raises(StoreClosed):
        builder.finish()
    builder.abort()
    assert len(contents(tmp_path / "store")) == 1


# Directories


def test_an_error_inside_the_block_leaves_nothing(tmp_path):
    def fail() -> None:
        with Builder(tmp_path / "a" / "store", dim=6, max_n=3) as builder:
            builder.add([(1,)], some_rows(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert os.listdir(tmp_path / "a") == []


def test_an_unfinished_build_cannot_be_opened_and_one_at_a_time_runs(tmp_path):
    with Builder(tmp_path / "store", dim=6, max_n=3) as builder:
        builder.add([(1,)], some_rows(1))
        with pytest.raises(IncompleteStore):
            ngs.open(tmp_path / "store")
        with pytest.raises(IncompleteStore, match="never finished"):
            Builder(tmp_path / "store", dim=6, max_n=3)
        with pytest.raises(WriterLocked):
            Builder(tmp_path / "store", dim=6, max_n=3, restart=True)
    assert len(contents(tmp_path / "store")) == 1


def test_a_store_that_another_build_finishes_before_this_one_has_the_lock_is_refused_and_stays(tmp_path, monkeypatch):
    path = tmp_path / "store"

    def lock_late(lock_path) -> WriterLock:
        monkeypatch.setattr(build_module, "WriterLock", WriterLock)
        build(path, some_ngrams(40), some_rows(40))
        return WriterLock(lock_path)

    monkeypatch.setattr(build_module, "WriterLock", lock_late)
    with pytest.raises(UsageError, match="already holds a store"):
        Builder(path, dim=6, max_n=3)
    assert files_of(path) == files_of(build(tmp_path / "alone", some_ngrams(40), some_rows(40)))
    ngs.open(path, mode="rw").close()  # the lock was given back


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_a_killed_build_is_restarted_and_only_then(tmp_path, memory_bytes):
    code = f"""
        import os, numpy as np
        from ngramstore.store.building.build import Builder
        builder = Builder({str(tmp_path / "store")!r}, dim=6, max_n=3, memory_bytes={memory_bytes})
        builder.add([(i,) for i in range(300)], np.ones((300, 6)))
        os._exit(9)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert ended.returncode == 9
    ngrams, rows = some_ngrams(40), some_rows(40)
    with pytest.raises(IncompleteStore):
        ngs.open(tmp_path / "store")
    with pytest.raises(IncompleteStore, match="restart=True"):
        build(tmp_path / "store", ngrams, rows)
    build(tmp_path / "store", ngrams, rows, restart=True)
    assert files_of(tmp_path / "store") == files_of(build(tmp_path / "fresh", ngrams, rows))


def test_strangers_files_are_neither_built_over_nor_removed(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        Builder(path, dim=6, max_n=3)
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        Builder(path, dim=6, max_n=3, restart=True)
    assert os.listdir(path) == ["thesis.tex"]
    (path / "thesis.tex").unlink()
    builder = Builder(path, dim=6, max_n=3)
    (path / "thesis.tex").write_text("years of work")
    (path / "base-000001.rows.bak").write_text("a copy")
    builder.abort()
    assert sorted(os.listdir(path)) == ["base-000001.rows.bak", "thesis.tex"]


def test_a_finished_store_is_not_built_over(tmp_path):
    path = build(tmp_path / "store", some_ngrams(5), some_rows(5))
    before = files_of(path)
    for restart in (False, True):
        with pytest.raises(UsageError, match="already holds a store"):
            Builder(path, dim=6, max_n=3, restart=restart)
    assert files_of(path) == before
    with pytest.raises(UsageError, match="is a file"):
        Builder(path / "MANIFEST", dim=6, max_n=3)


def test_compression_is_kept_where_it_saves(tmp_path):
    ngrams = some_ngrams(1200)
    smooth, random = np.zeros((1200, 64), np.float32), some_rows(1200, 64)
    smooth[:, 0] = np.arange(1200)
    kinds = {
        (name, compression): read_manifest(
            build(tmp_path / f"{name}-{compression}", ngrams, rows, compression=compression)
        ).base.is_compressed
        for (name, rows), compression in itertools.product(
            {"smooth": smooth, "random": random}.items(), ("auto", "none", "zstd")
        )
    }
    assert [kinds["smooth", c] for c in ("auto", "none", "zstd")] == [True, False, True]
    assert not kinds["random", "none"]
    assert kinds["random", "zstd"]
    with ngs.open(tmp_path / "smooth-auto") as store:
        assert (store.get(ngrams)[0] == smooth).all()


def test_metadata_comes_back(tmp_path):
    metadata = {"tokenizer": "gpt2", "nested": {"a": [1, 2.5, None, "ü"]}}
    path = build(tmp_path / "store", some_ngrams(5), some_rows(5), metadata=metadata)
    with ngs.open(path) as store:
        assert store.metadata == json.loads(json.dumps(metadata))


@pytest.mark.parametrize("kind", ["bf16", "with a gradient", "on another device"])
def test_a_tensor_that_is_no_array_is_refused_with_what_to_give_instead(tmp_path, kind):
    torch = pytest.importorskip("torch")
    rows = torch.ones(3, 4)
    rows = {
        "bf16": rows.bfloat16(),
        "with a gradient": torch.nn.Parameter(rows),
        "on another device": rows.to("meta"),
    }[kind]
    with ngs.build(tmp_path / "store", dim=4, addressing="row", codec="f32") as builder:
        with pytest.raises(UsageError, match="rows are not an array") as raised:
            builder.add_rows(rows)
        assert "t.detach().cpu().float().numpy()" in raised.value.hint
        builder.add_rows(np.ones((3, 4), np.float32))
    with ngs.open(tmp_path / "store", mode="rw") as store, pytest.raises(UsageError, match="rows are not an array"):
        store.put([0], rows[:1])


def test_an_ending_missed_behind_many_ngrams_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_TOKEN_ROWS", 100)
    ngrams = [(i,) for i in range(250)]
    build(tmp_path / "closed", [*ngrams, (1, 2)], some_rows(251))
    build(tmp_path / "open", [*ngrams, (1, 700)], some_rows(251))  # (700,) is not stored
    assert read_manifest(tmp_path / "closed").suffix_closed
    assert not read_manifest(tmp_path / "open").suffix_closed
    with ngs.open(tmp_path / "open") as store:
        assert store.lookup([1, 700]).length.tolist() == [1, 2]


@pytest.mark.parametrize("last", ["finish", "abort"])
def test_a_build_may_end_inside_its_block(tmp_path, last):
    with ngs.build(tmp_path / "store", dim=6, max_n=3) as builder:
        builder.add(some_ngrams(9), some_rows(9))
        getattr(builder, last)()
        assert builder.stats()["rows"] == 9
    assert (tmp_path / "store").exists() == (last == "finish")


@pytest.mark.parametrize("bad", [{"dim": True}, {"max_n": True}, {"seed": True}], ids=str)
def test_a_bool_is_no_number(tmp_path, bad):
    with pytest.raises(UsageError, match=f"{next(iter(bad))} must be"):
        ngs.build(tmp_path / "store", **{"dim": 6, "max_n": 3, **bad})
    assert not (tmp_path / "store").exists()


def test_no_rows_may_come_with_no_numbers(quick_path):
    with ngs.build(quick_path / "s", dim=4, addressing="row", codec="f32") as builder:
        builder.add_rows(np.zeros((0, 4), np.float32), [])
        builder.add_rows(np.ones((2, 4), np.float32), [1, 0])
    with ngs.open(quick_path / "s") as store:
        assert len(store) == 2
