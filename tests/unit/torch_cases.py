"""Small data and models for the PyTorch tests: a made-up language with repeated phrases, and its frequent n-grams."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ngramstore.mine import Vocabulary
from ngramstore_torch.data.batches import TaggedTokens, tag
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.model.scone import PlainModel, SconeModel

VOCAB = 40
DECODER = DecoderConfig(vocab_size=VOCAB, dim=32, num_layers=2, num_heads=2, max_positions=32)
FGRAM = FgramConfig(dim=32, max_n=4, num_layers=2, num_heads=2)


def language(num_documents: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Documents made of 30 phrases of 2..6 tokens: tokens (P,) uint16 and document offsets."""
    rng = np.random.default_rng(seed)
    phrases = [np.random.default_rng(i).integers(0, VOCAB, 2 + i % 5) for i in range(30)]
    documents = [
        np.concatenate([phrases[i] for i in rng.integers(0, 30, rng.integers(8, 25))]) for _ in range(num_documents)
    ]
    return np.concatenate(documents).astype(np.uint16), np.cumsum([0] + [len(d) for d in documents])


def vocabulary(tokens: np.ndarray, starts: np.ndarray, size: int = 80, max_n: int = 4) -> Vocabulary:
    """The most frequent n-grams of 2..max_n tokens, counted one by one."""
    counts: Counter[tuple[int, ...]] = Counter()
    for begin, end in pairwise(starts):
        document = tokens[begin:end].tolist()
        for n in range(2, max_n + 1):
            counts.update(tuple(document[i : i + n]) for i in range(len(document) - n + 1))
    best = sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))[:size]
    tokens_MK = np.zeros((len(best), max_n), np.uint32)
    for m, (ngram, _) in enumerate(best):
        tokens_MK[m, : len(ngram)] = ngram
    lengths_M = np.array([len(ngram) for ngram, _ in best])
    return Vocabulary(tokens_MK, lengths_M, np.array([count for _, count in best]))


def tagged(num_documents: int = 40, seed: int = 0) -> tuple[TaggedTokens, Vocabulary]:
    """A language, tagged with the f-grams of the language with seed 0."""
    vocab = vocabulary(*language())
    return tag(*language(num_documents, seed), vocab), vocab


def scone(seed: int = 0, fgram: FgramConfig = FGRAM, decoder: DecoderConfig = DECODER) -> SconeModel:
    torch.manual_seed(seed)
    return SconeModel(decoder, fgram)


def plain(seed: int = 0, decoder: DecoderConfig = DECODER) -> PlainModel:
    torch.manual_seed(seed)
    return PlainModel(decoder)


@contextmanager
def changed_description(folder: Path) -> Iterator[dict]:
    """What checkpoint.json says, to be changed in place; its checksum goes, as nobody would have noted one of the change."""
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text())
    description.pop("crc32", None)
    yield description
    path.write_text(json.dumps(description))


def shaken(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The model away from its start: A_f is not the identity any more."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return model
