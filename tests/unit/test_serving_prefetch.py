"""Tickets, candidates, worker threads and dequantizing away from the store: the same numbers, earlier."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import serving_cases
import torch
from helpers import with_taken
from serving_cases import DIM, MAX_N, VOCAB, Slow, in_fork, some_tokens, table, want_of, write

import ngramstore
from ngramstore.codec.registry import codec_from_spec
from ngramstore.errors import DamagedRows, LookupTimeout, UsageError, WrongProcess
from ngramstore_torch import NGramEmbedding
from ngramstore_torch.model.decoder import Decoder, DecoderConfig
from ngramstore_torch.serving.dequantize import dequantize
from ngramstore_torch.serving.handle import StoreHandle
from ngramstore_torch.serving.loop import generate_served

path, embed = serving_cases.path, serving_cases.embed


def test_a_ticket_gives_what_a_direct_call_gives(embed):
    history = embed.new_history(3)
    tokens = some_tokens()
    for part in tokens.split(7, dim=1):
        ticket = embed.prefetch(part, history=history)
        got = embed(part, history=history, ticket=ticket)
        np.testing.assert_array_equal(
            got.detach().numpy(), want_of(embed, tokens)[:, : history.lengths[0]][:, -part.shape[1] :]
        )
    assert embed.stats.as_dict()["tickets_used"] == 3


def test_a_ticket_for_other_tokens_or_another_past_is_refused(embed):
    history = embed.new_history(3)
    ticket = embed.prefetch(some_tokens(seed=1), history=history)
    with pytest.raises(UsageError, match="other tokens"):
        embed(some_tokens(seed=2), history=history, ticket=ticket)
    embed(some_tokens(seed=3), history=history)
    with pytest.raises(UsageError, match="other tokens"):  # the same tokens behind another context
        embed(some_tokens(seed=1), history=history, ticket=ticket)


def test_a_ticket_used_twice_does_not_hand_out_its_buffer_twice(embed):
    tokens = some_tokens()
    ticket = embed.prefetch(tokens)
    with torch.no_grad():
        embed(tokens, ticket=ticket).fill_(5)
        np.testing.assert_array_equal(embed(tokens, ticket=ticket).numpy(), want_of(embed, tokens))


def test_rows_of_an_older_generation_are_looked_up_again(tmp_path):
    path = write(tmp_path / "store", table())
    with ngramstore.open(path) as store, ngramstore.open(path, mode="rw") as writer:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        tokens = torch.tensor([[*next(iter(table()))]])
        ticket = embed.prefetch(tokens)
        ticket.wait()
        writer.put([tuple(tokens[0].tolist())], np.full((1, DIM), 9.0))
        writer.flush()
        store.refresh()
        got = embed(tokens, ticket=ticket)
        assert (got[0, -1] == 9).all()
        assert embed.stats.as_dict()["tickets_outdated"] == 1


def test_the_rows_of_a_prompt_come_in_time_too(path):
    with ngramstore.open(path) as store:
        slow = Slow(store)
        decoder = Decoder(DecoderConfig(vocab_size=VOCAB, dim=DIM, num_heads=2))
        embed = NGramEmbedding(slow, decoder.tokens, timeout_s=0.05)
        began = time.perf_counter()
        with pytest.raises(LookupTimeout):
            next(generate_served(decoder, embed, [1, 2, 3], 2))
        assert time.perf_counter() - began < 5
        slow.go.set()
        assert slow.ended.wait(10)


def test_a_slow_store_raises_in_time_and_what_it_writes_later_is_nobodys(path):
    with ngramstore.open(path) as store:
        slow = Slow(store)
        embed = NGramEmbedding(slow, torch.nn.Embedding(VOCAB, DIM), timeout_s=0.05)
        history = embed.new_history(3)
        began = time.perf_counter()
        with pytest.raises(LookupTimeout, match=r"60 positions did not end in 0\.05 s"):
            embed(some_tokens(), history=history)
        ticket = embed.prefetch(some_tokens(), timeout_s=0.05)
        with pytest.raises(TimeoutError):
            embed(some_tokens(), ticket=ticket)
        assert time.perf_counter() - began < 5
        assert history.lengths.tolist() == [0, 0, 0]
        assert embed.stats.as_dict()["timeouts"] == 2
        slow.go.set()
        assert slow.ended.wait(10)
        embed.timeout_s = 10.0
        np.testing.assert_array_equal(
            embed(some_tokens(), history=history).detach().numpy(), want_of(embed, some_tokens())
        )


def test_look_ups_that_nobody_waits_for_are_not_worked_off_when_the_disk_answers_again(path):
    with ngramstore.open(path) as store:
        slow = Slow(store)
        embed = NGramEmbedding(slow, torch.nn.Embedding(VOCAB, DIM), timeout_s=0.01)
        for _ in range(30):
            with pytest.raises(LookupTimeout):
                embed(some_tokens())
        ticket = embed.prefetch(some_tokens())
        ticket.cancel()
        slow.go.set()
        embed.timeout_s = 30.0
        np.testing.assert_array_equal(embed(some_tokens()).detach().numpy(), want_of(embed, some_tokens()))
        assert slow.calls <= 2 + 1  # those that were begun, and the last
        with pytest.raises(UsageError, match="cancelled"):
            embed(some_tokens(), ticket=ticket)


def test_where_no_thread_can_be_started_a_ticket_says_so_and_the_next_one_is_served(embed, monkeypatch):
    start = threading.Thread.start
    left = [1]

    def fail_once(thread: threading.Thread) -> None:
        if left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with pytest.raises(UsageError, match="no thread for look-ups"):
        embed.prefetch(some_tokens())
    got = embed(some_tokens(), ticket=embed.prefetch(some_tokens(), timeout_s=30))
    np.testing.assert_array_equal(got.detach().numpy(), want_of(embed, some_tokens()))


def test_a_ticket_of_another_store_is_refused(embed, tmp_path):
    other = {ngram: row + 1 for ngram, row in table().items()}
    with ngramstore.open(write(tmp_path / "other", other)) as store:
        theirs = NGramEmbedding(store, embed.token_embedding)
        with pytest.raises(UsageError, match="by another embedding"):
            embed(some_tokens(), ticket=theirs.prefetch(some_tokens()))


def test_a_change_through_the_same_handle_counts_for_tickets_too(tmp_path):
    with ngramstore.open(write(tmp_path / "store", table()), mode="rw") as store:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        tokens = torch.tensor([[*next(iter(table()))]])
        ticket = embed.prefetch(tokens)
        ticket.wait(30)
        store.put([tuple(tokens[0].tolist())], np.full((1, DIM), 9.0))
        assert (embed(tokens, ticket=ticket)[0, -1] == 9).all()


def test_an_error_of_an_older_generation_is_not_raised(tmp_path):
    path = write(tmp_path / "store", table())
    ngram = next(iter(table()))
    tokens = torch.tensor([[*ngram]])
    with ngramstore.open(path) as store:
        rows = next(path.glob("base-*.rows"))
        data = bytearray(rows.read_bytes())
        data[4096:] = bytes(len(data) - 4096)
        rows.write_bytes(data)
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        ticket = embed.prefetch(tokens)
        for _ in range(2):
            with pytest.raises(DamagedRows) as raised:
                embed(tokens, ticket=ticket)
            depth = len(raised.traceback)
        with pytest.raises(DamagedRows) as raised:
            embed(tokens, ticket=ticket)
        assert len(raised.traceback) == depth
        with ngramstore.open(path, mode="rw") as writer:
            writer.put([ngram], np.full((1, DIM), 9.0))
        store.refresh()
        assert (embed(tokens, ticket=ticket)[0, -1] == 9).all()


def test_an_error_on_the_worker_is_raised_in_the_caller(path):
    with ngramstore.open(path) as store:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        slow = Slow(store)
        embed.handle._store = slow
        ticket = embed.prefetch(some_tokens())
    slow.go.set()
    embed.handle._store = slow
    with pytest.raises(ngramstore.errors.StoreClosed):
        ticket.wait(10)


def test_candidates_bring_their_rows_into_the_cache(path):
    with ngramstore.open(path) as store:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        history = embed.new_history(1)
        embed(some_tokens(1, 5), history=history)
        embed.prefetch_candidates(torch.arange(VOCAB)[None], history).wait(10)
        before = store.stats()["cache_misses"]
        for token in range(VOCAB):
            embed(torch.tensor([[token]]), history=history.select([0]))
        assert store.stats()["cache_misses"] == before
        assert history.lengths.tolist() == [5]
        assert embed.stats.as_dict()["candidate_rows"] == VOCAB


def test_candidates_of_a_broken_store_are_counted_and_the_look_up_itself_raises(path):
    store = ngramstore.open(path)
    embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
    history = embed.new_history(1)
    ticket = embed.prefetch_candidates(torch.arange(VOCAB)[None], history)
    ticket.wait(10)
    slow = embed.handle._store = Slow(store)
    waiting = embed.prefetch_candidates(torch.arange(VOCAB)[None], history)
    assert embed.prefetch_candidates(torch.arange(VOCAB)[None], history) is None  # one at a time
    store.close()
    slow.go.set()
    with pytest.raises(ngramstore.errors.StoreClosed):
        waiting.wait(10)
    embed.prefetch_candidates(torch.arange(VOCAB)[None], history)
    stats = embed.stats.as_dict()
    assert stats["candidates_skipped"] == 1
    assert stats["candidate_errors"] == 1 and "closed" in stats["last_candidate_error"]
    with pytest.raises(ngramstore.errors.StoreClosed):
        embed(torch.tensor([[1]]), history=history)


@pytest.fixture
def held_up(embed):
    """A module whose look-ups do not end in this process, for now."""
    store = embed.handle._store
    slow = embed.handle._store = Slow(store)
    yield embed
    slow.go.set()
    assert slow.ended.wait(30)
    embed.handle._store = store


def test_a_fork_prefetches_candidates_though_those_of_its_parent_are_under_way(held_up):
    history = held_up.new_history(1)
    candidates = torch.arange(VOCAB)[None]
    assert held_up.prefetch_candidates(candidates, history) is not None

    def in_child():
        twice = [held_up.prefetch_candidates(candidates, history).wait(30)[1].shape for _ in range(2)]
        return twice, held_up.stats.as_dict()["candidates_skipped"]

    assert in_fork(in_child) == ([(VOCAB, 1)] * 2, 0)


def test_a_fork_looks_up_anew_what_its_parent_was_fetching(held_up):
    tokens = some_tokens()
    ticket = held_up.prefetch(tokens)
    assert held_up.store.begun.wait(30)

    def in_child():
        with pytest.raises(WrongProcess, match="begun in process"):
            ticket.wait()
        with torch.no_grad():
            return held_up(tokens, ticket=ticket).numpy(), held_up.stats.as_dict()["tickets_outdated"]

    rows, outdated = in_fork(in_child)
    np.testing.assert_array_equal(rows, want_of(held_up, tokens))
    assert outdated == 1


def test_a_fork_uses_what_its_parent_had_fetched_though_the_worker_was_still_saying_so(embed):
    tokens = some_tokens()
    ticket = embed.prefetch(tokens)
    ticket.wait()
    with ticket._done._cond, torch.no_grad():  # as in Event.set, behind the flag
        rows, used = in_fork(lambda: (embed(tokens, ticket=ticket).numpy(), embed.stats.as_dict()["tickets_used"]))
    np.testing.assert_array_equal(rows, want_of(embed, tokens))
    assert used == 1


def test_a_fork_keeps_statistics_though_a_thread_of_its_parent_was_counting(embed):
    with embed.stats._lock:
        counted = in_fork(lambda: (embed(some_tokens()).shape, embed.stats.as_dict()["calls"])[1])
    assert counted == 1 and embed.stats.as_dict()["calls"] == 0


def test_a_signals_handler_may_ask_for_statistics_and_look_up_in_the_middle_of_a_call(embed):
    """It comes in the thread that holds the locks."""
    embed(some_tokens(), ticket=embed.prefetch(some_tokens()))
    for lock in (embed.stats._lock, embed.handle._lock):
        with lock:
            assert lock.acquire(timeout=1)
            lock.release()
            embed(some_tokens(), ticket=embed.prefetch(some_tokens()))
            embed.stats.as_dict()


def test_percentiles_are_computed_while_others_count(embed, monkeypatch):
    percentile = np.percentile

    def unlocked(*arguments):
        assert not embed.stats._lock._is_owned()
        return percentile(*arguments)

    embed(some_tokens())
    monkeypatch.setattr(np, "percentile", unlocked)
    assert embed.stats.as_dict()["wait_p99_us"] > 0


def test_threads_of_a_fork_open_the_store_once(embed):
    """Else each would open it, with a row cache of its own."""

    def in_child():
        opened, found, really_open = [], [], ngramstore.open

        def open_slowly(path, **options):
            opened.append(path)
            time.sleep(0.3)
            return really_open(path, **options)

        ngramstore.open = open_slowly
        threads = [threading.Thread(target=lambda: found.append(embed.store)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(opened), len(found), len({id(store) for store in found})

    assert in_fork(in_child) == (1, 6, 1)


def test_a_fork_opens_the_store_though_a_thread_of_its_parent_was_opening_one(embed):
    def in_child():
        with torch.no_grad():
            return embed(some_tokens()).numpy()

    rows = with_taken(StoreHandle._reopening, lambda: in_fork(in_child))
    np.testing.assert_array_equal(rows, want_of(embed, some_tokens()))


def test_threads_share_one_store_and_one_small_cache(path):
    with ngramstore.open(path, cache_bytes=2000) as store:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, DIM))
        wrong = []

        def decode(seed):
            tokens = some_tokens(2, 60, seed)
            want = want_of(embed, tokens)
            history = embed.new_history(2)
            with torch.no_grad():
                for t in range(60):
                    one = tokens[:, t : t + 1]
                    ticket = embed.prefetch(one, history=history) if t % 3 == 0 else None
                    got = embed(one, history=history, ticket=ticket).numpy()
                    if not np.array_equal(got, want[:, t : t + 1]):
                        wrong.append((seed, t))

        threads = [threading.Thread(target=decode, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert store.stats()["cache_evicted"] > 0
        assert embed.stats.as_dict()["positions"] == 6 * 2 * 60


CODECS = [
    {"name": "f32"},
    {"name": "f16"},
    {"name": "bf16"},
    {"name": "int8"},
    {"name": "int4", "group": 32},
    {"name": "int4", "group": 6},
    {"name": "e4m3", "block": 32},
    {"name": "e4m3", "block": 7},
    {"name": "e4m3", "block": 0, "scale": "0x1.8p-3"},
]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("dim", [1, 31, 64, 77])
@pytest.mark.parametrize("spec", CODECS, ids=str)
def test_torch_dequantizes_to_the_same_bits_as_the_store(spec, dim, dtype):
    codec = codec_from_spec(spec, dim)
    rows = np.random.default_rng(dim).standard_normal((20, dim)).astype(np.float32) * np.logspace(-4, 1, 20)[:, None]
    stored = codec.encode(rows.astype(np.float32))
    wide = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    want = torch.empty(20, dim, dtype=wide)
    out = want.view(torch.uint16) if wide == torch.bfloat16 else want
    codec.scatter(stored.reshape(-1), np.arange(20) * codec.row_bytes, out.numpy())
    assert torch.equal(dequantize(codec, torch.from_numpy(stored), wide), want)
    nothing = dequantize(codec, torch.zeros(2, codec.row_bytes, dtype=torch.uint8), wide)
    assert not nothing.any() and not torch.signbit(nothing).any(), "a row that is not there: zeros, none of them -0.0"


@pytest.mark.parametrize("num_rows", [0, 1])
@pytest.mark.parametrize("dim", [1, 6, 30, 33])
@pytest.mark.parametrize("spec", CODECS, ids=str)
def test_one_row_dequantizes_wherever_its_scales_stand(spec, dim, num_rows):
    """A part of a single row is contiguous as it is, and its scales need not stand where a float may."""
    codec = codec_from_spec(spec, dim)
    rows = np.random.default_rng(dim).standard_normal((3, dim)).astype(np.float32)
    stored = torch.from_numpy(codec.encode(rows))
    want = dequantize(codec, stored, torch.float32)[:num_rows]
    assert torch.equal(dequantize(codec, stored[:num_rows].clone(), torch.float32), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("codec", ["f32", "int8", "int4", "e4m3"])
def test_on_a_gpu_codes_travel_and_the_answer_is_the_cpus(codec, tmp_path):
    with ngramstore.open(write(tmp_path / "store", table(dim=64), codec=codec, max_n=MAX_N)) as store:
        embed = NGramEmbedding(store, torch.nn.Embedding(VOCAB, 64))
        tokens = some_tokens()
        want = embed(tokens)
        on_gpu = embed.to("cuda")
        history = on_gpu.new_history(3)
        parts = [
            on_gpu(part.cuda(), history=history, ticket=on_gpu.prefetch(part, history=history))
            for part in tokens.split(6, 1)
        ]
        assert parts[0].device.type == "cuda"
        assert torch.equal(torch.cat(parts, 1).cpu(), want)
