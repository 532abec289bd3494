"""A corpus of token shards to tagged training and held-out tokens, piece by piece.

What is held out is what mining left out (`ngramstore.mine.held_out_spans`): the model has seen none of it, and neither has
the vocabulary; a tokenizer that was trained on the corpus has. A document that lost a piece in its middle becomes two.

Shapes: P tokens of a part, D documents of a shard, S spans, T tokens of a piece.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ngramstore.mine import Shard, TokenShards, Vocabulary, held_out_spans
from ngramstore_torch.data.batches import TaggedTokens, require_numbers, tag

_PIECE_TOKENS = 1 << 22


def tag_corpus(
    corpus: TokenShards, vocabulary: Vocabulary | None, *, held_out: float = 0.0, folder: str | Path | None = None
) -> tuple[TaggedTokens, TaggedTokens]:
    """Training and held-out tokens of a corpus, each with its tags.

    Memory: 6 to 8 bytes a token; while it works also a byte a token of one shard, which for a token file is all of it, some
    tens of bytes a document, and 100 MB.
    held_out: fraction to hold out; the one the vocabulary was mined with, where it is to be honest.
    folder: keep the arrays in memory-mapped files there instead of in memory.
    Raises UsageError where corpus and vocabulary come from different tokenizers, and for more n-grams than tags have numbers for.
    """
    spans = held_out_spans(corpus, held_out)
    train = _tag_part(corpus, vocabulary, spans, is_held=False, folder=folder)
    return train, _tag_part(corpus, vocabulary, spans, is_held=True, folder=folder)


def tag_held_out(corpus: TokenShards, vocabulary: Vocabulary | None, *, held_out: float) -> TaggedTokens:
    """The second of what `tag_corpus` returns, without the work for the first."""
    return _tag_part(corpus, vocabulary, held_out_spans(corpus, held_out), is_held=True, folder=None)


def tag_training(corpus: TokenShards, vocabulary: Vocabulary | None, *, held_out: float) -> TaggedTokens:
    """The first of what `tag_corpus` returns, without the work for the second."""
    return _tag_part(corpus, vocabulary, held_out_spans(corpus, held_out), is_held=False, folder=None)


def _tag_part(
    corpus: TokenShards,
    vocabulary: Vocabulary | None,
    spans: list[np.ndarray],
    *,
    is_held: bool,
    folder: str | Path | None,
) -> TaggedTokens:
    """The tokens inside the spans of each shard, or those outside."""
    if vocabulary is not None:
        vocabulary.require_tokenizer(corpus.tokenizer_id)
        require_numbers(vocabulary)
    name = "held-out" if is_held else "train"
    cuts = [_cut(*both) for both in zip(corpus.shards, spans, strict=True)]
    lengths = [lengths_D[is_held_D == is_held] for lengths_D, is_held_D in cuts]
    starts = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
    dtype = np.result_type(np.uint16, *(shard.tokens().dtype for shard in corpus.shards))
    tokens_P, filled = _array(int(starts[-1]), dtype, folder, f"{name}-tokens"), 0
    for shard, (lengths_D, is_held_D) in zip(corpus.shards, cuts, strict=True):
        tokens, is_here = shard.tokens(), np.repeat(is_held_D == is_held, lengths_D)
        for begin in range(0, len(tokens), _PIECE_TOKENS):
            piece = slice(begin, begin + _PIECE_TOKENS)
            some_T = tokens[piece][is_here[piece]]
            tokens_P[filled : filled + len(some_T)] = some_T
            filled += len(some_T)
    assert filled == len(tokens_P)
    if vocabulary is None:
        return tag(tokens_P, starts, None)
    rows_P = _array(len(tokens_P), np.dtype(np.int32), folder, f"{name}-rows")
    for begin, _, rows_T in vocabulary.tag_pieces(tokens_P, starts):
        rows_P[begin : begin + len(rows_T)] = rows_T
    return TaggedTokens(tokens_P, starts, rows_P, *vocabulary.ngrams)


def _cut(shard: Shard, spans_S2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A shard's documents, cut where a span begins or ends: lengths (D,) int64, and which are held out, (D,) bool."""
    bounds = np.union1d(shard.starts().astype(np.int64), spans_S2.ravel())
    begins, is_held_D = bounds[:-1], np.zeros(len(bounds) - 1, bool)
    if len(spans_S2):
        nearest = np.searchsorted(spans_S2[:, 0], begins, side="right") - 1
        is_held_D = (nearest >= 0) & (begins < spans_S2[nearest, 1])
    return np.diff(bounds), is_held_D


def _array(size: int, dtype: np.dtype, folder: str | Path | None, name: str) -> np.ndarray:
    return np.empty(size, dtype) if folder is None or size == 0 else _mapped(Path(folder) / f"{name}.npy", size, dtype)


def _mapped(path: Path, size: int, dtype: np.dtype) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an earlier call's array may be mapped: it keeps its own bytes
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
