"""One comparison from end to end: train plain and SCONE, export, serve, measure; what `ngramstore demo` shows.

Every model sees the same tokens in the same order and is measured on the same held-out windows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ngramstore
from ngramstore.mine import Vocabulary
from ngramstore_torch.data.batches import TaggedTokens, TrainingBatches
from ngramstore_torch.experiment.evaluate import evaluate_model
from ngramstore_torch.experiment.presets import Preset
from ngramstore_torch.export.sensitivity import input_sensitivity
from ngramstore_torch.export.table import SconeRows, export_table
from ngramstore_torch.model.costs import cost_of
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import PlainModel, SconeModel
from ngramstore_torch.serving.embedding import StoreLike
from ngramstore_torch.training import checkpoint
from ngramstore_torch.training.config import TrainConfig
from ngramstore_torch.training.train import TrainResult, train_model


@dataclass(frozen=True)
class Measured:
    """One line of the comparison."""

    name: str
    nats: float
    perplexity: float
    parameters: int
    """That stay in memory when it serves, tables on disk not counted."""
    flops_per_token: int
    train_flops_per_token: int
    """0 where nothing was trained for this line (served from a store)."""
    table_bytes: int
    """Of the n-gram table: the store's files."""
    train_seconds: float
    tokens_per_second: float


class Experiment:
    """Trains and measures models of one preset on tagged tokens; results collect in `measured`, in order.

    Checkpoints and stores go to subfolders of `folder`. A model is trained anew each time, unless `resume` lets it go on
    from its checkpoint there.
    """

    def __init__(
        self,
        preset: Preset,
        train: TaggedTokens,
        held: TaggedTokens,
        vocabulary: Vocabulary,
        vocab_size: int,
        folder: str | Path,
        *,
        identity: Mapping[str, Any] | None = None,
        progress: bool = False,
        resume: bool = False,
    ) -> None:
        self.resume = resume
        self.preset, self.vocabulary, self.folder = preset, vocabulary, Path(folder)
        self.train_tokens, self.held_tokens = train, held
        self.decoder = preset.decoder(vocab_size)
        self.identity = dict(identity or {})
        self.progress = progress
        self.measured: list[Measured] = []
        self.results: dict[str, TrainResult] = {}

    def plain(self) -> PlainModel:
        """Train and measure the decoder alone."""
        return self._train("plain", lambda: PlainModel(self.decoder))

    def scone(self) -> SconeModel:
        """Train and measure the decoder with its f-gram model, live."""
        return self._train("scone", lambda: SconeModel(self.decoder, self.preset.fgram()))

    def served(self, model: SconeModel, codec: str) -> Path:
        """Export a model's table with a codec, replacing an earlier one, and measure the decoder served from it.

        int4 is rounded by what the decoder minds, measured on the text it was trained on.
        """
        path = self.folder / f"store-{codec}"
        if path.exists():
            shutil.rmtree(path)
        source = SconeRows(model, device=self.preset.train.device)
        export_table(
            source,
            self.vocabulary,
            path,
            codec=codec,
            sensitivity=self._sensitivity(model) if codec == "int4" else None,
            metadata=self.identity,
            progress=self.progress,
        )
        with ngramstore.open(path) as store:
            num_bytes = sum(file.stat().st_size for file in store.files)
            self._measure(f"scone, {codec} store", model, None, store=store, table_bytes=num_bytes)
        return path

    def _sensitivity(self, model: SconeModel) -> np.ndarray:
        return input_sensitivity(model, self.train_tokens, seq_len=self.preset.train.seq_len)

    def _train(self, name: str, make: Callable[[], LanguageModel]) -> Any:
        torch.manual_seed(self.preset.train.seed)
        model = make()
        result = train_model(
            model,
            self.train_tokens,
            self.preset.train,
            out=self.folder / name,
            resume=self.resume and (self.folder / name / checkpoint.FILE_NAME).exists(),
            data_identity=self.identity,
            progress=self.progress,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        self.results[name] = result
        self._measure(name, model, result)
        return model

    def _measure(
        self,
        name: str,
        model: LanguageModel,
        result: TrainResult | None,
        *,
        store: StoreLike | None = None,
        table_bytes: int = 0,
    ) -> None:
        config = self.preset.train
        found = evaluate_model(
            model, self.held_tokens, store=store, seq_len=config.seq_len, max_windows=self.preset.max_windows
        )
        cost = cost_of(model, **fgram_load(self.train_tokens, config) if isinstance(model, SconeModel) else {})
        self.measured.append(
            Measured(
                name=name,
                nats=found.nats,
                perplexity=found.perplexity,
                parameters=cost.parameters if result and isinstance(model, SconeModel) else cost.decoder_parameters,
                flops_per_token=cost.flops_per_token,
                train_flops_per_token=cost.train_flops_per_token or 0 if result else 0,
                table_bytes=table_bytes,
                train_seconds=result.seconds if result else 0.0,
                tokens_per_second=result.tokens_per_second if result else 0.0,
            )
        )


def fgram_load(train: TaggedTokens, config: TrainConfig, *, num_batches: int = 4) -> dict[str, Any]:
    """What `cost_of` has to know of the data: f-grams, different ones a token in training batches, their mean length."""
    batches = TrainingBatches(train, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed)
    lengths = np.concatenate([batches[i].fgram_lengths_U.numpy() for i in range(num_batches)])
    return {
        "num_fgrams": len(train.fgram_lengths_N),
        "fgrams_per_token": len(lengths) / (num_batches * config.batch_size * config.seq_len),
        "mean_length": float(lengths.mean()) if len(lengths) else 0.0,
    }


def table(lines: Sequence[Measured]) -> str:
    """The comparison as text, differences to the first line."""
    width = max(len(line.name) for line in lines)
    rows = [f"{'':{width}}    nats  difference  perplexity  MFLOPs/token  table bytes"]
    for line in lines:
        rows.append(
            f"{line.name:{width}}  {line.nats:.4f}  {line.nats - lines[0].nats:+10.4f}  {line.perplexity:10.3f}"
            f"  {line.flops_per_token / 1e6:12.2f}  {line.table_bytes:11,}"
        )
    return "\n".join(rows)
