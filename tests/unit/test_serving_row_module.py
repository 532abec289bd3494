"""Row tables as the module that they share with n-gram embeddings: tickets, time limits, state, codes, key specs of models."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
import torch
from serving_cases import Slow, embedding_result

import ngramstore
from ngramstore.errors import LookupTimeout, StaleStore, StoreClosed, UsageError
from ngramstore.keys import OverEncodingKeys
from ngramstore_torch import KeysHash, OverEncodingHash, RowTableEmbedding, TrainedTableHash

VOCAB, DIM, SIZES = 7, 8, (11, 13, 17)
HASH = OverEncodingHash(VOCAB, SIZES)
NUM_ROWS = sum(SIZES)


def write_rows(path, codec="f32", seed=0, **options):
    rows = np.random.default_rng(seed).standard_normal((NUM_ROWS, DIM)).astype(np.float32)
    with ngramstore.build(path, dim=DIM, addressing="row", codec=codec, **options) as build:
        build.add_rows(rows)
    return rows


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("row-module") / "store"
    write_rows(path)
    return path


@pytest.fixture
def store(path):
    with ngramstore.open(path) as opened:
        yield opened


def some_tokens(B=3, T=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (B, T)))


@pytest.mark.parametrize("combine", ["sum", "concat", "none"])
def test_tickets_give_what_direct_calls_give(store, combine):
    embed = RowTableEmbedding(store, HASH, combine=combine)
    tokens, history, parts = some_tokens(), embed.new_history(3), []
    for part in tokens.split(5, dim=1):
        ticket = embed.prefetch(part, history=history)
        parts.append(embed(part, history=history, ticket=ticket))
    assert torch.equal(torch.cat(parts, 1), embed(tokens))
    assert embed.stats.as_dict()["tickets_used"] == 3
    with pytest.raises(UsageError, match="other tokens"):
        embed(tokens, ticket=embed.prefetch(some_tokens(seed=1)))


def test_each_row_for_itself_is_what_the_store_has(store):
    embed = RowTableEmbedding(store, HASH, combine="none")
    tokens = some_tokens(2, 4)
    got = embed(tokens)
    assert got.shape == (2, 4, 3, DIM)
    numbers = HASH.rows(embed.new_history(2).windows(tokens.numpy()))
    want = store.rows(np.maximum(numbers, 0))
    want[numbers < 0] = 0
    assert (numbers < 0).sum() == 2 * (3 + 2 + 1) and (numbers >= 0).any()
    np.testing.assert_array_equal(got.numpy(), want)
    assert torch.equal(RowTableEmbedding(store, HASH, combine="concat")(tokens), got.flatten(2))
    assert torch.equal(RowTableEmbedding(store, HASH)(tokens), got.sum(2))


def test_a_ticket_from_before_a_change_is_looked_up_again(tmp_path):
    write_rows(tmp_path / "store")
    with ngramstore.open(tmp_path / "store") as store, ngramstore.open(tmp_path / "store", mode="rw") as writer:
        embed = RowTableEmbedding(store, HASH, combine="none")
        tokens = some_tokens(1, 3)
        ticket = embed.prefetch(tokens)
        ticket.wait()
        writer.put(np.arange(NUM_ROWS), np.full((NUM_ROWS, DIM), 9.0))
        writer.flush()
        store.refresh()
        assert (embed(tokens, ticket=ticket)[0, -1, 0] == 9).all()
        assert embed.stats.as_dict()["tickets_outdated"] == 1


def test_a_slow_store_raises_in_time_and_the_history_stays(store):
    slow = Slow(store)
    embed = RowTableEmbedding(slow, HASH, timeout_s=0.05)
    history = embed.new_history(3)
    began = time.perf_counter()
    with pytest.raises(LookupTimeout, match="36 positions"):
        embed(some_tokens(), history=history)
    with pytest.raises(LookupTimeout):
        embed(some_tokens(), ticket=embed.prefetch(some_tokens(), timeout_s=0.05))
    assert time.perf_counter() - began < 10
    assert history.lengths.tolist() == [0, 0, 0] and embed.stats.as_dict()["timeouts"] == 2
    slow.go.set()
    embed.timeout_s = 10.0
    assert torch.equal(embed(some_tokens(), history=history), RowTableEmbedding(store, HASH)(some_tokens()))


def test_a_closed_store_raises_through_a_ticket_and_in_a_call(path):
    store = ngramstore.open(path)
    embed = RowTableEmbedding(store, HASH)
    store.close()
    with pytest.raises(StoreClosed):
        embed(some_tokens())
    with pytest.raises(StoreClosed):
        embed(some_tokens(), ticket=embed.prefetch(some_tokens()))


def test_candidates_bring_their_rows_into_the_cache(store):
    embed = RowTableEmbedding(store, HASH)
    history = embed.new_history(1)
    embed(some_tokens(1, 5), history=history)
    embed.prefetch_candidates(torch.arange(VOCAB)[None], history).wait(10)
    before = store.stats()["cache_misses"]
    for token in range(VOCAB):
        embed(torch.tensor([[token]]), history=history.select([0]))
    assert store.stats()["cache_misses"] == before and history.lengths.tolist() == [5]


def test_waits_and_positions_are_counted(store):
    embed = RowTableEmbedding(store, HASH)
    embed(some_tokens())
    stats = embed.stats.as_dict()
    assert stats["positions"] == 36 and stats["found"] == 33  # a first token has no 2-gram
    assert 0 < stats["wait_p50_us"] <= stats["wait_p99_us"]


def test_state_dict_knows_the_store_and_the_hash(store, tmp_path):
    own = torch.nn.Embedding(VOCAB, DIM)
    state = RowTableEmbedding(store, HASH, own).state_dict()
    assert set(state) == {"token_embedding.weight", "_extra_state"}
    RowTableEmbedding(store, OverEncodingHash(VOCAB, SIZES), torch.nn.Embedding(VOCAB, DIM)).load_state_dict(state)
    for other in (OverEncodingHash(VOCAB, SIZES[::-1]), TrainedTableHash(10, 4), TrainedTableHash(10, 3)):
        with pytest.raises(UsageError, match="another hash"):
            RowTableEmbedding(store, other, torch.nn.Embedding(VOCAB, DIM)).load_state_dict(state)
    write_rows(tmp_path / "other", seed=1)
    with ngramstore.open(tmp_path / "other") as other_store, pytest.raises(StaleStore):
        RowTableEmbedding(other_store, HASH, torch.nn.Embedding(VOCAB, DIM)).load_state_dict(state)


def test_copies_share_the_store_and_pickles_open_it_again(store):
    embed = RowTableEmbedding(store, HASH, torch.nn.Embedding(VOCAB, DIM))
    embed.prefetch(some_tokens()).wait()
    twin, far = copy.deepcopy(embed), pickle.loads(pickle.dumps(embed))
    assert twin.store is store and far.store is not store and twin.stats is not embed.stats
    for other in (twin, far):
        assert torch.equal(other(some_tokens()), embed(some_tokens()))
    far.store.close()


def test_a_fork_opens_the_store_for_itself(store):
    embed = RowTableEmbedding(store, HASH)
    embed.prefetch(some_tokens()).wait()  # the parent's workers run, the child has none
    assert torch.equal(embedding_result(embed, some_tokens()), embed(some_tokens()))


def test_a_compiled_model_around_it_answers_the_same(store):
    torch._dynamo.reset()
    embed, head = RowTableEmbedding(store, HASH), torch.nn.Linear(DIM, 3)

    def model(tokens):
        return torch.relu(head(embed(tokens) * 2))

    assert torch.equal(torch.compile(model, backend="aot_eager")(some_tokens()), model(some_tokens()))


@pytest.mark.parametrize(
    "codec", ["int8", {"name": "e4m3", "block": 4}, {"name": "e4m3", "block": 0, "scale": "0x1p-6"}]
)
def test_codes_and_scales_multiply_to_the_rows(codec, tmp_path):
    write_rows(tmp_path / "store", codec)
    with ngramstore.open(tmp_path / "store") as store:
        tokens, mask = some_tokens(), torch.ones(3, 12, dtype=torch.int64)
        mask[1, :4] = 0
        mask[2, 3:9] = 0
        embed = RowTableEmbedding(store, HASH, combine="codes")
        history = embed.new_history(3)
        embed(some_tokens(seed=5), history=history)
        given = {"attention_mask": mask, "history": history.select([0, 1, 2])}
        codes, scales = embed(tokens, **given, ticket=embed.prefetch(tokens, **given))
        assert codes.shape == (3, 12, 3, DIM)
        assert codes.dtype == (torch.int8 if codec == "int8" else torch.float8_e4m3fn)
        rows = codes.float() * scales.repeat_interleave(DIM // scales.shape[-1], -1)
        want = RowTableEmbedding(store, HASH, combine="none")(tokens, attention_mask=mask, history=history)
        assert torch.equal(rows, want) and not want[2, 3:9].any() and want[2, 9:].any()


@pytest.mark.parametrize("dim", [6, 8, 33])
@pytest.mark.parametrize("codec", ["int8", {"name": "e4m3", "block": 4}])
def test_one_token_of_one_row_has_codes_and_scales(codec, dim, tmp_path):
    rows = np.random.default_rng(0).standard_normal((10, dim)).astype(np.float32)
    with ngramstore.build(tmp_path / "store", dim=dim, addressing="row", codec=codec) as build:
        build.add_rows(rows)
    with ngramstore.open(tmp_path / "store") as store:
        hasher = TrainedTableHash(10, 2)
        embed = RowTableEmbedding(store, hasher, combine="codes")
        history = embed.new_history(1)
        line = [3, 1, 4, 1, 5, 9, 2, 6]
        want = RowTableEmbedding(store, hasher, combine="none")(torch.tensor([line]))
        for t, token in enumerate(line):
            codes, scales = embed(torch.tensor([[token]]), history=history)
            assert codes.shape == (1, 1, 1, dim)
            covered = dim if codec == "int8" else codec["block"]
            got = codes.float() * scales.repeat_interleave(covered, -1)[..., :dim]
            assert torch.equal(got, want[:, t : t + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_come_in_the_type_of_the_module(dtype, tmp_path):
    write_rows(tmp_path / "store", {"name": "e4m3", "block": 4})
    with ngramstore.open(tmp_path / "store") as store:
        for combine in ("none", "concat", "sum"):
            wide = RowTableEmbedding(store, HASH, combine=combine)(some_tokens())
            got = RowTableEmbedding(store, HASH, combine=combine).to(dtype)(some_tokens())
            assert got.dtype == dtype and torch.equal(got, wide.to(dtype))


KEYS = OverEncodingKeys(vocab_size=VOCAB, orders=(1, 2, 3), sizes=(7, 13, 21), absent_token_id=2, eos_token_id=5)


def test_key_specs_of_models_are_hashes_and_an_import_leaves_one(tmp_path):
    write_rows(tmp_path / "store", metadata={"keys": KEYS.spec()})
    with ngramstore.open(tmp_path / "store") as store:
        embed = RowTableEmbedding(store, combine="none")
        assert isinstance(embed.hasher, KeysHash) and embed.max_n == 3
        tokens = some_tokens()
        np.testing.assert_array_equal(embed(tokens).numpy(), store.rows(KEYS.rows(tokens.numpy())))
        history = embed.new_history(3)
        parts = [embed(part, history=history) for part in tokens.split([1, 1, 4, 6], 1)]
        assert torch.equal(torch.cat(parts, 1), embed(tokens))


def test_documents_and_holes_are_to_a_key_spec_what_separate_sequences_are(tmp_path):
    write_rows(tmp_path / "store")
    with ngramstore.open(tmp_path / "store") as store:
        embed = RowTableEmbedding(store, KEYS, combine="none")
        tokens = some_tokens(1, 10)
        starts = torch.zeros(1, 10, dtype=torch.bool)
        starts[0, 4] = True
        apart = torch.cat((embed(tokens[:, :4]), embed(tokens[:, 4:])), 1)
        assert not torch.equal(apart, embed(tokens))
        assert torch.equal(embed(tokens, starts=starts), apart)
        mask = torch.ones(1, 10, dtype=torch.int64)
        mask[0, 3:6] = 0
        got = embed(tokens, attention_mask=mask)
        assert torch.equal(got[:, mask[0].bool()], embed(tokens[:, mask[0].bool()])) and not got[0, 3:6].any()


def test_what_cannot_work_is_refused(store):
    for options, what in (
        ({"combine": "none", "token_embedding": torch.nn.Embedding(VOCAB, DIM)}, "takes no token embedding"),
        ({"combine": "codes"}, "no codes of 8 bits"),
        ({"token_embedding": torch.nn.Embedding(VOCAB, DIM + 1)}, "8 wide"),
    ):
        with pytest.raises(UsageError, match=what):
            RowTableEmbedding(store, HASH, **options)
    with pytest.raises(UsageError, match="does not say how tokens are hashed"):
        RowTableEmbedding(store)
    with pytest.raises(UsageError, match="names 1000 rows"):
        RowTableEmbedding(store, TrainedTableHash(500, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("codec", ["f32", "int8", "e4m3"])
@pytest.mark.parametrize("combine", ["sum", "concat", "none", "codes"])
def test_on_a_gpu_the_answer_is_the_cpus(codec, combine, tmp_path):
    if combine == "codes" and codec == "f32":
        pytest.skip("f32 has no codes")
    write_rows(tmp_path / "store", codec)
    with ngramstore.open(tmp_path / "store") as store:
        own = torch.nn.Embedding(VOCAB, DIM) if combine in ("sum", "concat") else None
        embed = RowTableEmbedding(store, HASH, own, combine=combine)
        want = embed(some_tokens())
        embed = embed.to("cuda")
        got = embed(some_tokens().cuda(), ticket=embed.prefetch(some_tokens()))
        for g, w in zip(got, want, strict=True) if combine == "codes" else [(got, want)]:
            assert g.device.type == "cuda"
            torch.testing.assert_close(g.cpu().float(), w.float(), atol=1e-6, rtol=0)
