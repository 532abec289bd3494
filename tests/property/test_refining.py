"""Counting in memory: kernels against their twins, and the same vocabulary as counting length by length, whatever
memory and threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.kernels.native import refining as native
from ngramstore.kernels.reference import refining as reference
from ngramstore.mine import Shard, TokenShards, mine_ngrams, shards
from ngramstore.mine import miner as miner_module
from ngramstore.mine import refine as refine_module

LITTLE_MEMORY = 64 << 10
"""Counts length by length."""
MUCH_MEMORY = 1 << 24


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def refined(kernels, tokens: np.ndarray, num_ids: int, first: int, stop: int, num_lengths: int, min_count: int):
    """Positions as placed, their ends, and the n-grams of each length with their counts."""
    counts = np.bincount(tokens, minlength=num_ids + 1)[first:stop]
    num = int(counts.sum())
    ends = np.zeros(num_ids, np.uint32)
    ends[first:stop] = np.cumsum(counts) - counts + 1
    positions, spare = np.zeros(num + 1, np.uint32), np.zeros(num + 1, np.uint32)
    kernels.place_positions(tokens, first, stop, ends, positions)
    placed = positions[1:].tobytes(), ends.tobytes()
    count_of = np.zeros(num_ids + 1, np.uint32)
    keys = np.zeros((num_lengths, num // min_count), np.uint64)
    found = np.zeros((num_lengths, num // min_count), np.uint32)
    used = np.zeros(num_lengths, np.int64)
    kernels.refine_groups(
        tokens, first, stop, ends, min_count, positions, spare, np.zeros(num, np.uint32), count_of,
        np.zeros(num_ids + 2, np.uint32), np.zeros((num_lengths, 3), np.int64), keys, found, used,
    )  # fmt: skip
    assert not count_of.any()
    return placed, keys.tobytes(), found.tobytes(), used.tolist()


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 4), max_size=40), min_size=1, max_size=12),
    num_lengths=st.integers(1, 5),
    min_count=st.integers(1, 4),
    cut=st.integers(0, 5),
)
def test_groups_are_alike_in_native_and_reference(documents, num_lengths, min_count, cut):
    tokens = np.array([token for document in documents for token in [5, *document]] + [5], np.uint16)
    for first, stop in ((0, 5), (0, cut), (cut, 5)):
        results = [refined(k, tokens, 5, first, stop, num_lengths, min_count) for k in (native, reference)]
        assert results[0] == results[1]


@pytest.mark.parametrize("num_ids", [60, 2000, 70_000])
def test_many_tokens_after_one_are_sorted(num_ids):
    """By insertion, by Shell's sort and by a look at every token."""
    rng = np.random.default_rng(1)
    follow = rng.permutation(num_ids)[: min(num_ids, 1000)]
    tokens = np.append(np.stack([np.zeros_like(follow), follow], 1).reshape(-1), num_ids)
    tokens = tokens.astype(np.uint16 if num_ids < 1 << 16 else np.uint32)
    results = [refined(kernels, tokens, num_ids, 0, num_ids, 2, 1) for kernels in (native, reference)]
    assert results[0] == results[1]


def some_corpus(folder, dtype: str, num_tokens: int = 4000, spread: int = 900, num_shards: int = 3) -> TokenShards:
    shards = []
    for i in range(num_shards):
        rng = np.random.default_rng(i)
        tokens = (rng.zipf(1.3, num_tokens) % spread).astype(dtype)
        starts = np.concatenate([[0], np.sort(rng.integers(0, num_tokens, 40)), [num_tokens, num_tokens]]).astype(
            np.uint64
        )
        path = folder / f"{i}.bin"
        path.write_bytes(tokens.tobytes())
        shards.append(Shard(path, dtype, num_tokens, len(starts) - 1, starts_array=starts))
    return TokenShards(shards, "some corpus")


def mined_bytes(corpus: TokenShards, folder, **options) -> bytes:
    vocabulary = mine_ngrams(corpus, work=folder / "work", size=3000, **options)
    vocabulary.save(folder / "v")
    return (folder / "v").read_bytes()


@pytest.mark.parametrize(
    "options", [{}, {"held_out": 0.2}, {"max_n": 2}, {"min_count": 1, "max_n": 7, "held_out": 0.1}]
)
def test_memory_and_threads_do_not_change_a_byte(tmp_path, monkeypatch, options):
    corpus = some_corpus(tmp_path, "<u2")
    calls = []
    monkeypatch.setattr(
        native, "refine_groups", lambda *a, _real=native.refine_groups: (calls.append(a[1:3]), _real(*a))[1]
    )
    wanted = mined_bytes(corpus, tmp_path, memory_bytes=LITTLE_MEMORY, **options)
    assert not calls
    seen = set()
    for memory, workers in ((MUCH_MEMORY, 1), (MUCH_MEMORY, 2), (MUCH_MEMORY, 5), (800 << 10, 2), (300 << 10, 1)):
        calls.clear()
        assert mined_bytes(corpus, tmp_path, memory_bytes=memory, workers=workers, **options) == wanted
        seen.add(len(calls))
    assert len(seen) > 2 and max(seen) > 3  # one range, some for threads, more for want of memory


def test_tokens_of_32_bits_and_the_largest_of_16_are_counted(tmp_path):
    for largest in (65534, 65535, 100_000):
        corpus = some_corpus(tmp_path, "<u4", num_shards=1)
        tokens = np.fromfile(corpus.shards[0].path, "<u4")
        tokens[tokens == 3] = largest
        corpus.shards[0].path.write_bytes(tokens.tobytes())
        few, much = (mined_bytes(corpus, tmp_path, memory_bytes=m) for m in (LITTLE_MEMORY, MUCH_MEMORY))
        assert few == much


def test_sparse_token_ids_are_counted_length_by_length(tmp_path, monkeypatch):
    """A table of all 2**32 tokens would not fit; nor would all positions of one token, in little memory."""
    corpus = some_corpus(tmp_path, "<u4", num_shards=1)
    tokens = np.fromfile(corpus.shards[0].path, "<u4")
    tokens[5] = 2**32 - 2
    corpus.shards[0].path.write_bytes(tokens.tobytes())
    results = []
    monkeypatch.setattr(
        miner_module, "refine", lambda *a, **k: results.append(refine_module.refine(*a, **k)) or results[-1]
    )
    few, much = (mined_bytes(corpus, tmp_path, memory_bytes=m) for m in (LITTLE_MEMORY, MUCH_MEMORY))
    assert few == much
    tokens[:] = 7
    corpus.shards[0].path.write_bytes(tokens.tobytes())
    few, much = (mined_bytes(corpus, tmp_path, memory_bytes=m, min_count=1) for m in (LITTLE_MEMORY, 1 << 18))
    assert few == much
    assert results == [False, False]


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), unique=True, max_size=12), begin=st.integers(0, 60), size=st.integers(1, 30))
def test_spans_are_found_in_every_chunk(cuts, begin, size):
    spans = np.array(sorted(cuts)[: len(cuts) // 2 * 2], np.int64).reshape(-1, 2)
    wanted = {position for first, stop in spans.tolist() for position in range(first, stop)}
    found = shards.inside(spans, begin, begin + size)
    assert found.tolist() == [position in wanted for position in range(begin, begin + size)]


def test_a_corpus_without_a_token_has_no_ngrams(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    shard = Shard(tmp_path / "empty", "<u2", 0, 1, starts_array=np.zeros(2, np.uint64))
    vocabulary = mine_ngrams(TokenShards([shard], "empty"), work=tmp_path / "work", workers=3)
    assert len(vocabulary) == 0
