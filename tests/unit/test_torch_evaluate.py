"""Evaluation, costs and generation, with a dict in place of a store."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch_cases import DECODER, FGRAM, language, plain, scone, shaken, tagged, vocabulary

import ngramstore
from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore_torch import NGramEmbedding, fgram_load
from ngramstore_torch.data.batches import document_windows, tag
from ngramstore_torch.experiment import evaluate
from ngramstore_torch.experiment.evaluate import Evaluation, evaluate_model
from ngramstore_torch.export.sensitivity import input_sensitivity
from ngramstore_torch.export.table import SconeRows, export_table
from ngramstore_torch.model.costs import cost_of
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.serving.generation import generate, live_embedding
from ngramstore_torch.training.config import TrainConfig
from ngramstore_torch.training.train import train_model


class DictStore:
    """Rows by tuple of tokens; the longest match, one position at a time."""

    dim = 32

    def __init__(self, model, vocab):
        tokens_NK, lengths_N = vocab.ngrams
        rows_ND = SconeRows(model).rows(tokens_NK, lengths_N)
        keys = (tuple(t[:n].tolist()) for t, n in zip(tokens_NK, lengths_N, strict=True))
        self.rows = dict(zip(keys, rows_ND, strict=True))
        self.max_n = vocab.max_n

    def lookup(self, tokens_BT):
        B, T = tokens_BT.shape
        rows, length = np.zeros((B, T, 32), np.float32), np.zeros((B, T), np.uint8)
        for b in range(B):
            text = tuple(tokens_BT[b].tolist())
            for i in range(T):
                for n in range(min(self.max_n, i + 1), 1, -1):
                    if text[i - n + 1 : i + 1] in self.rows:
                        rows[b, i], length[b, i] = self.rows[text[i - n + 1 : i + 1]], n
                        break
        return SimpleNamespace(rows=rows, length=length)


@pytest.fixture(scope="module")
def case():
    data, vocab = tagged(num_documents=6, seed=1)
    model = shaken(scone())
    return data, vocab, model, DictStore(model, vocab)


def test_served_perplexity_is_the_live_one(case):
    data, _, model, store = case
    live, served = evaluate_model(model, data), evaluate_model(model, data, store=store)
    assert served.nats == pytest.approx(live.nats, abs=1e-5)
    assert served.num_tokens == live.num_tokens == len(data) - 6
    assert live.matched > 0.3
    assert abs(evaluate_model(model, tag(*language(6, 1), None)).nats - live.nats) > 0.01  # f-grams do matter here


def test_windows_shorter_than_a_document_are_served_with_the_tokens_before_them(case):
    data, _, model, store = case
    live = evaluate_model(model, data, seq_len=3, batch_size=5)
    assert evaluate_model(model, data, store=store, seq_len=3, batch_size=5).nats == pytest.approx(live.nats, abs=1e-5)


@pytest.mark.parametrize("max_n", [5, MAX_N])
def test_the_longest_fgrams_at_the_start_of_a_short_window_are_served_with_all_their_tokens(max_n):
    tokens, starts = language(6, 1)
    vocab = vocabulary(tokens, starts, size=20_000, max_n=max_n)  # every n-gram there is
    data, model = tag(tokens, starts, vocab), shaken(scone(fgram=replace(FGRAM, max_n=max_n)))
    rows_W = data.rows_P[document_windows(data.starts, 3)[0]]
    assert (vocab.ngrams[1][rows_W[rows_W >= 0]] == max_n).any()
    live = evaluate_model(model, data, seq_len=3)
    served = evaluate_model(model, data, store=DictStore(model, vocab), seq_len=3)
    assert served.nats == pytest.approx(live.nats, abs=1e-5)
    assert served.matched == live.matched


def test_windows_that_are_kept_are_spread_evenly():
    tokens = np.arange(28)  # nine windows of three, and the last target
    data = tag(tokens, np.array([0, 28]), None)
    begins = [batch.tokens_BT[:, 0].tolist() for batch in data.evaluation_batches(3, 2, max_windows=5)]
    assert begins == [[0, 6], [12, 18], [24]]
    assert sum(len(batch.tokens_BT) for batch in data.evaluation_batches(3, 2)) == 9


def test_a_loss_measured_in_bfloat16_is_that_in_float32_but_for_its_last_bits(case):
    data, _, model, store = case
    for options in ({}, {"store": store}):
        exact, rough = evaluate_model(model, data, **options), evaluate_model(model, data, bf16=True, **options)
        assert rough.nats != exact.nats
        assert rough.nats == pytest.approx(exact.nats, abs=1e-2)


@pytest.mark.parametrize(
    ("nats", "perplexity"), [(0.0, 1.0), (np.log(2.0), 2.0), (709.0, np.exp(709.0)), (1e5, np.inf)]
)
def test_a_loss_beyond_all_floats_has_an_infinite_perplexity(nats, perplexity):
    assert Evaluation(nats, 1, 0.0, 1.0).perplexity == pytest.approx(perplexity)


def test_the_mean_loss_does_not_depend_on_the_batch_size(case):
    data, _, model, _ = case
    assert evaluate_model(model, data, batch_size=1).nats == pytest.approx(evaluate_model(model, data).nats, abs=1e-5)


def test_the_loss_of_a_decoder_that_knows_nothing_is_that_of_a_fair_die(case):
    model = plain()
    with torch.no_grad():
        model.decoder.tokens.weight.zero_()
    assert evaluate_model(model, case[0]).nats == pytest.approx(np.log(40), abs=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 9), st.sampled_from([np.int64, np.uint64]))
@example([0], 1, np.int64)
@example([1], 1, np.uint64)
@example([], 4, np.int64)
def test_windows_cover_each_document_but_its_last_token(lengths, seq_len, dtype):
    """Documents that are empty or have one token have none."""
    starts = np.cumsum([0, *lengths]).astype(dtype)
    wanted = [
        (begin, min(begin + seq_len, end - 1))
        for first, end in pairwise(starts.tolist())
        for begin in range(first, end - 1, seq_len)
    ]
    begins_W, ends_W = document_windows(starts, seq_len)
    assert begins_W.dtype == ends_W.dtype == np.int64
    assert list(zip(begins_W.tolist(), ends_W.tolist(), strict=True)) == wanted


def test_documents_of_one_token_cannot_be_evaluated():
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate_model(plain(), tag(np.array([1, 2]), np.array([0, 1, 2]), None))


def stored(path, ngrams, dim=32):
    """An open store whose rows no token embedding has: the n-gram's length everywhere."""
    with ngramstore.build(path, dim=dim, max_n=2, codec="f32") as build:
        for n in sorted({len(ngram) for ngram in ngrams}):
            chosen = [ngram for ngram in ngrams if len(ngram) == n]
            build.add(chosen, np.full((len(chosen), dim), n, np.float32))
    return ngramstore.open(path)


@pytest.fixture
def singles(tmp_path):
    with stored(tmp_path / "singles", [(1, 2), *((token,) for token in range(40))]) as store:
        yield store


@pytest.mark.parametrize("options", [{}, {"min_length": 2}, {"min_length": 1}])
def test_rows_of_single_tokens_count_where_the_serving_module_takes_them(case, singles, options):
    decoder = case[2].decoder
    tokens = np.array([3, 1, 2, 1, 2, 2])
    served = NGramEmbedding(singles, decoder.tokens, **options)(torch.from_numpy(tokens[None]))
    assert (served[0, [2, 4]] == 2).all() and (served[0, [0, 1, 3, 5]] == 1).all() == (options == {"min_length": 1})
    batch = next(tag(tokens, np.array([0, len(tokens)]), None).evaluation_batches(16, 1))
    with torch.no_grad():
        evaluating, _ = evaluate._served(decoder, singles, options.get("min_length", 2))(batch)
    assert torch.equal(evaluating, served[:, :5])


def test_perplexity_is_measured_without_rows_of_single_tokens_unless_asked_for(case, singles, tmp_path):
    data, _, model, _ = case
    with stored(tmp_path / "pairs", [(1, 2)]) as pairs:
        want = evaluate_model(model, data, store=pairs).nats
    assert evaluate_model(model, data, store=singles).nats == want
    assert abs(evaluate_model(model, data, store=singles, min_length=1).nats - want) > 0.01


@pytest.mark.parametrize("min_length", [0, -1])
def test_a_length_that_no_ngram_has_is_refused(case, singles, min_length):
    data, _, model, _ = case
    with pytest.raises(UsageError, match=f"min_length is {min_length}"):
        evaluate_model(model, data, store=singles, min_length=min_length)
    with pytest.raises(UsageError, match=f"min_length is {min_length}"):
        NGramEmbedding(singles, model.decoder.tokens, min_length=min_length)


def test_greedy_generation_takes_what_the_whole_forward_pass_likes_best(case):
    data, vocab, model, _ = case
    tokens = data.tokens_P[:5].tolist()
    answer = list(generate(model.decoder, live_embedding(model, vocab), tokens, 10, temperature=0))
    for token in answer:
        batch = tag(np.array(tokens), np.array([0, len(tokens)]), vocab).at(np.arange(len(tokens))[None])
        assert int(model(batch)[0, -1].argmax()) == token
        tokens.append(token)


def test_a_prompt_that_does_not_fit_is_refused(case):
    model = case[2]
    with pytest.raises(UsageError, match="do not fit into 32 positions"):
        next(generate(model.decoder, live_embedding(model), [1, 2, 3], 30))


def test_costs_count_what_serves_and_what_trains():
    base, large = cost_of(plain()), cost_of(plain(decoder=DECODER.scaled(2.0)))
    joint = cost_of(scone(), num_fgrams=1000, fgrams_per_token=0.5, mean_length=3.0)
    assert joint.flops_per_token == base.flops_per_token < large.flops_per_token
    assert joint.train_flops_per_token == 3 * (base.flops_per_token + 0.5 * FGRAM.flops_per_fgram(3.0))
    assert (joint.table_rows, joint.decoder_parameters) == (1000, base.parameters)
    hashed = cost_of(HashedModel(DECODER, HashedConfig(num_rows=1000, max_n=5)))
    assert hashed.table_rows == 1000 and hashed.parameters == base.parameters + 1000 * 32


def test_ids_beyond_the_model_s_vocabulary_are_refused_by_name(tmp_path):
    """Wherever tokens meet a model: an embedding would say that an index is out of range, and not which."""
    data, vocab = tagged()
    largest = int(data.tokens_P.max())
    decoder = replace(DECODER, vocab_size=largest)
    small = scone(decoder=decoder)
    message = f"hold token id {largest}, the model has ids 0 to {largest - 1}"
    with pytest.raises(UsageError, match=message):
        evaluate_model(small, data)
    with pytest.raises(UsageError, match=message):
        train_model(small, data, TrainConfig(tokens=100, batch_size=2, seq_len=8))
    with pytest.raises(UsageError, match=message):
        export_table(SconeRows(small), vocab, tmp_path / "store")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=message):
        next(generate(small.decoder, live_embedding(small), np.array([1, largest]), 3))


def test_fgrams_longer_than_the_model_takes_are_refused_by_their_length(case):
    """A_f would say that the sizes of two tensors differ."""
    data, vocab, _, _ = case
    short = scone(fgram=replace(FGRAM, max_n=3))
    message = "n-grams of 4 tokens, the model takes up to 3"
    with pytest.raises(UsageError, match=message):
        evaluate_model(short, data)
    with pytest.raises(UsageError, match=message):
        train_model(short, data, TrainConfig(tokens=100, batch_size=2, seq_len=8))
    with pytest.raises(UsageError, match=message):
        input_sensitivity(short, data)
    with pytest.raises(UsageError, match=message):
        live_embedding(short, vocab)


def test_models_that_run_no_fgram_model_are_measured_whatever_the_fgrams(case):
    """A decoder alone, and one that a store serves."""
    data, _, model, store = case
    served = scone(fgram=replace(FGRAM, max_n=3))
    served.decoder.load_state_dict(model.decoder.state_dict())
    assert evaluate_model(served, data, store=store).nats == evaluate_model(model, data, store=store).nats
    assert evaluate_model(plain(), data).num_tokens == len(data) - 6


@pytest.mark.parametrize("dim", [1, 16])
def test_a_store_of_another_width_is_refused(case, tmp_path, dim):
    """Rows of one number were spread over the whole vector."""
    data, _, model, _ = case
    message = f"the store's rows are {dim} wide, the token embedding's are 32"
    with stored(tmp_path / "store", [(1, 2)], dim) as other:
        with pytest.raises(UsageError, match=message):
            evaluate_model(model.train(), data, store=other)
        assert model.training


class Breaks:
    """A store whose second look-up fails."""

    def __init__(self, store):
        self.store, self.dim, self.max_n, self.calls = store, store.dim, store.max_n, 0

    def lookup(self, tokens_BT):
        self.calls += 1
        if self.calls == 2:
            raise OSError("the disk is gone")
        return self.store.lookup(tokens_BT)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_that_could_not_be_measured_is_left_as_it_was(case, is_training):
    data, _, model, store = case
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_model(model.train(is_training), data, store=Breaks(store))
    assert model.training == is_training


def test_what_is_matched_of_a_served_model_is_what_its_store_found(case, tmp_path):
    data, _, model, store = case
    untagged = tag(np.asarray(data.tokens_P), data.starts, None)
    live, served = evaluate_model(model, data), evaluate_model(model, untagged, store=store)
    assert served.matched == live.matched > 0.3
    with stored(tmp_path / "pairs", [tuple(data.tokens_P[5:7].tolist())]) as pairs:
        assert 0 < evaluate_model(model, data, store=pairs).matched < live.matched / 2


def test_the_training_cost_of_a_scone_model_is_not_told_without_its_load(case):
    data, _, model, _ = case
    assert cost_of(model).train_flops_per_token is None
    config = TrainConfig(tokens=1000, batch_size=4, seq_len=16)
    told = cost_of(model, **fgram_load(data, config))
    assert told.train_flops_per_token > cost_of(plain()).train_flops_per_token
    assert told.table_rows == len(data.fgram_lengths_N)
