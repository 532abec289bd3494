"""Batches on the device while the step before them runs."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ngramstore_torch.data.batches import Batch, TaggedTokens, TrainingBatches
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.training.config import TrainConfig


class Feed:
    """The batches of steps [first, last) in order, on the device; the next one is made in a thread meanwhile."""

    def __init__(
        self, model: LanguageModel, data: TaggedTokens, config: TrainConfig, first: int, last: int, device: torch.device
    ) -> None:
        self.batches = TrainingBatches(
            data, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed, history=model.history
        )
        self.device = device
        self.seconds = 0.0
        self._indices = iter(range(first * config.accumulate, last * config.accumulate))
        self._pool = ThreadPoolExecutor(1)
        self._next: Future[Batch] | None = None

    def __enter__(self) -> Feed:
        self._submit()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        assert self._next is not None, "train_model asks for exactly as many batches as it announced"
        batch = self._next.result()
        self._submit()
        return batch.to(self.device)

    def _submit(self) -> None:
        index = next(self._indices, None)
        self._next = None if index is None else self._pool.submit(self._make, index)

    def _make(self, index: int) -> Batch:
        started = time.perf_counter()
        batch = self.batches[index]
        if self.device.type == "cuda":
            batch = batch.pinned()
        self.seconds += time.perf_counter() - started
        return batch
