"""Tokens with their longest f-gram tagged ahead of time, cut into batches that are a pure function of seed and step.

Tagging runs once over the whole corpus (`Vocabulary.tag`), so a training step only slices arrays. Documents are packed
one behind the other; a window may run over a document start and attention runs with it, but no f-gram does: tags are
made inside a document. Evaluation windows stay inside one document.

Shapes: P tokens of the corpus, N f-grams of the vocabulary, K tokens of the longest one, B batch, T position,
U different f-grams of a batch, D documents, W windows, J steps back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.windows import as_tokens

IGNORE = -100  # the target that cross_entropy leaves out
MAX_FGRAMS = 2**31 - 1  # TaggedTokens.rows_P is int32
_OF_CORPORA = (np.uint8, np.uint16, np.uint32)
"""Types of which every number is a token id: nothing is read or copied to check them."""


class VocabularyLike(Protocol):
    """What is needed of `ngramstore.mine.Vocabulary`."""

    max_n: int

    @property
    def ngrams(self) -> tuple[np.ndarray, np.ndarray]: ...

    def tag(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Batch:
    """One step's input. Tensors int64, arrays that only some models read are empty for the others."""

    tokens_BT: Tensor
    targets_BT: Tensor
    """The next token, or IGNORE."""
    fgram_at_BT: Tensor
    """Which of the U f-grams is the longest that ends here; -1 where there is none."""
    fgram_tokens_UK: Tensor
    """Each different f-gram of the batch once, shortest first, left-aligned, zeros behind its length."""
    fgram_lengths_U: Tensor
    fgram_counts: tuple[int, ...] = ()
    """How many of the U f-grams have length 2, 3, .. (host numbers: they say where lengths change without a sync)."""
    history_BTJ: Tensor | None = None
    """Tokens 1..J steps back inside the document, -1 before its start. Only for hashed tables."""
    documents: tuple[np.ndarray, ...] = ()
    """Only in evaluation: each row's tokens with up to 15 earlier tokens of its document in front."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; the copies overlap with its work where the batch is pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a CUDA device copies from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed)


@dataclass(frozen=True)
class TaggedTokens:
    """Documents one behind the other, and the vocabulary row of the longest f-gram that ends at each token."""

    tokens_P: np.ndarray
    starts: np.ndarray
    """Offset of each document, then P: document d is tokens[starts[d] : starts[d + 1]]."""
    rows_P: np.ndarray
    """int32; -1 where no f-gram ends."""
    fgrams_NK: np.ndarray
    fgram_lengths_N: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_P)

    def batch(self, begins_B: np.ndarray, seq_len: int, *, history: int = 0) -> Batch:
        """Windows of `seq_len` tokens from each begin, with the token that follows each as its target."""
        index_BT = begins_B[:, None] + np.arange(seq_len)
        return self._batch(index_BT, self.tokens_P[index_BT + 1].astype(np.int64), history)

    def at(self, index_BT: np.ndarray, *, history: int = 0) -> Batch:
        """The tokens at any positions, without targets."""
        return self._batch(index_BT, np.full(index_BT.shape, IGNORE, np.int64), history)

    def _batch(self, index_BT: np.ndarray, targets_BT: np.ndarray, history: int) -> Batch:
        rows_BT = self.rows_P[index_BT]
        unique_U, where = np.unique(rows_BT, return_inverse=True)  # sorted, so -1 (no f-gram) comes first
        num_missing = int(len(unique_U) > 0 and unique_U[0] < 0)
        unique_U = unique_U[num_missing:]
        order_U = np.argsort(self.fgram_lengths_N[unique_U], kind="stable")
        rank_U = np.empty(len(order_U) + num_missing, np.int64)
        rank_U[:num_missing] = -1
        rank_U[num_missing:][order_U] = np.arange(len(order_U))
        chosen_U = unique_U[order_U]
        lengths_U = self.fgram_lengths_N[chosen_U].astype(np.int64)
        longest = int(lengths_U[-1]) if len(lengths_U) else 2
        return Batch(
            tokens_BT=torch.from_numpy(self.tokens_P[index_BT].astype(np.int64)),
            targets_BT=torch.from_numpy(targets_BT),
            fgram_at_BT=torch.from_numpy(rank_U[where.reshape(rows_BT.shape)]),
            fgram_tokens_UK=torch.from_numpy(self.fgrams_NK[chosen_U, :longest].astype(np.int64)),
            fgram_lengths_U=torch.from_numpy(lengths_U),
            fgram_counts=tuple(np.bincount(lengths_U, minlength=2)[2:].tolist()),
            history_BTJ=torch.from_numpy(self._history(index_BT, history)) if history else None,
        )

    def _history(self, index_BT: np.ndarray, steps: int) -> np.ndarray:
        """Tokens 1..steps back of each position: (B, T, steps) int64, -1 before the document's start."""
        begin_BT = self.starts[np.searchsorted(self.starts, index_BT, side="right") - 1]
        back_BTJ = index_BT[..., None] - np.arange(1, steps + 1)
        inside = back_BTJ >= begin_BT[..., None]
        return np.where(inside, self.tokens_P[np.maximum(back_BTJ, 0)].astype(np.int64), -1)

    def evaluation_batches(
        self, seq_len: int, batch_size: int, *, history: int = 0, max_windows: int = 0
    ) -> Iterator[Batch]:
        """Every document cut into windows of at most `seq_len`; each token but a document's first is a target once.

        A window starts without what came before it, for every model alike; f-grams at its start still see their tokens.
        `max_windows` keeps that many, evenly spread; 0 keeps all.
        """
        begins_W, ends_W = document_windows(self.starts, seq_len)
        if 0 < max_windows < len(begins_W):
            kept = np.linspace(0, len(begins_W) - 1, max_windows).round().astype(np.int64)
            begins_W, ends_W = begins_W[kept], ends_W[kept]
        for first in range(0, len(begins_W), batch_size):
            begins_B, ends_B = begins_W[first : first + batch_size], ends_W[first : first + batch_size]
            index_BT = begins_B[:, None] + np.arange(int((ends_B - begins_B).max()))
            inside_BT = index_BT < ends_B[:, None]
            index_BT = np.where(inside_BT, index_BT, ends_B[:, None] - 1)
            next_BT = self.tokens_P[np.minimum(index_BT + 1, len(self) - 1)].astype(np.int64)
            targets_BT = np.where(inside_BT, next_BT, IGNORE)
            document_B = self.starts[np.searchsorted(self.starts, begins_B, side="right") - 1]
            context_B = np.maximum(document_B, begins_B - (MAX_N - 1))
            documents = tuple(np.asarray(self.tokens_P[a:b]) for a, b in zip(context_B, ends_B, strict=True))
            batch = self._batch(index_BT, targets_BT, history)
            yield replace(batch, documents=documents)


def require_ids(tokens: np.ndarray, vocab_size: int, what: str) -> None:
    """UsageError where a token id is beyond a model's vocabulary: an embedding would only say that an index is out of range."""
    largest = int(np.max(tokens, initial=0))
    if largest >= vocab_size:
        raise UsageError(
            f"{what} hold token id {largest}, the model has ids 0 to {vocab_size - 1}",
            hint="they are of another tokenizer than the model's, or read with another dtype",
        )


def require_lengths(lengths_N: np.ndarray, max_n: int) -> None:
    """UsageError where an f-gram is longer than A_f takes: its table of positions would only say that shapes differ."""
    longest = int(np.max(lengths_N, initial=0))
    if longest > max_n:
        raise UsageError(
            f"the vocabulary has n-grams of {longest} tokens, the model takes up to {max_n}",
            hint="give the vocabulary that the model was trained with, or make the model with a larger max_n",
        )


def require_numbers(vocabulary: VocabularyLike) -> None:
    """UsageError where a vocabulary has more n-grams than tags have numbers for: they would wrap without a word."""
    num_ngrams = len(vocabulary.ngrams[1])
    if num_ngrams > MAX_FGRAMS:
        raise UsageError(
            f"the vocabulary has {num_ngrams:,} n-grams, tags have numbers for {MAX_FGRAMS:,}",
            hint="mine with a smaller size (`--size`)",
        )


def document_windows(starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """[begin, end) of the input windows that cover every document's tokens but its last, which has no target."""
    first_D, last_D = starts[:-1].astype(np.int64), starts[1:].astype(np.int64) - 1
    windows_D = np.maximum(-(-(last_D - first_D) // seq_len), 0)
    document_W = np.repeat(np.arange(len(windows_D)), windows_D)
    place_W = np.arange(len(document_W)) - np.repeat(np.cumsum(windows_D) - windows_D, windows_D)
    begins_W = first_D[document_W] + place_W * seq_len
    return begins_W, np.minimum(begins_W + seq_len, last_D[document_W])


class TrainingBatches:
    """Batch number `index` of a run: the same for the same (data, seed, sizes), whatever was asked before.

    Each epoch shuffles windows of `seq_len` tokens anew and shifts where they begin.
    """

    def __init__(self, data: TaggedTokens, *, batch_size: int, seq_len: int, seed: int, history: int = 0) -> None:
        self.num_windows = (len(data) - 1) // seq_len - 1  # one less: room for the shift
        if self.num_windows < batch_size:
            raise UsageError(
                f"{len(data)} training tokens do not fill one batch of {batch_size} x {seq_len}",
                hint="use a larger corpus, a smaller batch or shorter sequences",
            )
        self.data, self.batch_size, self.seq_len, self.seed, self.history = data, batch_size, seq_len, seed, history
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, index: int) -> Batch:
        place_B = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        begins_B = np.array([self._epoch(p // self.num_windows)[p % self.num_windows] for p in place_B.tolist()])
        return self.data.batch(begins_B, self.seq_len, history=self.history)

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        shift = rng.integers(self.seq_len)
        return rng.permutation(self.num_windows) * self.seq_len + shift


def tag(tokens_P: np.ndarray, starts: np.ndarray, vocabulary: VocabularyLike | None) -> TaggedTokens:
    """Tokens (P,) and document offsets (first 0, last P) with their tags; without a vocabulary nothing matches.

    Raises UsageError for what is no token id, more n-grams than MAX_FGRAMS, and other offsets: without the last one,
    the last document would never be evaluated.
    """
    if getattr(tokens_P, "dtype", None) not in _OF_CORPORA:
        tokens_P = as_tokens(tokens_P)
    starts = np.asarray(starts)
    if (
        starts.ndim != 1
        or starts.dtype.kind not in "iu"
        or not len(starts)
        or (starts[0], starts[-1]) != (0, len(tokens_P))
    ):
        raise UsageError(
            f"starts are {starts.dtype} {starts.shape}, {starts.reshape(-1)[:1]} to {starts.reshape(-1)[-1:]}",
            hint=f"wanted the offsets of documents, the first 0, the last {len(tokens_P)}, where the tokens end",
        )
    starts = starts.astype(np.int64)
    if vocabulary is None:
        no_rows = np.broadcast_to(np.int32(-1), (len(tokens_P),))
        return TaggedTokens(tokens_P, starts, no_rows, np.zeros((0, 2), np.uint32), np.zeros(0, np.uint8))
    require_numbers(vocabulary)
    fgrams_NK, lengths_N = vocabulary.ngrams
    _, rows_P = vocabulary.tag(tokens_P, starts)
    return TaggedTokens(tokens_P, starts, rows_P.astype(np.int32), fgrams_NK, lengths_N)
