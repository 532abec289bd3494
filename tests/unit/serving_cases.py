"""Small stores for the serving tests, and the same rows as a dict."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest
import torch

import ngramstore
from ngramstore_torch import NGramEmbedding

DIM, MAX_N, VOCAB = 8, 4, 6


def table(seed=0, dim=DIM, vocab=VOCAB, max_n=MAX_N, per_length=30):
    """n-grams of 2..max_n tokens -> rows (dim,) f32; not suffix-closed."""
    rng = np.random.default_rng(seed)
    return {
        tuple(ngram): rng.standard_normal(dim).astype(np.float32)
        for n in range(2, max_n + 1)
        for ngram in rng.integers(0, vocab, (per_length, n)).tolist()
    }


def write(path, rows, codec="f32", max_n=MAX_N, **options):
    """A store of a dict's rows."""
    dim = len(next(iter(rows.values())))
    with ngramstore.build(path, dim=dim, max_n=max_n, codec=codec, compression="none", **options) as build:
        for n in sorted({len(ngram) for ngram in rows}):
            ngrams = [ngram for ngram in rows if len(ngram) == n]
            build.add(ngrams, np.stack([rows[ngram] for ngram in ngrams]))
    return path


def vectors(rows, own, tokens_BT, mask_BT=None):
    """(B, T, D) from nothing but the dict and T's weights (V, D): the longest n-gram that ends at each token."""
    out = own[tokens_BT].copy()
    for b, line in enumerate(tokens_BT.tolist()):
        seen = []
        for t, token in enumerate(line):
            if mask_BT is not None and not mask_BT[b][t]:
                continue
            seen.append(token)
            longest = max(len(ngram) for ngram in rows)
            for n in range(min(longest, len(seen)), 1, -1):
                if tuple(seen[-n:]) in rows:
                    out[b, t] = rows[tuple(seen[-n:])]
                    break
    return out


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store of `table()`. A module takes this fixture over by its name: `path = serving_cases.path`; so `embed`."""
    return write(tmp_path_factory.mktemp("serving") / "store", table())


@pytest.fixture
def embed(path):
    """A module on that store."""
    torch.manual_seed(0)
    with ngramstore.open(path) as store:
        yield NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))


def some_tokens(B=3, T=20, seed=0):
    """Tokens (B, T) int64."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (B, T)))


def want_of(embed, tokens):
    """What a module on a store of `table()` has to answer: (B, T, D)."""
    return vectors(table(), embed.token_embedding.weight.detach().numpy(), tokens.numpy())


class Slow:
    """A store whose look-ups wait until they are let go, then write what they were asked for."""

    def __init__(self, store):
        self.store = store
        self.calls = 0
        self.begun, self.go, self.ended = (threading.Event() for _ in range(3))

    def __getattr__(self, name):
        return getattr(self.store, name)

    def __len__(self):
        return len(self.store)

    def lookup_tail(self, *arguments, **options):
        return self._late(self.store.lookup_tail, *arguments, **options)

    def rows(self, *arguments, **options):
        return self._late(self.store.rows, *arguments, **options)

    def _late(self, call, *arguments, **options):
        self.calls += 1
        self.begun.set()
        self.go.wait(30)
        try:
            return call(*arguments, **options)
        finally:
            self.ended.set()


def embedding_result(embed, tokens):
    """What a module answers in a forked child, where its handle was inherited."""

    def answer():
        with torch.no_grad():
            embed.prefetch(tokens).wait(30)
            return embed(tokens, ticket=embed.prefetch(tokens)).numpy()

    return torch.from_numpy(in_fork(answer))


def in_fork(call):
    """What a call returns in a forked child."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(call, sender))
    child.start()
    try:
        assert receiver.poll(60), "the child does not answer"
        found = receiver.recv()
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        raise AssertionError(found)
    return found


def _answer(call, sender):
    try:
        sender.send(call())
    except BaseException as error:
        sender.send(repr(error))
