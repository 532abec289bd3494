"""How to train: tokens, rates, seeds, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ngramstore.errors import UsageError


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
    """Rate of A_f, as a fraction of `lr`. At the decoder's own rate the gain on code faded as training went on; a run of a few
    hundred steps needs more. docs/scone.md has what was measured, and where not."""
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
        for name in ("tokens", "batch_size", "seq_len", "accumulate", "seed", "checkpoint_every"):
            if type(getattr(self, name)) is not int:
                raise UsageError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        for name in ("tokens", "batch_size", "seq_len", "accumulate", "lr", "fgram_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be above 0, and a number, got {getattr(self, name)}")
        for name, most in (("seed", 2**63 - 1), ("checkpoint_every", math.inf)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} must be a whole number from 0, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(
                f"weight_decay is {self.weight_decay}, betas are {self.betas}",
                hint="a decay is a number from 0, betas are below 1",
            )
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
