"""Coverage counted in pieces of a shard is coverage counted at once."""

from __future__ import annotations

import numpy as np
import pytest

from ngramstore.mine import mine_ngrams, open_corpus, reports, vocab
from ngramstore.mine.shards import held_out_spans


@pytest.mark.parametrize("piece", [1, 7, 1000, 8192, 10**6])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_pieces_add_up_to_the_whole(tmp_path, monkeypatch, piece, held_out):
    rng = np.random.default_rng(0)
    num = 3_000 if piece == 1 else 60_000
    tokens = rng.integers(0, 12, num).astype(np.uint16)
    tokens[rng.integers(0, num, 40)] = 12  # ends of documents
    np.save(tmp_path / "tokens.npy", tokens)
    corpus = open_corpus([tmp_path / "tokens.npy"], eos_id=12)
    vocabulary = mine_ngrams(corpus, work=tmp_path / "work", max_n=4, size=2_000, min_count=3, held_out=0.0)
    monkeypatch.setattr(vocab, "_PIECE_TOKENS", piece)
    found = reports.report(vocabulary, corpus, held_out)

    (shard,) = corpus.shards
    lengths, _ = vocabulary.tag(shard.tokens(), shard.starts())
    is_out = np.zeros(num, bool)
    for begin, end in held_out_spans(corpus, held_out)[0]:
        is_out[begin:end] = True
    for part, matches in ((lengths[~is_out], found.mined), (lengths[is_out], found.held_out)):
        assert matches.num_tokens == len(part)
        assert matches.by_length == {n: int((part == n).sum()) for n in (0, 2, 3, 4)}
