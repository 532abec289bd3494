"""A corpus of token shards to tagged training and held-out tokens, shard by shard.

What is held out is what mining left out (`ngramstore.mine.held_out_spans`): the model has seen none of it, and neither has
the vocabulary. A document that lost a piece in its middle becomes two.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ngramstore.mine import TokenShards, Vocabulary, held_out_spans, num_held_out
from ngramstore_torch.data.batches import TaggedTokens, tag


def tag_corpus(
    corpus: TokenShards, vocabulary: Vocabulary | None, *, held_out: float = 0.0, folder: str | Path | None = None
) -> tuple[TaggedTokens, TaggedTokens]:
    """Training and held-out tokens of a corpus, each with its tags. 6 to 8 bytes a token.

    held_out: fraction to hold out; the one the vocabulary was mined with, where it is to be honest.
    folder: keep the arrays in memory-mapped files there instead of in memory.
    Raises UsageError where corpus and vocabulary come from different tokenizers.
    """
    if vocabulary is not None:
        vocabulary.require_tokenizer(corpus.tokenizer_id)
    spans = held_out_spans(corpus, held_out)
    num_held = num_held_out(corpus, held_out)
    dtype = np.result_type(np.uint16, *(shard.tokens().dtype for shard in corpus.shards))
    train = _Parts(corpus.num_tokens - num_held, dtype, folder, "train")
    held = _Parts(num_held, dtype, folder, "held-out")
    for shard, spans_S2 in zip(corpus.shards, spans, strict=True):
        bounds = np.union1d(shard.starts().astype(np.int64), spans_S2.ravel())
        pieces, begins = np.diff(bounds), bounds[:-1]
        is_held = np.zeros(len(begins), bool)
        if len(spans_S2):
            nearest = np.searchsorted(spans_S2[:, 0], begins, side="right") - 1
            is_held = (nearest >= 0) & (begins < spans_S2[nearest, 1])
        tokens = shard.tokens()
        held.add(tokens[np.repeat(is_held, pieces)], pieces[is_held], vocabulary)
        train.add(tokens[np.repeat(~is_held, pieces)], pieces[~is_held], vocabulary)
    return train.finish(vocabulary), held.finish(vocabulary)


class _Parts:
    """Arrays of known size that are filled from the front."""

    def __init__(self, size: int, dtype: np.dtype, folder: str | Path | None, name: str) -> None:
        self.tokens, self.rows = (
            np.empty(size, kind)
            if folder is None or size == 0
            else _mapped(Path(folder) / f"{name}-{what}.npy", size, kind)
            for what, kind in (("tokens", dtype), ("rows", np.dtype(np.int32)))
        )
        self.starts = [np.zeros(1, np.int64)]
        self.filled = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary | None) -> None:
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        end = self.filled + len(tokens)
        self.tokens[self.filled : end] = tokens
        self.rows[self.filled : end] = tag(tokens, starts, vocabulary).rows_P if len(tokens) else 0
        self.starts.append(starts[1:] + self.filled)
        self.filled = end

    def finish(self, vocabulary: Vocabulary | None) -> TaggedTokens:
        assert self.filled == len(self.tokens)
        if vocabulary is None:
            fgrams_NK, lengths_N = np.zeros((0, 2), np.uint32), np.zeros(0, np.uint8)
        else:
            fgrams_NK, lengths_N = vocabulary.ngrams
        return TaggedTokens(self.tokens, np.concatenate(self.starts), self.rows, fgrams_NK, lengths_N)


def _mapped(path: Path, size: int, dtype: np.dtype) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
