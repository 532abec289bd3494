"""Small SCONE models trained for measuring codecs, with their tables in f32: one folder a text and seed, made once.

The tokens, the f-grams and the held-out windows come from `ngramstore demo`'s preset; only the number of training tokens is
asked for. The table holds the row of every f-gram in vocabulary order, as the f-gram model gives it.

Shapes: N f-grams, K tokens of the longest, U f-grams of a batch, D row width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ngramstore.hashing import ngram_ids
from ngramstore.mine import TokenShards, Vocabulary, mine_ngrams, open_corpus
from ngramstore_torch.data.batches import TaggedTokens
from ngramstore_torch.data.corpus import tag_corpus
from ngramstore_torch.experiment.evaluate import evaluate_model
from ngramstore_torch.experiment.presets import Preset
from ngramstore_torch.export.sensitivity import input_sensitivity
from ngramstore_torch.export.table import SconeRows
from ngramstore_torch.model.scone import SconeModel
from ngramstore_torch.training import checkpoint
from ngramstore_torch.training.train import train_model

_EXPORT_ROWS = 4096


@dataclass(frozen=True)
class Trained:
    """A trained model, what it is measured on, and its table (N, D) f32 in the order of the vocabulary."""

    model: SconeModel
    train: TaggedTokens
    held: TaggedTokens
    vocabulary: Vocabulary
    rows_ND: np.ndarray
    preset: Preset

    def sensitivity(self) -> np.ndarray:
        """What the decoder minds in its input: (D, D)."""
        return input_sensitivity(self.model, self.train, seq_len=self.preset.train.seq_len)

    def nats(self, rows_ND: np.ndarray) -> float:
        """Held-out loss with these rows in place of the table's."""
        table = _Table(self.model, self.vocabulary, rows_ND)
        return self._evaluate(table)

    def served_nats(self, store) -> float:
        """Held-out loss with rows from an open store."""
        return self._evaluate(self.model, store)

    def _evaluate(self, model: SconeModel, store=None) -> float:
        seq_len, windows = self.preset.train.seq_len, self.preset.max_windows
        return evaluate_model(model, self.held, store=store, seq_len=seq_len, max_windows=windows).nats


class _Table(SconeModel):
    """A trained decoder whose f-gram rows are looked up in an array instead of computed."""

    def __init__(self, model: SconeModel, vocabulary: Vocabulary, rows_ND: np.ndarray) -> None:
        torch.nn.Module.__init__(self)
        self.decoder, self.fgram_model = model.decoder, model.fgram_model  # the latter for its sizes alone
        ids_N = ngram_ids(*vocabulary.ngrams)
        order_N = np.argsort(ids_N)
        self._ids_N, self._rows_ND = ids_N[order_N], torch.from_numpy(rows_ND[order_N])

    def rows(self, tokens_UK: torch.Tensor, lengths_U: torch.Tensor, counts: tuple[int, ...] = ()) -> torch.Tensor:
        ids_U = ngram_ids(tokens_UK.numpy().astype(np.uint32), lengths_U.numpy().astype(np.uint8))
        at_U = np.searchsorted(self._ids_N, ids_U)
        assert np.array_equal(self._ids_N[at_U], ids_U), "an f-gram that the vocabulary does not have"
        return self._rows_ND[torch.from_numpy(at_U)]


def opened(folder: Path, texts: Sequence[Path], preset: Preset, *, progress: bool = True) -> TokenShards:
    """The tokens of this text: read from `folder`, or made there first, their tokenizer too."""
    return open_corpus(
        list(texts),
        tokenizer=f"train:{preset.tokenizer_size}",
        cache=folder / "cache",
        errors="replace",
        progress=progress,
    )


def trained(folder: Path, texts: Sequence[Path], preset: Preset, seed: int, *, progress: bool = True) -> Trained:
    """The model of this text and seed: read from `folder`, or trained there first."""
    corpus = opened(folder, texts, preset, progress=progress)
    vocabulary = _vocabulary(folder, corpus, preset)
    train, held = tag_corpus(corpus, vocabulary, held_out=preset.held_out)
    out = folder / f"{corpus.identity[:16]}-{preset.train.tokens}-seed{seed}"
    config = replace(preset.train, seed=seed)
    torch.manual_seed(seed)
    model = SconeModel(preset.decoder(preset.tokenizer_size), preset.fgram())
    resume = (out / checkpoint.FILE_NAME).exists()
    if train_model(model, train, config, out=out, resume=resume, progress=progress).interrupted:
        raise KeyboardInterrupt
    return Trained(model.eval(), train, held, vocabulary, _rows(out / "rows.npy", model, vocabulary), preset)


def _vocabulary(folder: Path, corpus: TokenShards, preset: Preset) -> Vocabulary:
    path = folder / f"{corpus.identity[:16]}.ngv"
    if not path.exists():
        work = path.with_suffix(".work")
        mine_ngrams(corpus, work=work, max_n=preset.max_n, size=preset.num_fgrams, held_out=preset.held_out).save(path)
    return Vocabulary.load(path)


def _rows(path: Path, model: SconeModel, vocabulary: Vocabulary) -> np.ndarray:
    if not path.exists():
        source, (tokens_NK, lengths_N) = SconeRows(model), vocabulary.ngrams
        parts = [
            source.rows(tokens_NK[at : at + _EXPORT_ROWS], lengths_N[at : at + _EXPORT_ROWS])
            for at in range(0, len(lengths_N), _EXPORT_ROWS)
        ]
        np.save(path, np.concatenate(parts))
    return np.load(path)
