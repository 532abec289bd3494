"""The embedding under drawn batches, paddings, chunkings, beam reorderings and roll-backs, against a dict that sees
everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore
from ngramstore_torch import NGramEmbedding

DIM, MAX_N, VOCAB, MAX_ROLLBACK = 3, 4, 4, 6


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A store that is not suffix-closed, with n-grams of 1..4 tokens, and the same as a dict."""
    rng = np.random.default_rng(5)
    table = {}
    for n in range(1, MAX_N + 1):
        for ngram in rng.integers(0, VOCAB, (12, n)).tolist():
            table[tuple(ngram)] = rng.standard_normal(DIM).astype(np.float32)
    path = tmp_path_factory.mktemp("property") / "store"
    with ngramstore.build(path, dim=DIM, max_n=MAX_N, codec="f32") as build:
        for ngram, row in table.items():
            build.add([ngram], row[None])
    torch.manual_seed(0)
    own = torch.nn.Embedding(VOCAB, DIM)
    with ngramstore.open(path) as store:
        yield table, own, NGramEmbedding(store, own)


class Sequence:
    """All tokens of one sequence, each with whether a document starts there."""

    def __init__(self, tokens=(), taken_back=0):
        self.tokens = list(tokens)
        self.taken_back = taken_back  # and not made up for by new tokens: what max_rollback bounds

    def add(self, token, starts):
        self.tokens.append((token, starts))
        self.taken_back = max(0, self.taken_back - 1)

    def vector(self, table, own):
        """What stands for the last token, from nothing but the list and the dict."""
        document = []
        for token, starts in self.tokens:
            document = [token] if starts else [*document, token]
        for n in range(min(MAX_N, len(document)), 1, -1):
            if tuple(document[-n:]) in table:
                return table[tuple(document[-n:])]
        return own.weight[document[-1]].detach().numpy()


def expected(table, own, sequences, tokens, mask, starts):
    out = np.zeros((*tokens.shape, DIM), np.float32)
    for b, t in np.ndindex(tokens.shape):
        if mask[b, t]:
            sequences[b].add(int(tokens[b, t]), bool(starts[b, t]))
            out[b, t] = sequences[b].vector(table, own)
        else:
            out[b, t] = own.weight[int(tokens[b, t])].detach().numpy()
    return out


def draw_mask(data, B, T):
    kind = data.draw(st.sampled_from(["none", "left", "right", "any"]), label="padding")
    mask = np.ones((B, T), bool)
    for b in range(B):
        pad = data.draw(st.integers(0, T), label=f"padding of {b}")
        if kind == "left":
            mask[b, :pad] = False
        elif kind == "right":
            mask[b, T - pad :] = False
        elif kind == "any":
            mask[b] = data.draw(st.lists(st.booleans(), min_size=T, max_size=T))
    return kind, mask


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_way_of_feeding_the_tokens_gives_what_the_whole_sequence_gives(case, data):
    table, own, embed = case
    B = data.draw(st.integers(1, 3), label="B")
    history = embed.new_history(B, max_rollback=MAX_ROLLBACK)
    sequences = [Sequence() for _ in range(B)]
    for _ in range(data.draw(st.integers(1, 5), label="steps")):
        action = data.draw(st.sampled_from(["feed", "feed", "one", "ones", "truncate", "reorder", "select", "reset"]))
        B = len(sequences)
        if action == "ones":  # many single tokens in a row: decoding's own path
            line = data.draw(st.integers(0, B - 1))
            history, sequences = history.select([line]), [sequences[line]]
            for token in data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)):
                got = embed(torch.tensor([[token]]), history=history)
                sequences[0].add(token, False)
                np.testing.assert_array_equal(got[0, 0].detach().numpy(), sequences[0].vector(table, own))
            assert history.lengths.tolist() == [len(sequences[0].tokens)]
            continue
        if action in ("feed", "one"):
            T = 1 if action == "one" else data.draw(st.integers(0, 12), label="T")
            tokens = np.array(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=B * T, max_size=B * T)))
            tokens = tokens.astype(np.int64).reshape(B, T)
            kind, mask = ("none", np.ones((B, T), bool)) if action == "one" else draw_mask(data, B, T)
            has_starts = action == "feed" and data.draw(st.booleans(), label="documents")
            starts = np.zeros((B, T), bool)
            if has_starts:
                starts = np.array(data.draw(st.lists(st.booleans(), min_size=B * T, max_size=B * T)), bool).reshape(
                    B, T
                )
            arguments = {
                "history": history,
                "attention_mask": None if kind == "none" else torch.from_numpy(mask.astype(np.int64)),
                "starts": torch.from_numpy(starts) if has_starts else None,
            }
            ticket = embed.prefetch(torch.from_numpy(tokens), **arguments) if data.draw(st.booleans()) else None
            with torch.set_grad_enabled(data.draw(st.booleans(), label="gradients")):
                got = embed(torch.from_numpy(tokens), **arguments, ticket=ticket)
            want = expected(table, own, sequences, tokens, mask, starts)
            np.testing.assert_array_equal(got.detach().numpy(), want)
        elif action == "truncate":
            counts = [data.draw(st.integers(0, min(len(s.tokens), MAX_ROLLBACK - s.taken_back))) for s in sequences]
            history.truncate(np.array(counts, np.int64))
            for sequence, count in zip(sequences, counts, strict=True):
                del sequence.tokens[len(sequence.tokens) - count :]
                sequence.taken_back += count
        elif action in ("reorder", "select"):
            many = B if action == "reorder" else data.draw(st.integers(1, 3))
            lines = [data.draw(st.integers(0, B - 1)) for _ in range(many)]
            if action == "reorder":
                history.reorder(torch.tensor(lines))
            else:
                history = history.select(lines)
            sequences = [Sequence(sequences[line].tokens, sequences[line].taken_back) for line in lines]
        else:
            line = data.draw(st.integers(0, B - 1))
            history.reset([line])
            sequences[line] = Sequence()
        assert history.lengths.tolist() == [len(s.tokens) for s in sequences]
