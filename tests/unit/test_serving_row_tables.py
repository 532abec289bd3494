"""Row-addressed tables: numbers by plain integers, sums and joins, and the trained hashed model served from a store."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from serving_cases import write
from torch_cases import DECODER, language

import ngramstore
from ngramstore.errors import UsageError
from ngramstore.keys import keys_from_config, keys_from_spec
from ngramstore_torch import KeysHash, NGramHistory, OverEncodingHash, RowTableEmbedding, Windows
from ngramstore_torch.data.batches import tag
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.serving.row_tables import TrainedTableHash

VOCAB, DIM, SIZES = 7, 5, (11, 13, 17, 19)  # two tables for n = 2, two for n = 3


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    rows = np.random.default_rng(0).standard_normal((sum(SIZES), DIM)).astype(np.float32)
    path = tmp_path_factory.mktemp("rows") / "store"
    with ngramstore.build(path, dim=DIM, addressing="row", codec="f32") as build:
        build.add_rows(rows)
    with ngramstore.open(path) as store:
        yield rows, store


def numbers_of(document):
    """Row numbers of a document's last token, with Python's integers; None where the n-gram begins before it."""
    found, first = [], 0
    for j, size in enumerate(SIZES):
        n = 2 + j // 2
        if len(document) < n:
            found.append(None)
        else:
            value = sum(token * VOCAB**power for power, token in enumerate(reversed(document[-n:])))
            found.append(first + value % size)
        first += size
    return found


def want(rows, tokens, mask, starts, combine):
    out = np.zeros((*tokens.shape, len(SIZES), DIM), np.float32)
    for b in range(len(tokens)):
        document = []
        for t in range(tokens.shape[1]):
            if not mask[b, t]:
                continue
            document = [int(tokens[b, t])] if starts[b, t] else [*document, int(tokens[b, t])]
            for j, number in enumerate(numbers_of(document)):
                if number is not None:
                    out[b, t, j] = rows[number]
    return out.sum(2) if combine == "sum" else out.reshape(*tokens.shape, -1)


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_those_of_the_plain_formula_in_any_chunks(case, combine, seed):
    rows, store = case
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (3, 14))
    mask = rng.random((3, 14)) < (0.7 if seed % 2 else 1.1)
    starts = rng.random((3, 14)) < 0.2
    embed = RowTableEmbedding(store, OverEncodingHash(VOCAB, SIZES, per_length=2), combine=combine)
    history, parts = embed.new_history(3), []
    for part in np.split(np.arange(14), sorted(rng.integers(0, 14, 3))):
        parts.append(
            embed(
                torch.from_numpy(tokens[:, part]), history=history, attention_mask=mask[:, part], starts=starts[:, part]
            )
        )
    np.testing.assert_allclose(torch.cat(parts, 1).numpy(), want(rows, tokens, mask, starts, combine), atol=1e-6)


def test_large_vocabularies_and_tables_do_not_overflow(case):
    hasher = OverEncodingHash(1 << 32, [(1 << 31) - 1] * 3)
    from ngramstore_torch.serving.history import NGramHistory

    tokens = np.array([[(1 << 32) - 1, (1 << 32) - 2, 7, (1 << 32) - 3]])
    got = hasher.rows(NGramHistory(1, hasher.max_n).windows(tokens))[0, -1]
    base, size = 1 << 32, (1 << 31) - 1
    for j, n in enumerate((2, 3, 4)):
        value = sum(int(token) * base**power for power, token in enumerate(reversed(tokens[0, -n:].tolist())))
        assert got[j] == value % size + j * size


def test_a_trained_hashed_model_is_served_from_a_store(tmp_path):
    torch.manual_seed(0)
    model = HashedModel(DECODER, HashedConfig(num_rows=120, max_n=4))
    torch.nn.init.normal_(model.tables.weight)
    path = tmp_path / "store"
    with ngramstore.build(path, dim=DECODER.dim, addressing="row", codec="f32") as build:
        build.add_rows(model.tables.weight.detach().numpy())
    tokens, offsets = language(3)
    data = tag(tokens, offsets, None)
    index = np.arange(len(tokens))[None]
    with ngramstore.open(path) as store, torch.no_grad():
        embed = RowTableEmbedding(store, TrainedTableHash(model.config.rows_per_table, 4), model.decoder.tokens)
        starts = np.zeros((1, len(tokens)), bool)
        starts[0, offsets[:-1]] = True
        got = embed(torch.from_numpy(tokens[None].astype(np.int64)), starts=starts)
        torch.testing.assert_close(got, model.inputs(data.at(index, history=model.history)))


def test_the_token_table_is_added_to_a_sum_and_put_in_front_of_a_join_and_trains(case):
    _, store = case
    hasher, own = OverEncodingHash(VOCAB, SIZES, per_length=2), torch.nn.Embedding(VOCAB, DIM)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCAB, (2, 6)))
    alone = RowTableEmbedding(store, hasher)(tokens)
    summed = RowTableEmbedding(store, hasher, own)
    assert torch.equal(summed(tokens), own(tokens) + alone)
    joined = RowTableEmbedding(store, hasher, own, combine="concat")(tokens)
    assert joined.shape == (2, 6, DIM * 5)
    assert torch.equal(joined[..., :DIM], own(tokens))
    summed(tokens).sum().backward()
    assert own.weight.grad.sum() == tokens.numel() * DIM
    for twin in (copy.deepcopy(summed), pickle.loads(pickle.dumps(summed))):
        assert torch.equal(twin(tokens), summed(tokens))


class Listing:
    """A hash of one's own: it keeps what it is asked, and gives each token the row of its own number."""

    max_n, rows_per_token = 3, 1

    def __init__(self):
        self.asked = []

    def rows(self, windows: Windows) -> np.ndarray:
        T = windows.room_BT.shape[1]
        for tokens_S, room_T in zip(windows.tokens_BS.tolist(), windows.room_BT.tolist(), strict=True):
            assert len(tokens_S) == self.max_n - 1 + T
            self.asked.append([tokens_S[3 + t - room : 3 + t] for t, room in enumerate(room_T)])
        return np.where(windows.room_BT > 0, windows.tokens_BS[:, -T:].astype(np.int64), -1)[..., None]


def test_a_hash_of_ones_own_is_given_each_token_with_those_before_it(case):
    rows, store = case
    hasher = Listing()
    embed = RowTableEmbedding(store, hasher)
    history = embed.new_history(2)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 2]])
    starts, mask = np.zeros((2, 4), bool), np.ones((2, 4), bool)
    starts[0, 2], mask[1, 1] = True, False
    got = embed(tokens, history=history, starts=starts, attention_mask=mask).numpy()
    assert hasher.asked[0] == [[1], [1, 2], [3], [3, 4]]
    assert sorted(hasher.asked[1]) == [[], [5], [5, 0], [5, 0, 2]]
    wanted = rows[tokens.numpy()]
    wanted[1, 1] = 0
    np.testing.assert_array_equal(got, wanted)
    embed(torch.tensor([[6], [1]]), history=history)
    assert hasher.asked[2:] == [[[3, 4, 6]], [[0, 2, 1]]]


def test_what_cannot_work_is_refused(case, tmp_path):
    _, store = case
    with pytest.raises(UsageError, match="holds 60"):
        RowTableEmbedding(store, OverEncodingHash(VOCAB, [61]))
    with pytest.raises(UsageError, match="combine is 'mean'"):
        RowTableEmbedding(store, OverEncodingHash(VOCAB, SIZES), combine="mean")
    with pytest.raises(UsageError, match="sizes"):
        OverEncodingHash(VOCAB, SIZES, per_length=3)
    other = write(tmp_path / "store", {(1, 2): np.ones(DIM, np.float32)})
    with ngramstore.open(other) as ngrams, pytest.raises(UsageError, match="by n-gram"):
        RowTableEmbedding(ngrams, OverEncodingHash(VOCAB, SIZES))


def test_ids_that_the_hash_does_not_have_are_refused():
    """Row numbers would come out all the same: those of other n-grams."""
    hasher = OverEncodingHash(vocab_size=10, sizes=[97, 101])
    history = NGramHistory(1, hasher.max_n)
    assert hasher.rows(history.windows(np.array([[1, 9]]))).shape == (1, 2, 2)
    with pytest.raises(UsageError, match=r"token id 10 is out of range.*\n.*0 to 9"):
        hasher.rows(history.windows(np.array([[1, 10]])))


def test_engrams_keys_without_their_token_map_are_refused_when_the_module_is_made():
    """The store does not hold the map: the error says how to give it, before a first token comes."""
    config = {
        "engram_layer_ids": [1, 14],
        "engram_max_ngram_size": 4,
        "engram_vocab_size": 50,
        "engram_n_heads": 8,
        "engram_head_dim": 256,
        "engram_pad_token_id": 2,
        "engram_compressed_vocab_size": 10,
    }
    token_map = np.arange(40) % 10
    keys = keys_from_config(config, token_map=token_map)
    assert KeysHash(keys).rows_per_token == keys.num_heads
    with pytest.raises(UsageError, match="token map") as caught:
        KeysHash(keys_from_spec(keys.spec()))
    assert "token_map_of(tokenizer)" in caught.value.hint
    assert KeysHash(keys_from_spec(keys.spec(), token_map=token_map)).num_rows == keys.num_rows
