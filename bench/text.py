"""Real text for the longest-match case: frequent n-grams of one part, positions to look up from the part held out.

Text: WikiText-2 (validation) with GPT-2's BPE where the environment variable NGRAMSTORE_DATA names a folder that holds them,
else the sources of this Python's standard library with a BPE trained on them.
The n-grams of length 2..5 compete in one ranking by count, shorter first among equals, so the set is suffix-closed.

Shapes: T positions, N orders (2..5), S n-grams kept, K longest n-gram.
"""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import data
from ngramstore.hashing import ngram_ids

MAX_N = 5
HELD_OUT_EVERY = 10
_TRAINED_VOCABULARY = 16_384


@dataclass(frozen=True)
class Positions:
    """One call: tokens (T,) u32 for us; the IDs of each position's 2..5-grams (T, N) u64, 0 = reaches before the start, for
    the peers; and what the answer is: lengths (T,), and the matched n-grams as a batch of exact keys."""

    tokens_T: np.ndarray
    ids_TN: np.ndarray
    lengths_T: np.ndarray
    exact: data.Batch

    def __len__(self) -> int:
        return len(self.tokens_T)


def origins() -> list[str]:
    """Texts that are at hand here."""
    return ["python", "wikitext"] if _wikitext_folder() else ["python"]


def prepare(
    root: Path,
    num_ngrams: int,
    dim: int,
    seed: int,
    max_files: int | None,
    origin: str | None = None,
    codec: str = "int8",
) -> Path:
    """Folder of a dataset of at most `num_ngrams` mined n-grams, with held_out.npy, (X,) u32 tokens, beside it.

    origin: one of `origins()`; None: WikiText where it is at hand.
    """
    origin = origin or origins()[-1]
    name = "wikitext2-valid" if origin == "wikitext" else f"python-stdlib-{max_files or 'all'}"
    folder = root / f"text-{name}-n{num_ngrams}-d{dim}-s{seed}{'' if codec == 'int8' else f'-{codec}'}"
    if not folder.exists():
        pieces = _wikitext(_wikitext_folder()) if origin == "wikitext" else _python(max_files)
        held_out = [piece for i, piece in enumerate(pieces) if i % HELD_OUT_EVERY == 0]
        training = [piece for i, piece in enumerate(pieces) if i % HELD_OUT_EVERY]
        ngrams_SK, lengths_S = frequent_ngrams(np.concatenate(training), num_ngrams)
        np.save(root / f"{folder.name}.held_out.npy", np.concatenate(held_out))
        data.write(folder, ngrams_SK, lengths_S, dim, seed, codec)
    return folder


def stretches(source: data.Dataset, count: int, positions: int, seed: int) -> list[Positions]:
    """`count` random stretches of `positions` tokens of the held-out text."""
    tokens_X = np.load(source.folder.parent / f"{source.folder.name}.held_out.npy")
    starts = np.random.default_rng(seed).integers(0, len(tokens_X) - positions, count)
    order_S = np.argsort(source.ids_N)
    ids_S = source.ids_N[order_S]
    return [_positions(tokens_X[start : start + positions], ids_S, order_S) for start in starts]


def standard_library(max_files: int | None) -> list[str]:
    """The source files of this Python that are not empty; about `max_files` of them, spread over all."""
    home = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in home.rglob("*.py") if "site-packages" not in path.parts and path.stat().st_size)
    step = max(1, len(paths) // max_files) if max_files else 1
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths[::step]]


def frequent_ngrams(tokens_X: np.ndarray, num_ngrams: int, min_count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent n-grams of length 2..5: (S, 5) u32 left-aligned and lengths (S,) u8, in no particular order."""
    kept, lengths, counts = [], [], []
    for n in range(2, MAX_N + 1):
        windows_WN = np.lib.stride_tricks.sliding_window_view(tokens_X, n)
        _, first, count = np.unique(ngram_ids(windows_WN), return_index=True, return_counts=True)
        first, count = first[count >= min_count], count[count >= min_count]
        ngrams_SK = np.zeros((len(first), MAX_N), np.uint32)
        ngrams_SK[:, :n] = windows_WN[first]
        kept.append(ngrams_SK)
        lengths.append(np.full(len(first), n, np.uint8))
        counts.append(count)
    length_S = np.concatenate(lengths)
    best_S = np.lexsort((length_S, -np.concatenate(counts)))[:num_ngrams]
    best_S = np.random.default_rng(len(best_S)).permutation(best_S)
    return np.concatenate(kept)[best_S], length_S[best_S]


def _positions(tokens_T: np.ndarray, ids_S: np.ndarray, order_S: np.ndarray) -> Positions:
    """The answer by the definition: the longest suffix that is in the set; every length is looked at."""
    T = len(tokens_T)
    ids_TN = np.zeros((T, MAX_N - 1), np.uint64)
    lengths_T = np.zeros(T, np.int64)
    numbers_T = np.full(T, -1, np.int64)
    ngrams_TK = np.zeros((T, MAX_N), np.uint32)
    asked_T = np.full(T, 2, np.uint8)
    ngrams_TK[1:, :2] = np.lib.stride_tricks.sliding_window_view(tokens_T, 2)
    ngrams_TK[0, :2] = tokens_T[0]
    for n in range(2, MAX_N + 1):
        windows_WN = np.lib.stride_tricks.sliding_window_view(tokens_T, n)
        ids_TN[n - 1 :, n - 2] = ngram_ids(windows_WN)
        place_T = np.minimum(np.searchsorted(ids_S, ids_TN[:, n - 2]), len(ids_S) - 1)
        at = np.flatnonzero((ids_S[place_T] == ids_TN[:, n - 2]) & (np.arange(T) >= n - 1))
        lengths_T[at] = asked_T[at] = n
        numbers_T[at] = order_S[place_T[at]]
        ngrams_TK[at, :n] = windows_WN[at - (n - 1)]
    exact_ids_T = ngram_ids(ngrams_TK, asked_T)
    present = np.flatnonzero(numbers_T < 0)  # position 0 asks for a bigram that might exist by chance
    place = np.minimum(np.searchsorted(ids_S, exact_ids_T[present]), len(ids_S) - 1)
    exact_numbers_T = numbers_T.copy()
    exact_numbers_T[present] = np.where(ids_S[place] == exact_ids_T[present], order_S[place], -1)
    return Positions(tokens_T, ids_TN, lengths_T, data.Batch(ngrams_TK, asked_T, exact_ids_T, exact_numbers_T))


def _wikitext_folder() -> Path | None:
    folder = Path(os.environ.get("NGRAMSTORE_DATA") or "nowhere")
    return folder if (folder / "wikitext2-valid.txt").exists() else None


def _wikitext(folder: Path) -> list[np.ndarray]:
    """Paragraphs of WikiText-2's validation part in GPT-2's tokens."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(str(folder / "gpt2-bpe/vocab.json"), str(folder / "gpt2-bpe/merges.txt"))
    lines = (folder / "wikitext2-valid.txt").read_text(encoding="utf-8").splitlines()
    return [np.array(found.ids, np.uint32) for found in bpe.encode_batch([line for line in lines if line.strip()])]


def _python(max_files: int | None) -> list[np.ndarray]:
    """Source files of this Python in tokens of a BPE trained on some of them."""
    from tokenizers import ByteLevelBPETokenizer

    texts = standard_library(max_files)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts[::4], vocab_size=_TRAINED_VOCABULARY, show_progress=False)
    return [np.array(found.ids, np.uint32) for found in bpe.encode_batch(texts)]
