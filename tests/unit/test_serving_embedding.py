"""The embedding as a module: gradients, types, state, copies, processes, compilation, and its history's errors."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import serving_cases
import torch
from serving_cases import DIM, MAX_N, VOCAB, some_tokens, table, vectors, want_of, write

import ngramstore
from ngramstore.errors import StaleStore, UsageError
from ngramstore_torch import NGramEmbedding, NGramHistory

path, embed = serving_cases.path, serving_cases.embed


def test_vectors_are_the_longest_ngram_or_the_tokens_own(embed):
    tokens = some_tokens()
    np.testing.assert_array_equal(embed(tokens).detach().numpy(), want_of(embed, tokens))


def test_the_gradient_reaches_the_token_table_only_where_it_was_used(embed):
    tokens = some_tokens()
    embed(tokens).sum().backward()
    lengths = embed.store.match(tokens.numpy())
    used = np.bincount(tokens.numpy()[lengths < 2], minlength=VOCAB)
    assert 0 < used.sum() < tokens.numel()
    np.testing.assert_array_equal(embed.token_embedding.weight.grad.numpy(), np.repeat(used[:, None], DIM, 1))


def test_rows_do_not_change_when_a_result_is_written_into(embed):
    tokens = some_tokens()
    with torch.no_grad():
        embed(tokens).fill_(7)
        np.testing.assert_array_equal(embed(tokens).numpy(), want_of(embed, tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_type_of_the_token_table(embed, dtype):
    embed = copy.deepcopy(embed).to(dtype)
    got = embed(some_tokens())
    want = torch.from_numpy(
        vectors(table(), embed.token_embedding.weight.detach().float().numpy(), some_tokens().numpy())
    )
    assert got.dtype == dtype
    assert torch.equal(got.detach(), want.to(dtype))


def test_without_a_token_table_unmatched_tokens_are_zeros(path):
    with ngramstore.open(path) as store:
        embed = NGramEmbedding(store, min_length=3)
        got = embed(some_tokens())
        want = store.lookup(some_tokens().numpy())
        want.rows[want.length < 3] = 0
        assert (want.length == 2).any() and (want.length >= 3).any()
        np.testing.assert_array_equal(got.numpy(), want.rows)
        assert embed.to(torch.float16)(some_tokens()).dtype == torch.float16


def test_without_a_token_table_rows_are_float32_on_the_cpu_whatever_the_defaults(path):
    """In bfloat16 they were rounded; "meta" stands for any other device."""
    before = torch.get_default_dtype()
    with ngramstore.open(path) as store:
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                embed = NGramEmbedding(store)
        finally:
            torch.set_default_dtype(before)
        got, want = embed(some_tokens()), store.lookup(some_tokens().numpy())
        assert (got.dtype, got.device.type) == (torch.float32, "cpu")
        want.rows[want.length < 2] = 0
        assert (want.length >= 2).any()
        np.testing.assert_array_equal(got.numpy(), want.rows)


def test_state_dict_has_no_rows_and_refuses_another_store(embed, path, tmp_path):
    state = embed.state_dict()
    assert set(state) == {"token_embedding.weight", "_extra_state"}
    assert state["_extra_state"].numel() < 200
    with ngramstore.open(path) as again:
        NGramEmbedding(again, torch.nn.Embedding(VOCAB, DIM)).load_state_dict(state)
    with ngramstore.open(write(tmp_path / "other", table(seed=1))) as other:
        fresh = NGramEmbedding(other, torch.nn.Embedding(VOCAB, DIM))
        with pytest.raises(StaleStore, match="belong to store"):
            fresh.load_state_dict(state)


def test_state_survives_a_file_that_may_hold_tensors_only(embed):
    file = io.BytesIO()
    torch.save(embed.state_dict(), file)
    file.seek(0)
    embed.load_state_dict(torch.load(file, weights_only=True))


def test_a_deep_copy_has_its_own_token_table_and_shares_the_store(embed):
    twin = copy.deepcopy(embed)
    with torch.no_grad():
        twin.token_embedding.weight.zero_()
    assert twin.store is embed.store
    np.testing.assert_array_equal(embed(some_tokens()).detach().numpy(), want_of(embed, some_tokens()))
    assert (twin(some_tokens()) == 0).any()
    assert twin.stats is not embed.stats


def test_a_pickled_module_opens_the_store_again(embed):
    twin = pickle.loads(pickle.dumps(embed))
    assert twin.store is not embed.store
    assert twin.store.identity == embed.store.identity
    assert torch.equal(twin(some_tokens()), embed(some_tokens()))
    twin.store.close()


class Lines(torch.utils.data.Dataset):
    """A data set whose items are looked up where they are made."""

    def __init__(self, embed):
        self.embed = embed

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return self.embed(some_tokens(1, 9, seed=index))[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_open_the_store_for_themselves(embed, method):
    embed(some_tokens())  # the parent's handle is in use, its workers run
    embed.prefetch(some_tokens()).wait()
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    loader = torch.utils.data.DataLoader(Lines(embed), batch_size=2, num_workers=1, multiprocessing_context=method)
    got = torch.cat(list(loader)).numpy()
    want = np.concatenate([want_of(embed, some_tokens(1, 9, seed=i)) for i in range(4)])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_around_it_answers_the_same(embed, backend):
    """Whole lines, and one token at a time with a history: a look-up is a break in the graph, not a part of it."""
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler here")
    torch._dynamo.reset()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = embed, torch.nn.Linear(DIM, 5)

        def forward(self, tokens, history=None):
            return torch.relu(self.head(self.embed(tokens, history=history) * 2))

    model = Model()
    compiled = torch.compile(model, backend=backend)
    for seed in range(3):
        torch.testing.assert_close(compiled(some_tokens(seed=seed)), model(some_tokens(seed=seed)))
    tokens, history = some_tokens(1, 9), embed.new_history(1)
    with torch.no_grad():
        steps = [compiled(tokens[:, t : t + 1], history) for t in range(9)]
        torch.testing.assert_close(torch.cat(steps, 1), model(tokens))
    assert history.lengths.tolist() == [9]
    compiled(some_tokens()).sum().backward()  # T trains through the break
    assert embed.token_embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("num", [1, 5, 40])
def test_hundreds_of_steps_of_several_sequences_give_what_whole_lines_give(path, num):
    """More steps than a history has spare room for, more sequences than a small cache has rows for."""
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, VOCAB, (num, 600)))
    for cache_bytes in (1 << 20, 1 << 9):
        with ngramstore.open(path, cache_bytes=cache_bytes) as store, torch.no_grad():
            embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
            history = embed.new_history(num)
            steps = [embed(tokens[:, t : t + 1], history=history) for t in range(600)]
            assert torch.equal(torch.cat(steps, 1), embed(tokens))
            assert history.lengths.tolist() == [600] * num
            assert embed.stats.positions == 2 * tokens.numel()


def test_tokens_after_a_failed_call_are_not_in_the_history(embed):
    history = embed.new_history(1)
    embed(some_tokens(1, 5), history=history)
    for bad in ([[-1]], [[1, -1]]):
        with pytest.raises(UsageError, match="-1"):
            embed(torch.tensor(bad), history=history)
    assert history.lengths.tolist() == [5]


def test_a_store_of_another_width_is_refused(path):
    with ngramstore.open(path) as store, pytest.raises(UsageError, match=f"{DIM} wide"):
        NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM + 1))


def test_truncate_needs_the_tokens_before(embed):
    history = embed.new_history(1, max_rollback=2)
    embed(some_tokens(1, 30), history=history)
    history.truncate(2)
    history.truncate(1)  # K - 1 tokens and one more are left of K + 2
    with pytest.raises(UsageError, match="max_rollback above 2"):
        history.truncate(1)
    with pytest.raises(UsageError, match="truncate by 28"):
        history.truncate(28)
    assert history.lengths.tolist() == [27]


@pytest.mark.parametrize("of", [np.uint64, np.uint8, torch.tensor], ids=["u64", "u8", "tensor"])
def test_truncate_takes_counts_of_any_integers(embed, of):
    tokens = some_tokens(2, 12)
    history = embed.new_history(2)
    embed(tokens, history=history)
    history.truncate(np.array([3, 1], of) if of is not torch.tensor else of([3, 1]))
    assert history.lengths.tolist() == [9, 11]
    kept = history.select([0])
    again = embed.new_history(1)
    embed(tokens[:1, :9], history=again)
    one = some_tokens(1, 4, seed=9)
    assert torch.equal(embed(one, history=kept), embed(one, history=again))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_a_token_table_whose_weight_is_not_in_the_type_of_its_vectors_is_refused(path, dtype):
    """Rows are given in the type of the weight: 0.3 as an int8 would be 0."""

    class Quantized(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.zeros(VOCAB, DIM).to(dtype))

    with ngramstore.open(path) as store, pytest.raises(UsageError, match="rows cannot be given in that type"):
        NGramEmbedding(store, Quantized())


def test_ids_go_where_the_token_table_is(embed, monkeypatch):
    """Not only where none of them is needed there."""
    asked = []

    class Elsewhere(torch.Tensor):
        """Ids that say when they are moved."""

        def to(self, device, *arguments, **options):
            asked.append(torch.device(device))
            return self.as_subclass(torch.Tensor)

    tokens = some_tokens()
    got = embed(tokens.as_subclass(Elsewhere))
    np.testing.assert_array_equal(got.detach().numpy(), want_of(embed, tokens))
    assert asked == [embed.token_embedding.weight.device]


@pytest.mark.parametrize(
    "call",
    [
        lambda h: h.windows(np.zeros((3, 1), np.int64)),
        lambda h: h.windows(np.zeros((2, 1), np.int64), np.ones((2, 2), bool)),
        lambda h: h.windows(np.zeros((2, 1), np.int64), np.ones((2, 1), np.float32)),
        lambda h: h.windows(np.full((2, 1), 1 << 32)),
        lambda h: h.select([2]),
        lambda h: h.truncate(-1),
        lambda h: NGramHistory(2, 17),
    ],
)
def test_a_history_refuses_what_does_not_fit(call):
    with pytest.raises(UsageError):
        call(NGramHistory(2, MAX_N))


def test_statistics_count_calls_positions_and_waits(embed):
    tokens = some_tokens()
    embed(tokens)
    embed(tokens, ticket=embed.prefetch(tokens))
    stats = embed.stats.as_dict()
    assert (stats["calls"], stats["positions"]) == (2, 2 * tokens.numel())
    assert stats["found"] == 2 * int((embed.store.match(tokens.numpy()) >= 2).sum())
    assert stats["tickets_used"] == 1
    assert 0 < stats["wait_p50_us"] <= stats["wait_p99_us"]


def test_lines_move_with_their_tokens_their_room_and_their_length():
    history = NGramHistory(3, MAX_N)
    tokens = np.arange(1, 13).reshape(3, 4)
    history.push(tokens, np.arange(4) < np.array([[1], [2], [4]]))
    assert history.room.tolist() == [1, 2, 4]
    for moved in (history.select(np.array([2, 0, 1, 2])), history.select(torch.tensor([2, 0, 1, 2]))):
        assert moved.room.tolist() == [4, 1, 2, 4]
        assert moved.lengths.tolist() == [4, 1, 2, 4]
        assert moved.context.tolist() == [[10, 11, 12], [0, 0, 1], [0, 5, 6], [10, 11, 12]]
    history.reorder([2, 2, 0])
    assert (history.room.tolist(), history.lengths.tolist()) == ([4, 4, 1], [4, 4, 1])
    history.reset([1])
    assert (history.room.tolist(), history.lengths.tolist()) == ([4, 0, 1], [4, 0, 1])
    assert history.select(np.array([True, False, True])).lengths.tolist() == [4, 1]


def test_a_history_is_as_it_was_when_the_token_embedding_refuses_a_token(embed):
    """By the short way of single tokens, and by the long way."""
    history = embed.new_history(1)
    embed(some_tokens(1, 5), history=history)
    before = history.context, history.lengths
    for bad in ([[VOCAB + 3]], [[1, VOCAB + 3]]):
        with pytest.raises(IndexError):
            embed(torch.tensor(bad), history=history)
        assert np.array_equal(history.context, before[0]) and np.array_equal(history.lengths, before[1])


@pytest.mark.parametrize("lines", [[3], [-1], [0.5], 1, [[0, 1]], [True, False], "a"])
def test_lines_that_a_history_does_not_have_are_refused(lines):
    history = NGramHistory(3, MAX_N)
    for call in (history.select, history.reorder, history.reset):
        with pytest.raises(UsageError, match="of 3 sequences"):
            call(lines)
    assert history.batch_size == 3


def test_single_tokens_are_integers(embed):
    history = embed.new_history(1)
    for bad in (torch.tensor([[2.7]]), torch.tensor([[True]])):
        with pytest.raises(UsageError, match="integers"):
            embed(bad, history=history)
    with pytest.raises(UsageError, match="holds 1 sequences"):
        history.truncate([0, 0])


@pytest.mark.parametrize("tokens", [[[3, 14]], np.array([[3]]), (3,), None], ids=["list", "array", "tuple", "None"])
def test_tokens_are_a_tensor(embed, tokens):
    """One token of a line with a history has a way of its own."""
    for call in (
        lambda: embed(tokens),
        lambda: embed(tokens, history=embed.new_history(1)),
        lambda: embed.prefetch(tokens),
        lambda: embed.prefetch_candidates(tokens, embed.new_history(1)),
    ):
        with pytest.raises(UsageError, match=rf"tokens are a {type(tokens).__name__}\n.*torch.tensor\(\[\[3, 14\]\]\)"):
            call()


def test_one_more_token_is_an_integer_of_any_type():
    history = NGramHistory(1, MAX_N)
    for token in (5, np.int64(5), np.uint8(5)):
        tokens, end, room = history._next_one(token)
        assert (int(tokens[end - 1]), room) == (5, 1)
    for bad in (True, np.bool_(True), 5.0, np.float32(5), np.int64(-1), np.uint64(1 << 32)):
        with pytest.raises(UsageError, match="token ids are integers"):
            history._next_one(bad)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (3, 20), (3, 40)])
def test_look_ups_need_no_particular_default_device(embed, shape):
    """`torch.set_default_device("cuda")` is how many load models; "meta" stands for any other device here."""
    tokens, want = some_tokens(*shape), want_of(embed, some_tokens(*shape))
    with torch.device("meta"):
        ticket = embed.prefetch(tokens)
        with_ticket, without = embed(tokens, ticket=ticket), embed(tokens, history=embed.new_history(shape[0]))
    np.testing.assert_array_equal(with_ticket.detach().numpy(), want)
    np.testing.assert_array_equal(without.detach().numpy(), want)


def test_a_ticket_made_in_inference_mode_is_good_outside_it(embed):
    tokens = some_tokens(4, 60)
    embed.token_embedding.weight.requires_grad_(False)
    embed.eval()
    with torch.inference_mode():
        ticket = embed.prefetch(tokens)
    np.testing.assert_array_equal(embed(tokens, ticket=ticket).numpy(), want_of(embed, tokens))


def test_hooks_of_a_frozen_token_table_see_whole_lines_in_training(embed):
    """As those of NEFTune, which read the shape (B, T, D)."""
    tokens, shapes = some_tokens(4, 60), []
    embed.token_embedding.weight.requires_grad_(False)
    embed.token_embedding.register_forward_hook(lambda module, given, made: shapes.append(made.shape))
    np.testing.assert_array_equal(embed.train()(tokens).numpy(), want_of(embed, tokens))
    assert shapes == [(4, 60, DIM)]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_a_number_above_zero(embed, timeout_s):
    with pytest.raises(UsageError, match="timeout_s is"):
        NGramEmbedding(embed.store, embed.token_embedding, timeout_s=timeout_s)
    with pytest.raises(UsageError, match="timeout_s is"):
        embed.prefetch(some_tokens(), timeout_s=timeout_s)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))])
def test_a_copied_history_goes_on_from_where_it_was(embed, copied):
    """Single tokens are written into a line kept at hand, which a copy must not share or lose."""
    tokens = torch.from_numpy(np.random.default_rng(8).integers(0, VOCAB, (1, 40)))
    history = embed.new_history(1)
    for t in range(20):
        embed(tokens[:, t : t + 1], history=history)
    twin = copied(history)
    for t in range(20, 40):
        embed(tokens[:, t : t + 1], history=twin)
    whole = embed.new_history(1)
    embed(tokens, history=whole)
    assert twin.lengths.tolist() == [40]
    assert np.array_equal(twin.context, whole.context)
    assert history.lengths.tolist() == [20]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_history_and_its_copy_go_on_beside_each_other(embed, copied):
    """Two hypotheses, a token each in turn."""
    first, second = some_tokens(2, 12, seed=8)
    history = embed.new_history(1)
    embed(first[None, :1], history=history)
    embed(first[None, 1:2], history=history)
    twin = copied(history)
    for t in range(2, 12):
        embed(first[None, t : t + 1], history=history)
        embed(second[None, t : t + 1], history=twin)
        held = history.context.shape[1]
        assert history.context[0].tolist() == first[t + 1 - held : t + 1].tolist()
        assert twin.context[0].tolist() == torch.cat((first[:2], second[2:]))[t + 1 - held : t + 1].tolist()
