"""A corpus as tagged tokens: split into what is trained on and what is held out, in pieces, in little memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from ngramstore.errors import UsageError
from ngramstore.mine import TokenShards, Vocabulary, held_out_spans, open_corpus
from ngramstore.mine import vocab as vocab_module
from ngramstore_torch.data import corpus as corpus_module
from ngramstore_torch.data.batches import tag
from ngramstore_torch.data.corpus import tag_corpus, tag_held_out, tag_training

EOS = 12
NGRAMS = [(1, 2), (3, 3), (3, 3, 3), (1, 2, 3), (EOS - 1, EOS), (5, 6, 7, 8)]


def vocabulary() -> Vocabulary:
    tokens_MK = np.array([[*ngram, *[0] * (4 - len(ngram))] for ngram in NGRAMS], np.uint32)
    return Vocabulary(tokens_MK, np.array([len(ngram) for ngram in NGRAMS]), np.ones(len(NGRAMS), np.int64))


def corpus_of(folder, num_tokens: int, num_files: int, num_ends: int) -> TokenShards:
    rng = np.random.default_rng(0)
    for i in range(num_files):
        tokens = rng.integers(0, EOS, num_tokens, np.uint16)
        tokens[rng.integers(0, num_tokens, num_ends)] = EOS
        np.save(folder / f"{i}.npy", tokens)
    return open_corpus([folder / f"{i}.npy" for i in range(num_files)], eos_id=EOS)


def documents_of(corpus: TokenShards, held_out: float) -> dict[bool, list[list[int]]]:
    """The documents of both parts, by whether they are held out, cut one token at a time."""
    parts: dict[bool, list[list[int]]] = {False: [], True: []}
    for shard, spans in zip(corpus.shards, held_out_spans(corpus, held_out), strict=True):
        tokens, is_out = shard.tokens().tolist(), np.zeros(shard.num_tokens, bool)
        cuts = {*shard.starts().tolist(), *spans.ravel().tolist()}
        for begin, end in spans:
            is_out[begin:end] = True
        for begin, end in pairwise(sorted(cuts)):
            parts[bool(is_out[begin])].append(tokens[begin:end])
    return parts


@pytest.mark.parametrize("piece", [1, 7, 8192, 10**6])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("where", ["memory", "files"])
def test_both_parts_are_what_one_document_after_another_gives(tmp_path, monkeypatch, piece, held_out, where):
    corpus = corpus_of(tmp_path, 1_500 if piece == 1 else 30_000, num_files=2, num_ends=40)
    monkeypatch.setattr(vocab_module, "_PIECE_TOKENS", piece)
    monkeypatch.setattr(corpus_module, "_PIECE_TOKENS", piece)
    vocab = vocabulary()
    found = tag_corpus(corpus, vocab, held_out=held_out, folder=tmp_path / "arrays" if where == "files" else None)
    for tag_alone, part in zip((tag_training, tag_held_out), found, strict=True):
        alone = tag_alone(corpus, vocab, held_out=held_out)
        assert np.array_equal(alone.rows_P, part.rows_P) and np.array_equal(alone.tokens_P, part.tokens_P)
        assert np.array_equal(alone.starts, part.starts)
    for is_held, documents in documents_of(corpus, held_out).items():
        part = found[is_held]
        assert part.starts.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
        assert part.tokens_P.dtype == np.uint16 and part.rows_P.dtype == np.int32
        assert part.tokens_P.tolist() == [token for document in documents for token in document]
        rows = [vocab.tag(np.array(document), np.array([0]))[1].tolist() for document in documents]
        assert part.rows_P.tolist() == [row for some in rows for row in some]
        assert len(part) == 0 or {-1, 0, 1} <= {*part.rows_P.tolist()}


def test_without_a_vocabulary_nothing_matches(tmp_path):
    corpus = corpus_of(tmp_path, 20_000, num_files=1, num_ends=20)
    train, held = tag_corpus(corpus, None, held_out=0.3)
    assert len(train) + len(held) == 20_000 and len(held)
    assert (train.rows_P == -1).all() and (held.rows_P == -1).all() and len(train.rows_P) == len(train)


@pytest.mark.parametrize(
    ("num_tokens", "piece"), [(4_000_000, 1 << 16), pytest.param(20_000_000, 1 << 20, marks=pytest.mark.slow)]
)
def test_tagging_takes_little_more_memory_than_its_answer(tmp_path, monkeypatch, num_tokens, piece):
    """A file is one shard: done whole, it took 27 bytes a token."""
    corpus, vocab = corpus_of(tmp_path, num_tokens, num_files=1, num_ends=1000), vocabulary()
    vocab.is_suffix_closed()
    monkeypatch.setattr(vocab_module, "_PIECE_TOKENS", piece, raising=False)
    monkeypatch.setattr(corpus_module, "_PIECE_TOKENS", piece, raising=False)
    tracemalloc.start()
    train, held = tag_corpus(corpus, vocab, held_out=0.05)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(train) + len(held) == num_tokens
    assert 6 * num_tokens < most < 8 * num_tokens, most / num_tokens


def test_a_second_vocabulary_in_one_folder_leaves_the_first_one_s_tags(tmp_path):
    corpus = corpus_of(tmp_path, 3_000, num_files=1, num_ends=20)
    first, _ = tag_corpus(corpus, vocabulary(), held_out=0.1, folder=tmp_path / "arrays")
    before = np.array(first.rows_P), np.array(first.tokens_P)
    few = Vocabulary(np.array([[1, 2, 0, 0]], np.uint32), np.array([2]), np.array([9]))
    second, _ = tag_corpus(corpus, few, held_out=0.5, folder=tmp_path / "arrays")
    assert len(second) < len(first) and second.rows_P.max() == 0
    assert np.array_equal(first.rows_P, before[0]) and np.array_equal(first.tokens_P, before[1])


@pytest.mark.parametrize(
    "bad", [[0, 80, 160], [80, 320], [], [[0, 320]], [True] + [False] * 319, [0.0, 320.0]], ids=str
)
@pytest.mark.parametrize("vocab", [None, vocabulary()], ids=["plain", "tagged"])
def test_offsets_that_do_not_cover_the_tokens_are_refused(bad, vocab):
    with pytest.raises(UsageError, match="the offsets of documents, the first 0, the last 320") as caught:
        tag(np.zeros(320, np.uint16), np.array(bad), vocab)
    assert "starts are" in caught.value.message


@pytest.mark.parametrize(
    ("bad", "message"),
    [([1.5, 2.5, 3.5], "tokens must be integers, got dtype float64"), ([1, -2, 3], "tokens hold -2")],
    ids=["floats", "negative"],
)
@pytest.mark.parametrize("vocab", [None, vocabulary()], ids=["plain", "tagged"])
def test_tokens_that_are_no_token_ids_are_refused(bad, message, vocab):
    with pytest.raises(UsageError, match=message):
        tag(np.array(bad), [0, 3], vocab)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_tokens_as_corpora_hold_them_are_not_copied(dtype):
    """They may be a file of many gigabytes in memory-mapped form."""
    tokens_P = np.arange(9, dtype=dtype)
    assert tag(tokens_P, [0, 9], None).tokens_P is tokens_P


class TooMany:
    """A vocabulary that says it has more n-grams than the int32 of a tag can number."""

    max_n, ngrams = 2, (np.zeros((0, 2), np.uint32), range(2**31))

    def require_tokenizer(self, tokenizer_id: str) -> None:
        """Of any."""


def test_a_vocabulary_of_more_ngrams_than_tags_can_number_is_refused(tmp_path):
    message = "the vocabulary has 2,147,483,648 n-grams"
    with pytest.raises(UsageError, match=message):
        tag(np.zeros(320, np.uint16), [0, 320], TooMany())
    corpus = corpus_of(tmp_path, 3_000, num_files=1, num_ends=20)
    for call in (tag_corpus, tag_training, tag_held_out):
        with pytest.raises(UsageError, match=message):
            call(corpus, TooMany(), held_out=0.1)
