"""The embedding rule of a batch equals a loop over tokens that looks each n-gram up in a dict; nothing leaks backwards."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.mine import Vocabulary
from ngramstore_torch.data.batches import TaggedTokens, tag
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.model.scone import SconeModel
from ngramstore_torch.serving.generation import live_embedding

ALPHABET, MAX_N = 4, 4
tokens = st.integers(0, ALPHABET - 1)
ngrams = st.lists(st.lists(tokens, min_size=2, max_size=MAX_N).map(tuple), min_size=1, max_size=12, unique=True)
documents = st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=5)
DECODER = DecoderConfig(vocab_size=ALPHABET, dim=8, num_layers=1, num_heads=2, max_positions=64)


def model_away_from_its_start() -> SconeModel:
    torch.manual_seed(0)
    model = SconeModel(DECODER, FgramConfig(dim=8, max_n=MAX_N, num_layers=2, num_heads=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


MODEL = model_away_from_its_start()


def vocabulary(chosen: list[tuple[int, ...]]) -> Vocabulary:
    tokens_MK = np.zeros((len(chosen), MAX_N), np.uint32)
    for row, ngram in zip(tokens_MK, chosen, strict=True):
        row[: len(ngram)] = ngram
    return Vocabulary(tokens_MK, np.array([len(ngram) for ngram in chosen]), np.ones(len(chosen), np.uint64))


def tagged(texts: list[list[int]], chosen: list[tuple[int, ...]]) -> TaggedTokens:
    starts = np.cumsum([0] + [len(text) for text in texts])
    return tag(np.concatenate(texts).astype(np.uint16), starts, vocabulary(chosen))


def naive(texts: list[list[int]], chosen: set[tuple[int, ...]]) -> torch.Tensor:
    """Algorithm 1 of the paper, word for word: one token at a time, one f-gram at a time."""
    rows = []
    for text in texts:
        for i in range(len(text)):
            begins = [j for j in range(i) if tuple(text[j : i + 1]) in chosen]
            own = MODEL.decoder.tokens(torch.tensor(text[min(begins, default=i) : i + 1]))
            rows.append(MODEL.fgram_model(own[None], torch.tensor([len(own)]))[0] if begins else own[0])
    return torch.stack(rows)


@given(documents, ngrams)
@settings(max_examples=150, deadline=None)
@torch.no_grad()
def test_the_inputs_of_a_batch_are_those_of_a_naive_loop(texts, chosen):
    data = tagged(texts, chosen)
    inputs = MODEL.inputs(data.at(np.arange(len(data))[None]))[0]
    torch.testing.assert_close(inputs, naive(texts, set(chosen)), rtol=1e-3, atol=1e-4)


@given(st.lists(tokens, min_size=2, max_size=16), ngrams, st.data())
@settings(max_examples=100, deadline=None)
@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_input(text, chosen, draw):
    place = draw.draw(st.integers(1, len(text) - 1))
    changed = text[:place] + [(token + 1) % ALPHABET for token in text[place:]]
    before, after = (
        MODEL.inputs(tagged([x], chosen).at(np.arange(len(text))[None]))[0, :place] for x in (text, changed)
    )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


@given(documents, ngrams)
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_an_input_depends_on_nothing_before_its_document(texts, chosen):
    """Every document alone gives the inputs that it has among the others."""
    alone = [MODEL.inputs(tagged([text], chosen).at(np.arange(len(text))[None]))[0] for text in texts]
    data = tagged(texts, chosen)
    together = MODEL.inputs(data.at(np.arange(len(data))[None]))[0]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


@given(documents, st.integers(2, 6))
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_hashed_inputs_too_depend_on_nothing_before_their_document(texts, max_n):
    torch.manual_seed(0)
    model = HashedModel(DECODER, HashedConfig(num_rows=100, max_n=max_n))
    torch.nn.init.normal_(model.tables.weight)
    alone = []
    for text in texts:
        single = tag(np.array(text), np.array([0, len(text)]), None)
        alone.append(model.inputs(single.at(np.arange(len(text))[None], history=model.history))[0])
    starts = np.cumsum([0] + [len(text) for text in texts])
    data = tag(np.concatenate(texts), starts, None)
    together = model.inputs(data.at(np.arange(len(data))[None], history=model.history))[0]
    torch.testing.assert_close(torch.cat(alone), together)


@given(st.lists(tokens, min_size=1, max_size=12), ngrams, st.data())
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_embeddings_made_while_generating_are_those_of_the_whole_text(text, chosen, draw):
    num_new = draw.draw(st.integers(1, len(text)))
    step = live_embedding(MODEL, vocabulary(chosen))(np.array(text), num_new)[0]
    torch.testing.assert_close(step, naive([text], set(chosen))[-num_new:], rtol=1e-3, atol=1e-4)


@given(documents, st.integers(1, 7), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_every_token_but_a_documents_first_is_a_target_exactly_once(texts, seq_len, batch_size):
    data = tagged(texts, [(0, 1)])
    seen = []
    for batch in data.evaluation_batches(seq_len, batch_size):
        scored = batch.targets_BT >= 0
        seen += list(zip(batch.tokens_BT[scored].tolist(), batch.targets_BT[scored].tolist(), strict=True))
        for row, (tokens_T, document) in enumerate(zip(batch.tokens_BT, batch.documents, strict=True)):
            length = int(scored[row].sum())
            assert tokens_T[:length].tolist() == document[-length:].tolist()
    assert seen == [pair for text in texts for pair in pairwise(text)]
