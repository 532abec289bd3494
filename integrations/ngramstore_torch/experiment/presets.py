"""Named settings that are known to work, sized for two CPU cores: what `ngramstore demo` and bench/quality.py start from.

How much f-grams gain depends on the tokenizer, the decoder and the tokens trained on; docs/scone.md has what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Corpus, f-grams, shapes and training of one comparison between a plain decoder and SCONE."""

    name: str
    corpus_bytes: int
    """Take about that much text; 0 takes all."""
    tokenizer_size: int = 1024
    num_fgrams: int = 100_000
    max_n: int = 5
    held_out: float = 0.05
    dim: int = 192
    num_layers: int = 2
    num_heads: int = 3
    fgram_layers: int = 1
    fgram_width: int = 0
    train: TrainConfig = field(default_factory=TrainConfig)
    max_windows: int = 0
    """Held-out windows to measure on, evenly spread; 0 means all."""

    def decoder(self, vocab_size: int) -> DecoderConfig:
        """The decoder's shape for a tokenizer of this size."""
        return DecoderConfig(
            vocab_size=vocab_size,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_positions=self.train.seq_len,
        )

    def fgram(self) -> FgramConfig:
        """The f-gram model's shape."""
        return FgramConfig(
            dim=self.dim,
            max_n=self.max_n,
            num_layers=self.fgram_layers,
            num_heads=self.num_heads,
            width=self.fgram_width,
        )


QUICK = Preset(
    name="quick",
    corpus_bytes=8_000_000,
    num_fgrams=50_000,
    dim=128,
    num_layers=1,
    num_heads=2,
    train=TrainConfig(tokens=250_000, batch_size=8, seq_len=128, lr=2e-3, fgram_lr=1.0),
    max_windows=400,
)
"""To see how it goes. One decoder layer: with so few tokens a second one has only just begun to pay, and an f-gram model that
hands a layer its context helps most where there is one layer to use it."""

DEMO = Preset(
    name="demo",
    corpus_bytes=0,
    dim=192,
    num_layers=1,
    num_heads=3,
    train=TrainConfig(tokens=1_500_000, batch_size=8, seq_len=256, lr=2e-3),
    max_windows=800,
)
"""For some minutes on two cores. One decoder layer, for the same reason."""
