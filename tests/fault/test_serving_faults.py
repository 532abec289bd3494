"""The store fails or changes during generation: the caller gets an error or right tokens, never wrong ones, never a hang."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from helpers import flip
from serving_cases import DIM, VOCAB, table, vectors, write

import ngramstore
from ngramstore.errors import DamagedRows, DamagedStore, NgramStoreError, StoreClosed
from ngramstore_torch import NGramEmbedding


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "store", table())


def make(store):
    torch.manual_seed(0)
    return NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))


def decode(embed, tokens, then=lambda t: None):
    """All tokens one at a time, `then` between them; the vectors (T, D)."""
    history = embed.new_history(1)
    found = []
    with torch.no_grad():
        for t, token in enumerate(tokens):
            found.append(embed(torch.tensor([[token]]), history=history)[0, 0].numpy())
            then(t)
    return np.stack(found)


def want(embed, tokens, rows=None):
    own = embed.token_embedding.weight.detach().numpy()
    return vectors(rows or table(), own, np.array([tokens]))[0]


def data_files(path):
    """Index and rows, not the manifest."""
    return [p for p in path.iterdir() if p.suffix in (".index", ".rows", ".tokens") and p.stat().st_size]


def stream(length=60, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def flip_row(path, store, ngram):
    """Change a bit of one stored row, wherever it lies."""
    row = store.get_encoded([ngram])[0].tobytes()
    for file in path.iterdir():
        if file.is_file() and (at := file.read_bytes().find(row)) >= 0:
            flip(file, at + 2)
            return
    raise AssertionError("the row is nowhere")


def test_a_damaged_row_raises_where_it_is_needed_and_decoding_can_go_on_without_it(path):
    tokens = stream()
    with ngramstore.open(path) as probe:
        lengths = probe.match(np.array([tokens]))[0]
        t = int(np.flatnonzero(lengths >= 2)[5])
        ngram = tuple(tokens[t - int(lengths[t]) + 1 : t + 1])
        flip_row(path, probe, ngram)
    with ngramstore.open(path, cache_bytes=0) as store:
        embed, seen = make(store), []
        with pytest.raises(DamagedRows):
            decode(embed, tokens, then=seen.append)
        first = next(i for i in range(len(tokens)) if tuple(tokens[i - int(lengths[i]) + 1 : i + 1]) == ngram)
        assert len(seen) == first
        ticket = embed.prefetch(torch.tensor([tokens]))  # the error is for whoever needs the row
        with pytest.raises(DamagedRows):
            embed(torch.tensor([tokens]), ticket=ticket)
    with ngramstore.open(path, on_damage="missing") as store:
        embed = make(store)
        got, own = decode(embed, tokens), embed.token_embedding.weight.detach().numpy()
        expected = want(embed, tokens)
        for i in range(len(tokens)):
            if tuple(tokens[i - int(lengths[i]) + 1 : i + 1]) == ngram:
                expected[i] = own[tokens[i]]  # a damaged row counts as not found, and T answers
        np.testing.assert_array_equal(got, expected)


def test_after_an_error_the_history_is_as_before_and_the_call_can_be_repeated(path):
    tokens = stream()
    with ngramstore.open(path) as store:
        embed, history = make(store), None
        history = embed.new_history(1)
        fails = iter([False, True, False] * 100)

        class Flaky:
            def __getattr__(self, name):
                return getattr(store, name)

            def lookup_tail(self, *arguments, **options):
                if next(fails):
                    raise DamagedStore("for this once")
                return store.lookup_tail(*arguments, **options)

            def lookup_one(self, *arguments, **options):
                if next(fails):
                    raise DamagedStore("for this once")
                return store.lookup_one(*arguments, **options)

        embed.handle._store = Flaky()
        found = []
        with torch.no_grad():
            for chunk in np.array_split(tokens, 25):
                given = torch.from_numpy(chunk)[None]
                try:
                    found.append(embed(given, history=history))
                except DamagedStore:
                    found.append(embed(given, history=history))
        np.testing.assert_array_equal(torch.cat(found, 1)[0].numpy(), want(embed, tokens))


def test_a_store_closed_during_generation_says_so(path):
    store = ngramstore.open(path)
    embed = make(store)
    with pytest.raises(StoreClosed):
        decode(embed, stream(), then=lambda t: store.close() if t == 10 else None)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_during_generation_is_an_error_and_no_crash(path, share):
    tokens = stream(200)
    with ngramstore.open(path, cache_bytes=0, lock_index=True) as store:  # a mapped index that is cut is SIGBUS
        embed = make(store)
        files = data_files(path)
        assert len(files) >= 2

        def cut(t):
            if t == 20:
                for file in files:
                    os.truncate(file, int(file.stat().st_size * share))

        seen = []
        try:
            got = decode(embed, tokens, then=lambda t: (seen.append(t), cut(t)))
        except NgramStoreError:
            assert len(seen) > 20
        else:  # nothing behind the cut was needed
            np.testing.assert_array_equal(got, want(embed, tokens))
            assert share > 0


def test_a_store_compacted_while_it_serves_gives_old_rows_or_new_rows(path):
    tokens, old = stream(400), table()
    changed = {ngram: row + 100 for ngram, row in list(old.items())[::2]}
    new = {**old, **changed}
    with ngramstore.open(path, cache_bytes=3000) as store:
        embed = make(store)
        done, errors = threading.Event(), []

        def write_changes():
            try:
                with ngramstore.open(path, mode="rw") as writer:
                    for ngram, row in changed.items():
                        writer.put([ngram], row[None])
                    writer.flush()
                    writer.compact()
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=write_changes)
        thread.start()
        with torch.no_grad():
            rounds = 0
            while not done.is_set() or rounds < 2:
                np.testing.assert_array_equal(decode(embed, tokens), want(embed, tokens, old))
                rounds += 1
        thread.join()
        assert not errors
        refreshed = []

        def refresh(t):
            if t == 150:
                refreshed.append(store.refresh())

        got = decode(embed, tokens, then=refresh)
        assert refreshed == [True]
        expected = np.concatenate((want(embed, tokens, old)[:151], want(embed, tokens, new)[151:]))
        np.testing.assert_array_equal(got, expected)
        assert not np.array_equal(want(embed, tokens, old)[151:], want(embed, tokens, new)[151:])
