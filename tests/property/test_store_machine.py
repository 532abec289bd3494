"""The store and a plain dict see the same operations and must agree: puts, deletes, look-ups, flushes, kills, reopenings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    VOCABULARY,
    all_ngrams,
    assert_verifies,
    cache_of,
    contents,
    copy_of_one_moment,
    longest_match,
    rows_of,
    stamps_of,
    temporary_directory,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import ngramstore as ngs
from ngramstore.hashing import ngram_ids
from ngramstore.serve.store import Store

TOKEN = st.sampled_from(VOCABULARY)
NGRAM = st.lists(TOKEN, min_size=1, max_size=4).map(tuple)
STAMP = st.integers(0, 200)
CACHES = st.sampled_from(["three rows", "none", "resident", "default"])


def open_options(cache: str, row_bytes: int) -> dict:
    return {
        "three rows": {"cache_bytes": cache_of(3, row_bytes)},
        "none": {"cache_bytes": 0},
        "resident": {"resident": True},
        "default": {},
    }[cache]


class StoreIsADict(RuleBasedStateMachine):
    """`model` is what the writer must see, `public` what a new reader must see, `seen` what our old reader must see."""

    def __init__(self) -> None:
        super().__init__()
        self.room = temporary_directory()
        self.copies = 0
        self.writer: Store | None = None
        self.reader: Store | None = None

    @initialize(
        stored=st.dictionaries(NGRAM, STAMP, min_size=1, max_size=30),
        compression=st.sampled_from(["none", "zstd"]),
        writer_cache=CACHES,
        reader_cache=CACHES,
        lock_index=st.booleans(),
        seed=st.sampled_from([0, 2**64 - 1]),
    )
    def build(self, stored, compression, writer_cache, reader_cache, lock_index, seed):
        self.max_n = 4
        self.dim = 24 if compression == "zstd" else 2
        self.path = Path(self.room.name, "store")
        with ngs.build(
            self.path, dim=self.dim, max_n=self.max_n, codec="f32", compression=compression, seed=seed
        ) as builder:
            builder.add(list(stored), rows_of(list(stored.values()), self.dim))
        self.model, self.public, self.seen = dict(stored), dict(stored), dict(stored)
        self.writer_options = open_options(writer_cache, 4 * self.dim)
        self.reader_options = {**open_options(reader_cache, 4 * self.dim), "lock_index": lock_index}
        self.open()

    def open(self) -> None:
        self.writer = ngs.open(self.path, mode="rw", **self.writer_options)
        self.reader = ngs.open(self.path, **self.reader_options)
        self.seen = dict(self.public)

    def close(self) -> None:
        for store in (self.writer, self.reader):
            if store is not None:
                store.close()
        self.writer = self.reader = None

    @rule(pairs=st.lists(st.tuples(NGRAM, STAMP), max_size=6), encoded=st.booleans())
    def put(self, pairs, encoded):
        ngrams, rows = [ngram for ngram, _ in pairs], rows_of([stamp for _, stamp in pairs], self.dim)
        if encoded:
            self.writer.put_encoded(ngrams, np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), 4 * self.dim))
        else:
            self.writer.put(ngrams, rows)
        self.model.update(pairs)

    @rule(ngrams=st.lists(NGRAM, max_size=6))
    def delete(self, ngrams):
        assert self.writer.delete(ngrams) == len({ngram for ngram in ngrams if ngram in self.model})
        for ngram in ngrams:
            self.model.pop(ngram, None)

    @rule(first=TOKEN)
    def delete_all_that_end_so(self, first):
        gone = [ngram for ngram in self.model if ngram[-1] == first]
        assert self.writer.delete(gone) == len(gone)
        for ngram in gone:
            del self.model[ngram]

    @rule(ngrams=st.lists(NGRAM, max_size=12), by_reader=st.booleans())
    def get(self, ngrams, by_reader):
        self.check_get(ngrams, by_reader)

    @rule(by_reader=st.booleans())
    def get_everything(self, by_reader):
        self.check_get(all_ngrams(2), by_reader)

    @rule(
        ngrams=st.integers(1, 4).flatmap(
            lambda n: st.lists(st.tuples(*[TOKEN] * n), min_size=1, max_size=80).map(
                lambda some: np.array(some, np.uint32)
            )
        ),
        by_reader=st.booleans(),
        times=st.integers(1, 2),
    )
    def get_array(self, ngrams, by_reader, times):
        """Arrays have shorter ways of their own, the more so once rows are cached."""
        for _ in range(times):
            self.check_get(ngrams, by_reader)

    def check_get(self, ngrams, by_reader: bool) -> None:
        store, model = (self.reader, self.seen) if by_reader else (self.writer, self.model)
        rows, found = store.get(ngrams)
        of_ids, there = store.get_encoded(ngrams)
        np.testing.assert_array_equal(of_ids.view("<f4"), rows)
        np.testing.assert_array_equal(there, found)
        assert store.contains(ngrams).tolist() == found.tolist()
        ngrams = list(map(tuple, ngrams.tolist())) if isinstance(ngrams, np.ndarray) else ngrams
        assert found.tolist() == [ngram in model for ngram in ngrams]
        assert stamps_of(rows[found]) == [model[ngram] for ngram in ngrams if ngram in model]
        assert not rows[~found].any()
        for ngram in ngrams[:2]:
            assert (ngram in store) == (ngram in model)

    @rule(
        tokens=st.lists(TOKEN, max_size=14),
        num_lines=st.integers(1, 2),
        marks=st.integers(0, 2**14 - 1),
        by_reader=st.booleans(),
    )
    def lookup(self, tokens, num_lines, marks, by_reader):
        store, model = (self.reader, self.seen) if by_reader else (self.writer, self.model)
        width = len(tokens) // num_lines
        lines = np.array(tokens[: num_lines * width], np.uint32).reshape(num_lines, width)
        starts = np.array([marks >> i & 1 for i in range(lines.size)], bool).reshape(lines.shape) if marks % 3 else None
        hit = store.lookup(lines, starts=starts)
        wanted = longest_match(model, lines.tolist(), starts)
        np.testing.assert_array_equal(hit.length, wanted)
        np.testing.assert_array_equal(store.match(lines, starts=starts), wanted)
        assert not hit.rows[wanted == 0].any()
        for b, t in np.argwhere(wanted):
            ngram = tuple(lines[b, t + 1 - wanted[b, t] : t + 1].tolist())
            assert stamps_of(hit.rows[b, t][None]) == [model[ngram]]
        if starts is None:
            self.check_tail(store, lines, hit)

    def check_tail(self, store: Store, lines: np.ndarray, hit) -> None:
        """The ways of decoders: the last tokens of a window, one token, and IDs, which are those of what `lookup` found."""
        num, width = lines.shape
        for last in {min(1, width), width}:
            room = np.tile(np.minimum(np.arange(width - last, width) + 1, self.max_n).astype(np.uint8), (num, 1))
            rows = np.full((num, last, self.dim), np.nan, np.float32)
            lengths = store.lookup_tail(lines, room, out=rows)
            np.testing.assert_array_equal(lengths, hit.length[:, width - last :])
            np.testing.assert_array_equal(rows, hit.rows[:, width - last :])
        if width:
            row = np.full(self.dim, np.nan, np.float32)
            length = store.lookup_one(lines[0], width, min(width, self.max_n), out=row)
            assert length == hit.length[0, -1]
            if length:
                np.testing.assert_array_equal(row, hit.rows[0, -1])
        ids, lengths = store.match_ids(lines)
        np.testing.assert_array_equal(lengths, hit.length)
        for b, t in np.argwhere(lengths):
            (wanted,) = ngram_ids(lines[b : b + 1, t + 1 - lengths[b, t] : t + 1], None, store.spec.seed)
            assert ids[b, t] == wanted

    @rule()
    def flush(self):
        self.writer.flush()
        self.public = dict(self.model)

    @rule()
    def compact(self):
        self.writer.compact()
        self.public = dict(self.model)
        assert self.writer.stats()["overlay_rows"] == self.writer.stats()["tombstones"] == 0

    @rule()
    def items(self):
        listed = contents(self.writer)  # flushes first
        assert listed == self.model
        self.public = dict(self.model)
        assert contents(self.reader) == self.seen

    @rule()
    def refresh(self):
        is_behind = self.reader.generation != self.writer.generation
        assert self.reader.refresh() == is_behind
        self.seen = dict(self.public)

    @rule()
    def reopen(self):
        self.close()
        self.public = dict(self.model)  # closing a writer publishes
        self.open()

    @rule()
    def kill(self):
        """What a killed process leaves: its files as they are now. Nothing that was put is lost, nothing is published."""
        self.copies += 1
        new = Path(self.room.name, f"copy-{self.copies}")
        copy_of_one_moment(self.path, new)
        self.close()
        shutil.rmtree(self.path)
        self.path = new
        self.open()

    @invariant()
    def length(self):
        if self.writer is not None:
            assert len(self.writer) == len(self.model)
            assert len(self.reader) == len(self.seen)

    def teardown(self):
        if self.writer is not None:
            self.writer.compact()
            manifest_files = set(self.writer.files)
            assert contents(self.writer) == self.model
            self.reader.refresh()
            assert contents(self.reader) == self.model
            assert len(manifest_files) == 3
            self.writer.flush()
            self.close()
            assert_verifies(self.path)
        self.room.cleanup()


class RowsAreAList(RuleBasedStateMachine):
    """Row addressing against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.room = temporary_directory()
        self.writer: Store | None = None
        self.reader: Store | None = None

    @initialize(
        stored=st.lists(STAMP, min_size=1, max_size=150),
        compression=st.sampled_from(["none", "zstd"]),
        writer_cache=CACHES,
        reader_cache=CACHES,
    )
    def build(self, stored, compression, writer_cache, reader_cache):
        self.dim = 24
        self.path = Path(self.room.name, "store")
        with ngs.build(self.path, dim=self.dim, addressing="row", codec="f32", compression=compression) as builder:
            order = np.random.default_rng(len(stored)).permutation(len(stored))
            builder.add_rows(rows_of(np.array(stored)[order], self.dim), order)
        self.model, self.public, self.seen = list(stored), list(stored), list(stored)
        self.writer_options, self.reader_options = (
            open_options(cache, 4 * self.dim) for cache in (writer_cache, reader_cache)
        )
        self.open()

    def open(self) -> None:
        self.writer = ngs.open(self.path, mode="rw", **self.writer_options)
        self.reader = ngs.open(self.path, **self.reader_options)
        self.seen = list(self.public)

    @rule(pairs=st.lists(st.tuples(st.integers(0, 149), STAMP), max_size=6))
    def put(self, pairs):
        pairs = [(number % len(self.model), stamp) for number, stamp in pairs]
        self.writer.put([number for number, _ in pairs], rows_of([stamp for _, stamp in pairs], self.dim))
        for number, stamp in pairs:
            self.model[number] = stamp

    @rule(numbers=st.lists(st.integers(0, 149), max_size=12), by_reader=st.booleans())
    def rows(self, numbers, by_reader):
        self.check_rows([number % len(self.model) for number in numbers], by_reader)

    @rule(
        numbers=st.lists(st.integers(0, 149), min_size=1, max_size=80), by_reader=st.booleans(), times=st.integers(1, 2)
    )
    def rows_of_an_array(self, numbers, by_reader, times):
        """Arrays have shorter ways of their own, the more so once rows are cached."""
        for _ in range(times):
            self.check_rows(np.array(numbers) % len(self.model), by_reader)

    def check_rows(self, numbers, by_reader: bool) -> None:
        store, model = (self.reader, self.seen) if by_reader else (self.writer, self.model)
        rows = store.rows(numbers)
        assert stamps_of(rows) == [model[number] for number in numbers]
        np.testing.assert_array_equal(store.rows_encoded(numbers).view("<f4"), rows)

    @rule()
    def flush(self):
        self.writer.flush()
        self.public = list(self.model)

    @rule()
    def compact(self):
        self.writer.compact()
        self.public = list(self.model)

    @rule()
    def items(self):
        for store in (self.writer, self.reader):
            pairs = list(store.items())
            if store is self.writer:
                self.public = list(self.model)
            assert [number for number, _ in pairs] == list(range(len(self.model)))
            assert stamps_of(np.stack([row for _, row in pairs])) == (self.model if store is self.writer else self.seen)

    @rule()
    def refresh(self):
        self.reader.refresh()
        self.seen = list(self.public)

    @rule()
    def kill(self):
        new = self.path.with_name(self.path.name + "x")
        copy_of_one_moment(self.path, new)
        self.writer.close()
        self.reader.close()
        self.path = new
        self.open()

    @invariant()
    def length(self):
        if self.writer is not None:
            assert len(self.writer) == len(self.model)

    def teardown(self):
        if self.writer is not None:
            self.writer.compact()
            self.reader.close()
            self.writer.close()
            with ngs.open(self.path) as store:
                assert stamps_of(store.rows(np.arange(len(self.model)))) == self.model
            assert_verifies(self.path)
        self.room.cleanup()


def run(machine: type[RuleBasedStateMachine], max_examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_a_store_is_a_dict_whatever_happens_to_it():
    run(StoreIsADict, 25, 25)


def test_a_row_addressed_store_is_a_list_whatever_happens_to_it():
    run(RowsAreAList, 12, 15)


@pytest.mark.slow
def test_a_store_is_a_dict_for_long():
    run(StoreIsADict, 400, 50)


@pytest.mark.slow
def test_a_row_addressed_store_is_a_list_for_long():
    run(RowsAreAList, 150, 40)
