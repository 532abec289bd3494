"""The vocabulary: the f-grams in rank order, with what they were mined from, and the longest match in running text.

Shapes: M n-grams, K longest n-gram, T position.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import DamagedStore, UsageError
from ngramstore.hashing import MAX_N
from ngramstore.mine.matching import Matcher
from ngramstore.mine.tokenizers import require_tokenizer
from ngramstore.mine.vocab_file import read_vocab, write_vocab
from ngramstore.windows import as_integers

_PIECE_TOKENS = 1 << 22
_FACTS: dict[str, type] = {
    "min_count": int,
    "num_frequent": int,
    "tokenizer_id": str,
    "tokenizer_name": str,
    "corpus_id": str,
    "corpus_tokens": int,
    "held_out": float,
}


class Vocabulary:
    """M n-grams of 2..K tokens, most frequent first. Does not change; threads: any number."""

    def __init__(
        self,
        tokens_MK: np.ndarray,
        lengths_M: np.ndarray,
        counts_M: np.ndarray,
        *,
        max_n: int | None = None,
        min_count: int = 1,
        num_frequent: int | None = None,
        tokenizer_id: str = "",
        tokenizer_name: str = "",
        corpus_id: str = "",
        corpus_tokens: int = 0,
        held_out: float = 0.0,
    ) -> None:
        """tokens (M, K) left-aligned, lengths (M,) from 2 to K, counts (M,) that do not rise, and facts to carry along.

        max_n: K, where tokens are to be padded further. num_frequent: how many n-grams these were chosen from (None: M).
        tokenizer_id, corpus_id: "" where not known. Raises UsageError for what does not fit, also an n-gram given twice.
        """
        tokens_MK, lengths_M, counts_M = np.asarray(tokens_MK), np.asarray(lengths_M), np.asarray(counts_M)
        width = tokens_MK.shape[1] if tokens_MK.ndim == 2 else 0
        self.max_n = width if max_n is None else max_n
        if (
            not 2 <= width <= self.max_n <= MAX_N
            or lengths_M.shape != counts_M.shape
            or len(tokens_MK) != len(lengths_M)
        ):
            raise UsageError(
                f"tokens {tokens_MK.shape}, lengths {lengths_M.shape}, counts {counts_M.shape} with max_n {self.max_n}",
                hint=f"wanted (M, K), (M,), (M,) with 2 <= K <= max_n <= {MAX_N}",
            )
        for name, array, most in (
            ("tokens", tokens_MK, 2**32 - 2),
            ("lengths", lengths_M, width),
            ("counts", counts_M, 2**64 - 1),
        ):
            if array.size and not (array.dtype.kind in "ui" and array.min() >= 0 and array.max() <= most):
                raise UsageError(
                    f"{name} must be whole numbers from 0 to {most}, got {array.dtype} {array.min()}..{array.max()}"
                )
        if len(lengths_M) and lengths_M.min() < 2:
            raise UsageError(f"an n-gram of length {lengths_M.min()}: a vocabulary holds lengths from 2")
        if (counts_M[1:] > counts_M[:-1]).any():
            raise UsageError("counts rise: the most frequent n-gram must come first")
        self._tokens_MK = np.zeros((len(lengths_M), self.max_n), np.uint32)
        self._tokens_MK[:, :width] = np.where(np.arange(width) < lengths_M[:, None], tokens_MK, 0)
        self._lengths_M = lengths_M.astype(np.uint8)
        self.counts = counts_M.astype(np.uint64)
        """How often each occurs, (M,) u64."""
        for array in (self._tokens_MK, self._lengths_M, self.counts):
            array.flags.writeable = False
        self.min_count = min_count
        self.num_frequent = len(lengths_M) if num_frequent is None else num_frequent
        self.tokenizer_id, self.tokenizer_name = tokenizer_id, tokenizer_name
        self.corpus_id, self.corpus_tokens = corpus_id, corpus_tokens
        self.held_out = float(held_out)
        self._matcher = Matcher(self._tokens_MK, self._lengths_M)

    @property
    def ngrams(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (M, K) u32 left-aligned, zero-padded, and lengths (M,) u8; read-only."""
        return self._tokens_MK, self._lengths_M

    @property
    def cutoff(self) -> int:
        """Count of the last n-gram kept; 0 for an empty vocabulary."""
        return int(self.counts[-1]) if len(self) else 0

    def __len__(self) -> int:
        return len(self._lengths_M)

    def tag(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The longest n-gram that ends at each position inside its document: lengths (T,) u8 and rows (T,) int64.

        tokens (T,) integers. starts: (T,) bool, True where a document starts, or the ascending offsets of documents (T
        itself may end them). Where nothing matches the length is 0 and the row -1. Position 0 always starts a document.
        """
        return self._matcher.tag(tokens, starts)

    def tag_pieces(self, tokens: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """As `tag`, of one piece of the tokens after another: (its first position, lengths, rows).

        starts: ascending offsets of documents, the first 0. `tag` takes some 20 bytes a token beside the tokens, this 100 MB.
        """
        starts = as_integers(starts, "starts")
        if starts.dtype.itemsize < 8:  # offsets of ours go beyond theirs
            starts = starts.astype(np.int64)
        for begin in range(0, len(tokens), _PIECE_TOKENS):
            end = min(len(tokens), begin + _PIECE_TOKENS)
            first = max(0, begin - self.max_n + 1)  # the first n-grams of a piece reach back to there
            some = slice(*np.searchsorted(starts, np.array([first, end], starts.dtype)))
            lengths_T, rows_T = self.tag(tokens[first:end], starts[some].astype(np.int64) - first)
            yield begin, lengths_T[begin - first :], rows_T[begin - first :]

    def is_suffix_closed(self) -> bool:
        """True if every n-gram longer than the shortest one has its suffix, one token shorter, in the set too."""
        return self._matcher.is_suffix_closed

    def require_tokenizer(self, tokenizer_id: str) -> None:
        """Raise UsageError where both tokenizers are known and differ: token ids would mean something else."""
        made_with = {"tokenizer_id": self.tokenizer_id, "tokenizer_name": self.tokenizer_name}
        require_tokenizer("the vocabulary", made_with, tokenizer_id)

    def save(self, path: str | Path) -> None:
        """Write the vocabulary file, whole or not at all."""
        facts = {name: getattr(self, name) for name in _FACTS}
        write_vocab(Path(path), self._tokens_MK, self._lengths_M, self.counts, facts)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary file, checking every byte. Raises UsageError (no file) or FormatError."""
        tokens_MK, lengths_M, counts_M, facts = read_vocab(Path(path))
        known: dict[str, Any] = {name: facts.get(name) for name in _FACTS}
        for name, kind in _FACTS.items():
            if type(known[name]) is not kind:
                raise DamagedStore(f"{path}: the fact {name!r} is {known[name]!r}", hint="mine the vocabulary again")
        try:
            return cls(tokens_MK, lengths_M, counts_M, max_n=tokens_MK.shape[1], **known)
        except UsageError as error:
            raise DamagedStore(f"{path}: {error.message}", hint="mine the vocabulary again") from None
