"""Joint training, end to end: one loop for the plain decoder, SCONE and the hashed rival, resumable bit for bit on a CPU.

A step is a pure function of (weights, optimizer state, seed, step number): no dropout, and batches come by number. So a
run that was stopped and resumed gives the same losses as one that was not, on the same machine and thread count.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ngramstore.errors import UsageError
from ngramstore_torch.data.batches import Batch, TaggedTokens, require_ids, require_lengths
from ngramstore_torch.model.kinds import LanguageModel, describe
from ngramstore_torch.model.scone import SconeModel
from ngramstore_torch.training import checkpoint
from ngramstore_torch.training.config import TrainConfig
from ngramstore_torch.training.feed import Feed
from ngramstore_torch.training.interrupt import interrupt_flag
from ngramstore_torch.training.run_folder import run_folder

_UNREAD = 10
"""Losses that may wait on an accelerator: reading one waits for the step that made it."""


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
    must_be_new: bool = False,
    data_identity: Mapping[str, Any] | None = None,
    stop_after: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train a model in place; with `out`, keep a checkpoint there: WriterLocked where another training is at work in that folder.

    resume: go on from the checkpoint in `out`; UsageError where its settings are not the ones asked for.
    must_be_new: UsageError where there is a checkpoint in `out`; else it is replaced by the first one of this training.
    data_identity: JSON values about corpus, tokenizer and vocabulary; kept in the checkpoint, compared on resume.
    stop_after: stop (and save) at this step, as Ctrl-C would; the learning rate still plans for config.tokens.
    on_step: called with each step's number, from 1, and its loss, in order; on an accelerator a few steps late, since there the
    losses are fetched together.
    """
    _require_json(data_identity or {})
    require_ids(data.tokens_P, model.decoder.config.vocab_size, "the training tokens")
    if isinstance(model, SconeModel):
        require_lengths(data.fgram_lengths_N, model.fgram_model.config.max_n)
    device = torch.device(config.device)
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    settings, identity = _settings(config), dict(data_identity or {})
    losses = _Losses()
    folder = None if out is None else Path(out)
    if resume:
        if folder is None:
            raise UsageError("there is nothing to resume without a run folder", hint="give out= (--out)")
        checkpoint.load_description(folder)  # before a folder is made in which there is nothing to resume
    holding = (
        nullcontext() if folder is None else run_folder(folder)
    )  # now: at the end a fault would take the training along
    with holding as held:
        if must_be_new and folder is not None:
            checkpoint.require_none(folder)
        if resume and folder is not None:
            losses.known = _resume(model, optimizer, folder, settings, identity)
        first_step = step = len(losses.known)
        last_step = min(config.num_steps, config.num_steps if stop_after is None else stop_after)
        if config.compile:
            _compile(model)

        def save() -> None:
            if folder is not None and held is not None:
                held.require_in_place()
                state = checkpoint.optimizer_tensors(model, optimizer, losses.known)
                checkpoint.save(folder, model, step=step, optimizer=state, train=settings, data=identity)

        def tell(numbers: range) -> None:
            if on_step is not None:
                for number in numbers:
                    on_step(number, losses.known[number - 1])

        feed = Feed(model, data, config, first_step, last_step, device)
        started = time.perf_counter()
        with interrupt_flag() as interrupted, feed, _bar(model, config, first_step, shown=progress) as bar:
            while step < last_step and not interrupted:
                losses.add(train_step(model, optimizer, feed, config, step))
                step += 1
                bar.update(config.tokens_per_step)
                is_due = config.checkpoint_every > 0 and step % config.checkpoint_every == 0 and step < last_step
                if is_due or step == last_step or len(losses.unread) == _unread_on(device):
                    tell(losses.read(step))  # a checkpoint that is there is better than weights that are not numbers
                    bar.set_postfix(loss=f"{losses.known[-1]:.3f}", refresh=False)
                if is_due:
                    save()
            tell(losses.read(step))
            if step > first_step or not resume:
                save()
        seconds = time.perf_counter() - started
    return TrainResult(
        losses=losses.known,
        step=step,
        interrupted=bool(interrupted),
        tokens=(step - first_step) * config.tokens_per_step,
        seconds=seconds,
        batch_seconds=feed.seconds,
    )


def require_resumable(out: str | Path, config: TrainConfig) -> None:
    """UsageError where `out` holds no checkpoint, or one of other settings: what can be said of a resume without its data."""
    checkpoint.require_same(checkpoint.load_description(out)["train"], _settings(config), "train")


def train_step(
    model: LanguageModel, optimizer: torch.optim.Optimizer, feed: Iterator[Batch], config: TrainConfig, step: int
) -> Tensor:
    """One optimizer step; returns the mean loss of its tokens and the norm of its gradient, (2,), still on the device."""
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
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    return torch.stack([total, norm.to(total)])


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


class _Losses:
    """The loss of every step: `known` are numbers, `unread` are still on the device, each with the norm of the gradient."""

    def __init__(self) -> None:
        self.known: list[float] = []
        self.unread: list[Tensor] = []

    def add(self, loss_and_norm: Tensor) -> None:
        """Of one more step."""
        self.unread.append(loss_and_norm)

    def read(self, step: int) -> range:
        """Fetch what is unread, the last being of this step: the numbers of its steps. UsageError where a loss or a
        gradient is not a number.

        A loss is of the weights before its step: only the gradient tells whether those after it are numbers.
        """
        first = step - len(self.unread) + 1
        found = [both.tolist() for both in self.unread]
        self.unread.clear()
        for number, both in enumerate(found, first):
            for name, value in zip(("loss", "gradient"), both, strict=True):
                if not math.isfinite(value):
                    raise UsageError(
                        f"the {name} became {value} at step {number}", hint="lower the learning rate (--lr)"
                    )
        self.known += [loss for loss, _ in found]
        return range(first, step + 1)


def _unread_on(device: torch.device) -> int:
    """Steps whose losses are fetched together: an accelerator would wait for each."""
    return 1 if device.type == "cpu" else _UNREAD


def _compile(model: LanguageModel) -> None:
    model.decoder.compile()
    if isinstance(model, SconeModel):
        model.fgram_model.compile(dynamic=True)


def _bar(model: LanguageModel, config: TrainConfig, first_step: int, *, shown: bool) -> tqdm:
    return tqdm(
        total=config.num_steps * config.tokens_per_step,
        initial=first_step * config.tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc=model.kind,
        file=sys.stderr,
        disable=not shown,
        dynamic_ncols=True,
    )


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


def _require_json(identity: Mapping[str, Any]) -> None:
    """UsageError for what a checkpoint could not keep: it would be found out when all is trained."""
    for name, value in identity.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"data_identity[{name!r}] is {value!r:.80}, which JSON cannot hold: {error}",
                hint="give strings and numbers of Python",
            ) from None
