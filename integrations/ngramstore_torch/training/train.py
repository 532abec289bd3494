"""Joint training, end to end: one loop for the plain decoder, SCONE and the hashed rival, resumable bit for bit on a CPU.

A step is a pure function of (weights, optimizer state, seed, step number): no dropout, and batches come by number. So a
run that was stopped and resumed gives the same losses as one that was not, on the same machine and thread count.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ngramstore.errors import UsageError
from ngramstore.files import clear_errors
from ngramstore_torch.data.batches import Batch, TaggedTokens, TrainingBatches, require_ids
from ngramstore_torch.model.kinds import LanguageModel, describe
from ngramstore_torch.model.scone import SconeModel
from ngramstore_torch.training import checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. A step takes accumulate * batch_size * seq_len tokens."""

    tokens: int = 2_500_000
    """Training tokens in all, rounded up to whole steps. More than the corpus holds means several epochs."""
    batch_size: int = 16
    """Sequences in one forward pass: memory grows with batch_size * seq_len * vocabulary."""
    seq_len: int = 256
    accumulate: int = 1
    """Forward passes a step; raise it where the batch you want does not fit."""
    lr: float = 2e-3
    """Peak of the cosine; 2e-3 suits some million parameters, 2e-4 the paper's hundreds of millions."""
    fgram_lr: float = 0.1
    """Rate of A_f, as a fraction of `lr`. At the decoder's own rate the gain melts away as training goes on; a run of a few
    hundred steps wants more. docs/scone.md has what was measured."""
    final_lr: float = 0.1
    """Where the cosine ends, as a fraction of the peak."""
    warmup: float = 0.05
    """Fraction of the steps over which the rate rises from zero."""
    weight_decay: float = 0.1
    """On the matrices of linear layers; tables, norms and positions do not decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    bf16: bool = False
    """Matrix products in bfloat16 (autocast); weights and optimizer stay float32."""
    compile: bool = False
    """torch.compile: a minute or so once, then faster steps on an accelerator."""
    device: str = "cpu"
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 saves at the end, on Ctrl-C and on SIGTERM only."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "seq_len", "accumulate", "lr", "fgram_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be above 0, and a number, got {getattr(self, name)}")
        for name, most in (("seed", 2**63 - 1), ("checkpoint_every", math.inf)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} must be a whole number from 0, got {getattr(self, name)}")
        for name in ("final_lr", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be 0..1, got {getattr(self, name)}")

    @property
    def tokens_per_step(self) -> int:
        return self.accumulate * self.batch_size * self.seq_len

    @property
    def num_steps(self) -> int:
        return -(-self.tokens // self.tokens_per_step)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: a linear rise, then half a cosine down to final_lr * lr."""
        rising = round(self.warmup * self.num_steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        progress = (step - rising) / max(1, self.num_steps - rising)
        return self.lr * (self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class TrainResult:
    """How a run went. `losses` has every step's since the very first, in nats a token."""

    losses: list[float] = field(repr=False)
    step: int
    interrupted: bool
    tokens: int
    """Tokens trained on by this call, without those before a resume."""
    seconds: float
    batch_seconds: float
    """Work on batches (slicing, unique f-grams); it overlaps with the step before, in a thread."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


def train_model(
    model: LanguageModel,
    data: TaggedTokens,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    data_identity: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a model in place; with `out`, keep a checkpoint there.

    resume: go on from the checkpoint in `out`; UsageError where its settings are not the ones asked for.
    data_identity: JSON values about corpus, tokenizer and vocabulary; kept in the checkpoint, compared on resume.
    stop_after: stop (and save) at this step, as Ctrl-C would; the learning rate still plans for config.tokens.
    """
    require_ids(data.tokens_P, model.decoder.config.vocab_size, "the training tokens")
    device = torch.device(config.device)
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    settings, identity = _settings(config), dict(data_identity or {})
    losses: list[float] = []
    if resume:
        if out is None:
            raise UsageError("there is nothing to resume without a run folder", hint="give out= (--out)")
        losses = _resume(model, optimizer, Path(out), settings, identity)
    if out is not None:
        _make_folder(Path(out))  # now: at the end it would take the whole training along
    first_step = len(losses)
    last_step = min(config.num_steps, config.num_steps if stop_after is None else stop_after)
    if config.compile:
        model.decoder.compile()
        if isinstance(model, SconeModel):
            model.fgram_model.compile(dynamic=True)

    def save(step: int) -> None:
        if out is not None:
            state = checkpoint.optimizer_tensors(model, optimizer, losses)
            checkpoint.save(out, model, step=step, optimizer=state, train=settings, data=identity)

    feed = _Feed(model, data, config, first_step, last_step, device)
    started = time.perf_counter()
    step, pending = first_step, []
    with (
        interrupt_flag() as interrupted,
        feed,
        tqdm(
            total=config.num_steps * config.tokens_per_step,
            initial=first_step * config.tokens_per_step,
            unit="tok",
            unit_scale=True,
            desc=model.kind,
            file=sys.stderr,
            disable=not progress,
            dynamic_ncols=True,
        ) as bar,
    ):
        while step < last_step and not interrupted:
            pending.append(train_step(model, optimizer, feed, config, step))
            step += 1
            bar.update(config.tokens_per_step)
            if len(pending) == 10 or step == last_step or device.type == "cpu":  # reading a loss waits for the device
                losses += [float(loss) for loss in pending]
                pending.clear()
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                _require_finite(losses[-1], step)
            if on_step is not None:
                on_step(step, losses[-1] if losses else math.nan)
            if config.checkpoint_every and step % config.checkpoint_every == 0 and step < last_step:
                losses += [float(loss) for loss in pending]
                pending.clear()
                _require_finite(losses[-1], step)  # the checkpoint before is better than weights that are not numbers
                save(step)
        losses += [float(loss) for loss in pending]
        if losses:
            _require_finite(losses[-1], step)
        if step > first_step or not resume:
            save(step)
    return TrainResult(
        losses=losses,
        step=step,
        interrupted=bool(interrupted),
        tokens=(step - first_step) * config.tokens_per_step,
        seconds=time.perf_counter() - started,
        batch_seconds=feed.seconds,
    )


def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, feed: Iterator[Batch], config: TrainConfig, step: int
) -> Tensor:
    """One optimizer step; returns the mean loss of its tokens, still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr_at(step) * group["share"]
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=config.device)
    for _ in range(config.accumulate):
        batch = next(feed)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16):
            loss = token_loss(model(batch), batch.targets_BT) / config.accumulate
        loss.backward()
        total = total + loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return total


def token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross entropy in nats over targets that are not IGNORE, computed in float32."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; only matrices of linear layers decay. A parameter has no state until its first gradient.

    A group's `share` is its part of the learning rate: fgram_lr for A_f, 1 for all else, the token table included.
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    of_fgrams = {id(p) for p in model.fgram_model.parameters()} if isinstance(model, SconeModel) else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((id(parameter) in matrices, id(parameter) in of_fgrams), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
                "share": config.fgram_lr if is_fgram else 1.0,
            }
            for (is_matrix, is_fgram), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


@contextmanager
def interrupt_flag() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM makes non-empty; a second one interrupts as usual. Main thread only."""
    flag: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not None}  # None: not Python's

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        flag.append(number)
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield flag
    finally:
        restore()


class _Feed:
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
        self._next = None

    def __enter__(self) -> _Feed:
        self._submit()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> _Feed:
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


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What must be the same for a resume to go on with the same curve."""
    free = ("device", "compile", "checkpoint_every")
    return {name: value for name, value in asdict(config).items() if name not in free}


def _resume(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    out: Path,
    settings: dict[str, Any],
    identity: dict[str, Any],
) -> list[float]:
    saved = checkpoint.load(out, with_optimizer=True)
    checkpoint.require_same(saved.description["model"], describe(model), "model")
    checkpoint.require_same(saved.description["train"], settings, "train")
    checkpoint.require_same(_without_names(saved.description["data"]), _without_names(identity), "data")
    checkpoint.load_weights(model, saved.model.state_dict())
    if saved.step == 0:
        return []
    return checkpoint.restore_optimizer(model, optimizer, saved.optimizer)


def _without_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's name says who made its tokens first, its ID what it is."""
    return {name: value for name, value in data.items() if name != "tokenizer_name"}


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", hint="give a folder for the checkpoints")
    with clear_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def _require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UsageError(f"the loss became {loss} at step {step}", hint="lower the learning rate (--lr)")
