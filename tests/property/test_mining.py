"""Mining and tagging against plain Python models, with memory so small that every test spills and merges."""

from __future__ import annotations

import inspect
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.kernels.native import mining as native
from ngramstore.kernels.reference import mining as reference
from ngramstore.mine import Shard, TokenShards, Vocabulary, held_out_spans, merge_runs, mine_ngrams
from ngramstore.mine import count as count_module
from ngramstore.mine import merge as merge_module
from ngramstore.mine.runs import RunReader, run_writer
from ngramstore.mine.select import select_top

EMPTY = np.uint64(2**64 - 1)
LEAST_MEMORY = count_module.LEAST_MEMORY_BYTES


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
token_lists = st.lists(st.lists(st.integers(0, 4), max_size=40), min_size=1, max_size=12)


def corpus_of(folder: Path, shards: list[list[list[int]]], dtype: str = "<u2") -> TokenShards:
    made = []
    for i, documents in enumerate(shards):
        tokens = np.array([token for document in documents for token in document], dtype)
        starts = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
        path = folder / f"shard-{i}.bin"
        path.write_bytes(tokens.tobytes())
        made.append(Shard(path, dtype, len(tokens), len(documents), starts_array=starts))
    return TokenShards(made, "test corpus")


def naive(documents, max_n, size, min_count):
    """Algorithm 3 in a Counter; -> list of (n-gram, count) in rank order."""
    found, frequent = [], None
    for n in range(2, max_n + 1):
        counts = Counter()
        for document in documents:
            for i in range(len(document) - n + 1):
                ngram = tuple(document[i : i + n])
                if frequent is None or (ngram[:-1] in frequent and ngram[1:] in frequent):
                    counts[ngram] += 1
        frequent = {ngram: count for ngram, count in counts.items() if count >= min_count}
        found += frequent.items()
    return sorted(found, key=lambda item: (-item[1], len(item[0]), item[0]))[:size], len(found)


def as_list(vocabulary: Vocabulary):
    tokens, lengths = vocabulary.ngrams
    rows = zip(tokens.tolist(), lengths.tolist(), vocabulary.counts.tolist(), strict=True)
    return [(tuple(row[:n]), count) for row, n, count in rows]


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(token_lists, min_size=1, max_size=3),
    max_n=st.integers(2, 6),
    size=st.integers(1, 60),
    min_count=st.integers(1, 4),
)
def test_mining_equals_the_counter_model_on_small_corpora(shards, max_n, size, min_count):
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(Path(folder), shards)
        mined = mine_ngrams(
            corpus, work=Path(folder) / "w", max_n=max_n, size=size, min_count=min_count, memory_bytes=LEAST_MEMORY
        )
        wanted, num_frequent = naive([d for s in shards for d in s], max_n, size, min_count)
        assert as_list(mined) == wanted
        assert mined.num_frequent == num_frequent
        assert mined.is_suffix_closed()
        assert not (Path(folder) / "w").exists()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), num_tokens=st.integers(500, 3000), spread=st.integers(2, 2000))
def test_mining_equals_the_counter_model_when_tables_spill(seed, num_tokens, spread):
    rng = np.random.default_rng(seed)
    tokens = (rng.zipf(1.3, num_tokens) % spread).tolist()
    cuts = np.sort(rng.integers(0, num_tokens, 5)).tolist()
    documents = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, num_tokens], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(Path(folder), [documents[:3], documents[3:]], "<u4")
        for memory in (LEAST_MEMORY, 1 << 24):
            mined = mine_ngrams(corpus, work=Path(folder) / "w", size=300, min_count=2, memory_bytes=memory)
            assert as_list(mined) == naive(documents, 5, 300, 2)[0]


def test_the_least_memory_does_spill_and_number_in_parts(tmp_path, monkeypatch):
    calls = Counter()
    for module, name in ((count_module, "merge_runs"), (native, "fill_ids")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _n=name, _r=real, **k: (calls.update([_n]), _r(*a, **k))[1])
    document = np.random.default_rng(0).integers(0, 300, 4000).tolist() * 2
    mined = mine_ngrams(
        corpus_of(tmp_path, [[document]]), work=tmp_path / "w", max_n=3, min_count=2, memory_bytes=LEAST_MEMORY
    )
    assert calls["merge_runs"] == 2 and calls["fill_ids"] > 10
    assert as_list(mined) == naive([document], 3, 100_000, 2)[0]


def test_no_ngram_crosses_a_document(tmp_path):
    corpus = corpus_of(tmp_path, [[[1, 2], [3, 4], [], [1, 2], [3, 4]]])
    mined = mine_ngrams(corpus, work=tmp_path / "w", min_count=1)
    assert as_list(mined) == [((1, 2), 2), ((3, 4), 2)]


def test_counts_add_up_over_shards_and_the_minimum_holds_for_every_length(tmp_path):
    corpus = corpus_of(tmp_path, [[[1, 2, 3]] * 3, [[1, 2, 3]] * 2 + [[9, 8]] * 4])
    mined = mine_ngrams(corpus, work=tmp_path / "w", min_count=5)
    assert as_list(mined) == [((1, 2), 5), ((2, 3), 5), ((1, 2, 3), 5)]
    assert mined.cutoff == 5


def test_a_cut_among_equal_counts_keeps_shorter_ones_then_token_order(tmp_path):
    corpus = corpus_of(tmp_path, [[[1, 2, 3]] * 2])
    for size, wanted in ((1, [((1, 2), 2)]), (2, [((1, 2), 2), ((2, 3), 2)])):
        assert as_list(mine_ngrams(corpus, work=tmp_path / "w", min_count=1, size=size)) == wanted


@pytest.mark.parametrize("small", [1, 3, 4096], ids=lambda small: f"counts below {small} in an array")
def test_every_cut_is_the_same_however_small_the_blocks_read(tmp_path, monkeypatch, small):
    monkeypatch.setattr("ngramstore.mine.select._SMALL_COUNTS", small)
    documents = [np.random.default_rng(8).integers(0, 6, 150).tolist()]
    corpus = corpus_of(tmp_path, [documents])
    mine_ngrams(corpus, work=tmp_path / "w", max_n=3, min_count=2, keep_work=True)
    wanted, num_frequent = naive(documents, 3, 1000, 2)
    paths = [tmp_path / "w" / f"frequent-{n:02d}.run" for n in (2, 3)]
    for size in range(1, num_frequent + 2):
        kept = select_top(paths, size, block_pairs=3)
        rows = zip(kept.tokens_MK.tolist(), kept.lengths_M.tolist(), kept.counts_M.tolist(), strict=True)
        assert [(tuple(row[:n]), count) for row, n, count in rows] == wanted[:size]
    assert num_frequent > 30


def test_two_workers_and_other_shards_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(5)
    documents = [rng.integers(0, 20, 200).tolist() for _ in range(12)]
    files = []
    for name, shards, workers in (("a", [documents], 1), ("b", [documents[:5], documents[5:]], 2)):
        folder = tmp_path / name
        folder.mkdir()
        vocabulary = mine_ngrams(
            corpus_of(folder, shards),
            work=folder / "w",
            workers=workers,
            max_n=3,
            memory_bytes=1 << 16,
            held_out=0.25,  # of the same documents, in whatever shard they are
        )
        vocabulary.save(folder / "v")
        files.append((folder / "v").read_bytes())
    assert files[0] == files[1]
    assert len(files[0]) > 1000


@settings(max_examples=40, deadline=None)
@given(
    documents=token_lists, ngrams=st.sets(st.lists(st.integers(0, 4), min_size=2, max_size=5).map(tuple), max_size=40)
)
def test_tagging_equals_a_dict(documents, ngrams):
    vocabulary = vocabulary_of(sorted(ngrams))
    tokens = [token for document in documents for token in document]
    offsets = np.cumsum([0, *map(len, documents)])
    lengths, rows = vocabulary.tag(np.array(tokens, np.int64), offsets)
    flags = np.zeros(len(tokens), np.bool_)
    flags[offsets[offsets < len(tokens)]] = True
    again, _ = vocabulary.tag(np.array(tokens, np.int64), flags)
    table = {ngram: row for row, ngram in enumerate(sorted(ngrams))}
    wanted = []
    for document in documents:
        for i in range(len(document)):
            matches = [tuple(document[i + 1 - n : i + 1]) for n in range(2, 6) if n <= i + 1]
            hits = [ngram for ngram in matches if ngram in table]
            wanted.append((len(hits[-1]), table[hits[-1]]) if hits else (0, -1))
    assert list(zip(lengths.tolist(), rows.tolist(), strict=True)) == wanted
    assert np.array_equal(again, lengths)
    assert vocabulary.is_suffix_closed() == all(g[1:] in ngrams for g in ngrams if len(g) > min(map(len, ngrams)))


def vocabulary_of(ngrams):
    tokens = np.zeros((len(ngrams), 5), np.uint32)
    for row, ngram in enumerate(ngrams):
        tokens[row, : len(ngram)] = ngram
    return Vocabulary(tokens, np.array([len(g) for g in ngrams], np.int64), np.ones(len(ngrams), np.int64))


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(st.dictionaries(st.integers(0, 2**64 - 2), st.integers(1, 2**40), max_size=200), max_size=8),
    min_count=st.integers(1, 3),
    memory=st.sampled_from([1, 20_000, 1 << 20]),
)
def test_merging_equals_adding_counters(runs, min_count, memory):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, run in enumerate(runs):
            paths.append(Path(folder) / f"{i}.run")
            with run_writer(paths[-1]) as writer:
                keys = sorted(run)
                writer.add(np.array(keys, np.uint64), np.array([run[key] for key in keys], np.uint64))
        out = Path(folder) / "out.run"
        num = merge_runs(paths, out, min_count, memory_bytes=memory)
        total = sum((Counter(run) for run in runs), Counter())
        wanted = sorted([key, count] for key, count in total.items() if count >= min_count)
        assert [pair for block in RunReader(out).blocks(7) for pair in block.tolist()] == wanted
        assert num == len(wanted)
        assert len(list(Path(folder).iterdir())) == len(runs) + 1


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.sampled_from([5, 6, 7, 2**40, 2**63 + 9, 2**64 - 1]) | st.integers(0, 50), max_size=80),
    most=st.integers(1, 30),
)
def test_count_tables_are_alike_in_native_and_reference(keys, most):
    keys_T = np.array(keys, np.uint64)
    results = []
    for kernels in (native, reference):
        table = np.zeros((31, 2), np.uint64)
        table[:, 0] = EMPTY
        done, used = kernels.count_keys(keys_T, table, 0, most)
        larger = np.zeros((67, 2), np.uint64)
        larger[:, 0] = EMPTY
        kernels.rehash_counts(table, larger)
        gathered = larger.copy()
        num = kernels.gather_counts(gathered, 2)
        results.append((done, used, num, table.tobytes(), larger.tobytes(), gathered[:num].tobytes()))
    assert results[0] == results[1]


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.sampled_from([0, 1, 2, 2**32 - 1]), max_size=50), before=st.sampled_from([3, 2**32 - 1]))
def test_keys_and_numbers_are_alike_in_native_and_reference(ids, before):
    ids_T = np.array(ids, np.uint32)
    tokens_T = np.arange(len(ids), dtype=np.uint32) % np.uint32(4)
    results = []
    for kernels in (native, reference):
        keys_T = np.zeros(len(ids), np.uint64)
        kernels.pack_keys(np.uint32(before), ids_T, tokens_T, keys_T)
        known = np.unique(keys_T[keys_T != EMPTY])[::2].copy()
        table = np.zeros((2 * len(known) + 2, 2), np.uint64)
        table[:, 0] = EMPTY
        kernels.fill_ids(known, 7, table)
        numbers_T = np.full(len(ids), 99, np.uint32)
        kernels.find_ids(keys_T, table, numbers_T)
        results.append((keys_T.tobytes(), table.tobytes(), numbers_T.tobytes()))
    assert results[0] == results[1]


@settings(max_examples=40, deadline=None)
@given(
    ngrams=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=20),
    tokens=st.lists(st.integers(0, 3), max_size=60),
    shortest=st.integers(1, 5),
)
def test_matching_is_alike_in_native_and_reference(ngrams, tokens, shortest):
    tokens_MK = np.zeros((len(ngrams), 4), np.uint32)
    for m, ngram in enumerate(ngrams):
        tokens_MK[m, : len(ngram)] = ngram
    lengths_M = np.array([len(ngram) for ngram in ngrams], np.uint8)
    tokens_T = np.array(tokens, np.uint32)
    starts_T = np.arange(len(tokens)) % 11 == 0
    results = []
    for kernels in (native, reference):
        table = np.zeros((64, 2), np.uint64)
        table[:, 0] = EMPTY
        repeated = kernels.fill_matches(tokens_MK, lengths_M, table)
        lengths_T, rows_T = np.zeros(len(tokens), np.uint8), np.zeros(len(tokens), np.int64)
        if repeated < 0:
            kernels.longest_matches(tokens_T, starts_T, tokens_MK, lengths_M, shortest, table, False, lengths_T, rows_T)
            assert not ((lengths_T > 0) & (lengths_T < shortest)).any()
        results.append((repeated, table.tobytes(), lengths_T.tobytes(), rows_T.tobytes()))
    assert results[0] == results[1]


def test_native_has_exactly_the_reference_names_and_parameters():
    def public(module):
        functions = {name: getattr(f, "py_func", f) for name, f in vars(module).items() if not name.startswith("_")}
        mine = {n: f for n, f in functions.items() if inspect.isfunction(f) and f.__module__ == module.__name__}
        return {name: list(inspect.signature(function).parameters) for name, function in mine.items()}

    assert public(native) == public(reference)
    assert len(public(native)) == 8


def test_held_out_text_is_not_counted(tmp_path):
    documents = [[i, i + 1] for i in range(0, 400, 2)]
    corpus = corpus_of(tmp_path, [documents[:120], documents[120:]])
    spans = held_out_spans(corpus, 0.25)
    left_out = {int(corpus.shards[i].tokens()[begin]) for i, part in enumerate(spans) for begin, _ in part}
    assert 20 < len(left_out) < 80
    mined = mine_ngrams(corpus, work=tmp_path / "w", min_count=1, held_out=0.25)
    assert {ngram[0] for ngram, _ in as_list(mined)} == {d[0] for d in documents} - left_out
    assert mined.held_out == 0.25


def test_the_first_document_is_held_out_at_any_fraction_and_a_larger_one_holds_out_more(tmp_path):
    """Vocabularies that exist were mined so; docs/mining.md says it."""
    corpus = corpus_of(tmp_path, [[[i, i + 1] for i in range(100)]])
    held = [
        {tuple(span) for span in held_out_spans(corpus, part)[0].tolist()} for part in (0, 1e-12, 0.1, 0.2, 0.5, 0.9)
    ]
    assert held[:2] == [set(), {(0, 2)}]
    assert all(small < large for small, large in pairwise(held))


def test_a_long_document_is_held_out_in_pieces(tmp_path):
    corpus = corpus_of(tmp_path, [[[1] * 100_000, [2] * 5]])
    (spans,) = held_out_spans(corpus, 0.5)
    assert 2 <= len(spans) < 13
    assert (spans[:, 1] - spans[:, 0]).max() == 8192


def test_merged_groups_are_used_when_runs_are_many(tmp_path, monkeypatch):
    sizes, real = [], merge_module._merge_at_once
    monkeypatch.setattr(
        merge_module, "_merge_at_once", lambda paths, *options: sizes.append(len(paths)) or real(paths, *options)
    )
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.run")
        with run_writer(paths[-1]) as writer:
            writer.add(np.arange(i, i + 3, dtype=np.uint64), np.ones(3, np.uint64))
    assert merge_runs(paths, tmp_path / "out", 3, memory_bytes=1) == 38
    assert len(sizes) > 1 and max(sizes) < 40


@pytest.mark.parametrize(
    "bad", [{"max_n": 1}, {"max_n": 17}, {"size": 0}, {"min_count": 0}, {"workers": 0}, {"held_out": 1.0}]
)
def test_options_out_of_range_are_refused_with_their_value(tmp_path, bad):
    corpus = corpus_of(tmp_path, [[[1, 2]]])
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        mine_ngrams(corpus, work=tmp_path / "w", **bad)
