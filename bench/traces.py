"""Token traces of real text for serving: frequent n-grams of one part as a store, the held-out part to decode.

English is WikiText-2 (validation) and tinyshakespeare where the environment variable NGRAMSTORE_DATA names a folder that
holds them; code is the sources of this Python's standard library; mixed alternates 256 tokens of each. All share one
tokenizer: GPT-2's where that folder holds it, else a BPE trained on the code.

Shapes: X tokens, S n-grams kept, K longest n-gram, D row width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ngramstore
from bench import text
from ngramstore.hashing import ngram_ids

ENGLISH_FILES = ("wikitext2-valid.txt", "tinyshakespeare.txt")
_MIX = 256
_BUILD_CHUNK = 1 << 15


def available() -> list[str]:
    """Names of the traces that can be made here."""
    return ["code", "english", "mixed"] if _english_files() else ["code"]


def prepare(root: Path, name: str, num_ngrams: int, dim: int, seed: int, max_files: int | None) -> Path:
    """Folder with `store/`, `held_out.npy` (X,) u32; its n-grams lie beside it; it appears under its name when it is whole."""
    folder = root / f"trace-{name}-n{num_ngrams}-d{dim}-f{max_files or 'all'}-s{seed}"
    if folder.exists():
        return folder
    training, held_out = _split(root, name, max_files)
    kept = root / f"trace-{name}-n{num_ngrams}-f{max_files or 'all'}.npz"
    if not kept.exists():  # stores of several widths are made of the same n-grams
        ngrams_SK, lengths_S = text.frequent_ngrams(training, num_ngrams)
        _save(kept, ngrams=ngrams_SK, lengths=lengths_S)
    with np.load(kept) as found:
        ngrams_SK, lengths_S = found["ngrams"], found["lengths"]
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    made = _rows(len(ngrams_SK), dim, seed)
    with ngramstore.build(part / "store", dim=dim, max_n=text.MAX_N, codec="int8", restart=True) as build:
        for at in range(0, len(ngrams_SK), _BUILD_CHUNK):
            chunk = slice(at, at + _BUILD_CHUNK)
            build.add((ngrams_SK[chunk], lengths_S[chunk]), next(made))
    np.save(part / "held_out.npy", held_out)
    os.replace(part, folder)
    return folder


def answers(folder: Path, tokens_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a trace's store must answer, by the definition, without the store: for each position the number of the longest
    n-gram that ends there, -1 for none (B, T); and the rows of the first C n-grams (C, D) f32 as they were before the codec.
    The n-grams are in random order, so these are a random sample.
    """
    name = re.fullmatch(r"(trace-.*-n\d+)-d(\d+)(-f\w+)-s(\d+)", folder.name)
    assert name is not None, f"{folder} is not a trace's folder"
    stem, dim, files, seed = name.groups()
    with np.load(folder.parent / f"{stem}{files}.npz") as found:
        ngrams_SK, lengths_S = found["ngrams"], found["lengths"]
    ids_S = ngram_ids(ngrams_SK, lengths_S)
    order_S = np.argsort(ids_S)
    numbers_BT = np.full(tokens_BT.shape, -1, np.int64)
    for n in range(2, text.MAX_N + 1):  # longer ones last
        windows_BWN = np.lib.stride_tricks.sliding_window_view(tokens_BT.astype(np.uint32), n, axis=1)
        ids_BW = ngram_ids(windows_BWN.reshape(-1, n)).reshape(windows_BWN.shape[:2])
        place_BW = order_S[np.minimum(np.searchsorted(ids_S, ids_BW, sorter=order_S), len(ids_S) - 1)]
        is_there_BW = ids_S[place_BW] == ids_BW
        numbers_BT[:, n - 1 :][is_there_BW] = place_BW[is_there_BW]
    return numbers_BT, next(_rows(len(ngrams_SK), int(dim), int(seed)))


def _rows(num_rows: int, dim: int, seed: int) -> Iterator[np.ndarray]:
    """The rows of a trace's n-grams, a chunk at a time."""
    rng = np.random.default_rng([seed, dim])
    for at in range(0, num_rows, _BUILD_CHUNK):
        yield rng.standard_normal((min(_BUILD_CHUNK, num_rows - at), dim), np.float32) * np.float32(0.02)


def _split(root: Path, name: str, max_files: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out tokens; every tenth document is held out."""
    parts = {"code": ["code"], "english": ["english"], "mixed": ["code", "english"]}[name]
    pieces = [_documents(root, part, max_files) for part in parts]
    train = [np.concatenate([d for i, d in enumerate(docs) if i % text.HELD_OUT_EVERY]) for docs in pieces]
    held = [np.concatenate([d for i, d in enumerate(docs) if i % text.HELD_OUT_EVERY == 0]) for docs in pieces]
    if len(parts) == 1:
        return train[0], held[0]
    length = min(len(x) for x in held) // _MIX * _MIX
    mixed = np.concatenate([x[:length].reshape(-1, _MIX) for x in held], axis=1)
    return np.concatenate(train), mixed.reshape(-1)


def _documents(root: Path, part: str, max_files: int | None) -> list[np.ndarray]:
    kept = root / f"trace-tokens-{part}-f{max_files or 'all'}.npz"
    if not kept.exists():
        documents = _tokenize(part, max_files)
        _save(kept, tokens=np.concatenate(documents), sizes=np.array([len(tokens) for tokens in documents]))
    with np.load(kept) as found:
        return np.split(found["tokens"], np.cumsum(found["sizes"])[:-1])


def _tokenize(part: str, max_files: int | None) -> list[np.ndarray]:
    if part == "code":
        texts = text.standard_library(max_files)
    else:
        texts = [
            piece
            for file in _english_files()
            for piece in file.read_text(encoding="utf-8").split("\n\n" if "shakespeare" in file.name else "\n")
            if piece.strip()
        ]
    return [np.array(found.ids, np.uint32) for found in _tokenizer(max_files).encode_batch(texts) if found.ids]


def _save(path: Path, **arrays: np.ndarray) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)


def _tokenizer(max_files: int | None):
    from tokenizers import ByteLevelBPETokenizer

    folder = Path(os.environ.get("NGRAMSTORE_DATA", "")) / "gpt2-bpe"
    if (folder / "vocab.json").exists():
        return ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(text.standard_library(max_files)[::4], vocab_size=16_384, show_progress=False)
    return bpe


def _english_files() -> list[Path]:
    folder = os.environ.get("NGRAMSTORE_DATA")
    if not folder:
        return []
    return [Path(folder) / name for name in ENGLISH_FILES if (Path(folder) / name).exists()]
