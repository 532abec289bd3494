"""Where the n-grams of a build come from: vocabularies, arrays and text, a chunk at a time in the order of their rows.

Shapes: M n-grams of a chunk, K longest n-gram.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.npy import map_npy
from ngramstore.store.building.row_files import no_file

_CHECKED_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class NgramFile:
    """N-grams in the order of their rows. `chunks(step)`: tokens (M, K) u32 left-aligned and lengths (M,), in turn."""

    num_ngrams: int
    max_n: int
    chunks: Callable[[int], Iterator[tuple[np.ndarray, np.ndarray]]]
    facts: dict[str, Any] = field(default_factory=dict)


def open_ngrams(path: str | os.PathLike[str]) -> NgramFile:
    """The n-grams in a vocabulary of `mine`, an `.npy` array (M, n), a folder with tokens.npy and lengths.npy, or text.

    Text: an n-gram a line, as token ids with spaces or commas between, or a JSON list. Raises UsageError, FormatError.
    """
    path = Path(path)
    if path.is_dir():
        tokens, lengths = _integers(path / "tokens.npy", 2), _integers(path / "lengths.npy", 1)
        if len(tokens) != len(lengths):
            raise UsageError(f"{path}: {len(tokens):,} lines of tokens, {len(lengths):,} lengths")
        _check_lengths(path / "lengths.npy", lengths, tokens.shape[1])
        return _from_arrays(tokens, lengths)
    if not path.is_file():
        raise UsageError(no_file(path), hint="`ngramstore mine` writes vocabularies")
    if path.suffix == ".ngv":
        from ngramstore.mine.vocab_file import read_vocab

        tokens, lengths, _, facts = read_vocab(path)
        return _from_arrays(tokens, lengths, {name: fact for name, fact in facts.items() if fact != ""})
    if path.suffix == ".npy":
        tokens = _integers(path, 2)
        return _from_arrays(tokens, np.broadcast_to(np.int64(tokens.shape[1]), len(tokens)))
    return _TextNgrams(path).as_file()


def _integers(path: Path, ndim: int) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="a folder of n-grams holds tokens.npy and lengths.npy")
    array = map_npy(path)
    if array.ndim != ndim or array.dtype.kind not in "iu":
        raise UsageError(f"{path} holds {array.dtype} {array.shape}", hint=f"wanted integers in {ndim} dimensions")
    return array


def _check_lengths(path: Path, lengths: np.ndarray, width: int) -> None:
    for at in range(0, len(lengths), _CHECKED_AT_ONCE):
        part = lengths[at : at + _CHECKED_AT_ONCE]
        if part.min() < 1 or part.max() > width:
            bad = int(np.flatnonzero((part < 1) | (part > width))[0])
            raise UsageError(
                f"{path}: n-gram {at + bad} has {part[bad]} tokens, a line of tokens.npy has {width}",
                hint=f"lengths are 1 to {width}",
            )


def _from_arrays(tokens: np.ndarray, lengths: np.ndarray, facts: dict[str, Any] | None = None) -> NgramFile:
    def chunks(step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for at in range(0, len(tokens), step):
            yield np.array(tokens[at : at + step]), np.array(lengths[at : at + step])

    return NgramFile(len(tokens), tokens.shape[1], chunks, facts or {})


class _TextNgrams:
    """Lines of token ids. Read twice: once to count, once to build."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def as_file(self) -> NgramFile:
        return NgramFile(*self._extent, self._chunks)

    @cached_property
    def _extent(self) -> tuple[int, int]:
        count, longest = 0, 1
        for ngram in self._ngrams():
            count += 1
            longest = max(longest, len(ngram))
        return count, longest

    def _chunks(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        width = self._extent[1]
        pending: list[list[int]] = []
        for ngram in self._ngrams():
            pending.append(ngram)
            if len(pending) == step:
                yield _aligned(pending, width)
                pending = []
        if pending:
            yield _aligned(pending, width)

    def _ngrams(self) -> Iterator[list[int]]:
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                tokens = _tokens_of(line)
                if not 1 <= len(tokens) <= MAX_N or min(tokens) < 0 or max(tokens) >= 1 << 32:
                    raise UsageError(
                        f"{self._path}, line {number}: {line.strip()[:80]!r} is not an n-gram",
                        hint=f"a line holds 1 to {MAX_N} token ids (0 .. 2**32 - 1), with spaces or commas, or a JSON list",
                    )
                yield tokens


def _tokens_of(line: bytes) -> list[int]:
    """The token ids in a line, none where it is something else."""
    if line.lstrip()[:1] not in b"[{":
        words = line.replace(b",", b" ").split()
        return [int(word) for word in words] if all(word.isdigit() and len(word) <= 10 for word in words) else []
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return []
    tokens = value.get("tokens") if isinstance(value, dict) else value
    return tokens if isinstance(tokens, list) and all(type(token) is int for token in tokens) else []


def _aligned(ngrams: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(ngram) for ngram in ngrams])
    tokens = np.zeros((len(ngrams), width), np.uint32)
    tokens[np.arange(width) < lengths[:, None]] = [token for ngram in ngrams for token in ngram]
    return tokens, lengths
