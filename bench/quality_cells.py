"""One cell of the quality grid: a text, a tokenizer, a model and a number of tokens, trained and measured from one seed.

A cell depends on nothing but its fields, the preset and the text, so cells can be run in any order, stopped and gone on with.
Costs are FLOPs and processor seconds, which a machine that does something else meanwhile leaves as they are (almost,
for the latter).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from bench import machine
from ngramstore.mine import TokenShards, Vocabulary, mine_ngrams, open_corpus, python_sources
from ngramstore_torch.data.batches import TaggedTokens
from ngramstore_torch.data.corpus import tag_corpus
from ngramstore_torch.experiment.comparison import fgram_load
from ngramstore_torch.experiment.evaluate import evaluate_model
from ngramstore_torch.experiment.presets import Preset
from ngramstore_torch.model.costs import cost_of
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import PlainModel, SconeModel
from ngramstore_torch.training.train import train_model

MODELS = ("plain", "scone", "wide", "deep", "equal", "hashed")
CODE = "code"
"""The text that every machine with Python has: the sources of its standard library."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run. What a model does not depend on is 0 or "": the plain decoder is trained once for all f-grams."""

    text: str
    model: str
    tokenizer: int
    tokens: int
    num_fgrams: int = 0
    fgram_layers: int = 0
    fgram_width: int = 0
    """0: as wide as the decoder."""
    start: str = ""
    fgram_lr: float = 0
    """Rate of the f-gram model, as a fraction of the decoder's."""
    seed: int = 0

    @property
    def key(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


class Data:
    """Corpora by text and tokenizer size and their tags by number of f-grams, made when first asked for, kept in `folder`."""

    def __init__(self, folder: Path, preset: Preset, texts: Mapping[str, Sequence[Path]]) -> None:
        self.folder, self.preset, self.texts = folder, preset, texts
        self.corpus = lru_cache(maxsize=2)(self._corpus)
        self.tagged = lru_cache(maxsize=1)(self._tagged)

    def about(self, text: str, tokenizer: int) -> dict[str, int | str]:
        """What the text is, as JSON values: its size, and the identities of corpus and tokenizer."""
        corpus = self.corpus(text, tokenizer)
        return {
            "corpus_id": corpus.identity,
            "tokenizer_id": corpus.tokenizer_id,
            "documents": corpus.num_documents,
            "tokens": corpus.num_tokens,
        }

    def _corpus(self, text: str, tokenizer: int) -> TokenShards:
        files = list(self.texts[text]) or python_sources(self.preset.corpus_bytes)
        return open_corpus(files, tokenizer=f"train:{tokenizer}", cache=self.folder, errors="replace", progress=True)

    def _vocabulary(self, corpus: TokenShards, size: int) -> Vocabulary:
        path = self.folder / f"vocab-{corpus.identity[:16]}-{corpus.tokenizer_id[:16]}-{size}.ngv"
        if not path.exists():
            mine_ngrams(
                corpus,
                work=path.with_suffix(".work"),
                max_n=self.preset.max_n,
                size=size,
                held_out=self.preset.held_out,
            ).save(path)
        return Vocabulary.load(path)

    def _tagged(self, text: str, tokenizer: int, num_fgrams: int) -> tuple[TaggedTokens, TaggedTokens, int, float]:
        """Training tokens, held-out tokens, the number of token types, and the processor seconds that tagging a token took."""
        corpus = self.corpus(text, tokenizer)
        vocabulary = self._vocabulary(corpus, num_fgrams) if num_fgrams else None
        assert corpus.tokenizer is not None
        if vocabulary is not None:
            vocabulary.tag(np.arange(9), np.zeros(1, np.int64))  # compiles
        cpu = time.process_time()
        train, held = tag_corpus(corpus, vocabulary, held_out=self.preset.held_out)
        return train, held, corpus.tokenizer.vocab_size, (time.process_time() - cpu) / corpus.num_tokens


def make(cell: Cell, preset: Preset, vocab_size: int) -> LanguageModel:
    """The cell's model, its random start fixed by the seed."""
    torch.manual_seed(cell.seed)
    decoder = preset.decoder(vocab_size)
    if cell.model == "scone":
        return SconeModel(
            decoder,
            replace(
                preset.fgram(),
                num_layers=cell.fgram_layers,
                width=cell.fgram_width,
                identity_start=cell.start == "identity",
            ),
        )
    if cell.model == "hashed":
        return HashedModel(decoder, HashedConfig(num_rows=cell.num_fgrams, max_n=preset.max_n))
    if cell.model in ("plain", "equal"):
        return PlainModel(decoder)
    return PlainModel(decoder.scaled(2.0, by="width" if cell.model == "wide" else "depth"))


def num_parameters(cell: Cell, preset: Preset, data: Data) -> int:
    """Of the cell's model, as it would be trained."""
    tokenizer = data.corpus(cell.text, cell.tokenizer).tokenizer
    assert tokenizer is not None
    return cost_of(make(cell, preset, tokenizer.vocab_size)).parameters


def measure(cell: Cell, preset: Preset, data: Data) -> dict:
    """Train and measure one cell. CPU seconds are of all threads: they say the cost where others share the machine.

    `tag_s` are the CPU seconds of tagging as many tokens as were trained on, and not part of `cpu_s`: all of the corpus
    is tagged once, for all the runs that train on it.

    "equal" is the plain decoder trained on more tokens, until it has cost what SCONE costs with all its f-grams.
    Raises KeyboardInterrupt where training was interrupted.
    """
    uses_fgrams = cell.model in ("scone", "equal")
    train, held, vocab_size, tag_s_per_token = data.tagged(
        cell.text, cell.tokenizer, cell.num_fgrams if uses_fgrams else 0
    )
    model = make(cell, preset, vocab_size)
    config = replace(preset.train, tokens=cell.tokens, seed=cell.seed, fgram_lr=cell.fgram_lr or preset.train.fgram_lr)
    load = fgram_load(train, config) if uses_fgrams else {}
    cost = cost_of(model, **load)
    if cell.model == "equal":
        scone = make(replace(cell, model="scone"), preset, vocab_size)
        factor = cost_of(scone, **load).train_flops_per_token / cost.train_flops_per_token
        config = replace(config, tokens=round(cell.tokens * factor))
    cpu = time.process_time()
    result = train_model(model, train, config, progress=True)
    cpu = time.process_time() - cpu
    if result.interrupted:
        raise KeyboardInterrupt
    found = evaluate_model(model, held, seq_len=config.seq_len, max_windows=preset.max_windows)
    return asdict(cell) | {
        "nats": found.nats,
        "train_nats": sum(result.losses[-20:]) / len(result.losses[-20:]),
        "held_out_tokens": found.num_tokens,
        "matched": found.matched,
        "tokens_trained": result.tokens,
        "epochs": result.tokens / len(train),
        "fgrams_found": len(train.fgram_lengths_N),
        "parameters": cost.decoder_parameters if cell.model == "scone" else cost.parameters,
        "trained_parameters": cost.parameters,
        "flops_per_token": cost.flops_per_token,
        "train_flops": cost.train_flops_per_token * result.tokens,
        "cpu_s": cpu,
        "tag_s": tag_s_per_token * result.tokens,
        "batch_s": result.batch_seconds,
        "threads": torch.get_num_threads(),
        "load": machine.describe()["load"][0],
    }
