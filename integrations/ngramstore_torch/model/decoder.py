"""The reference decoder: a small modern GPT, the whole model in this file.

RMSNorm before each branch, rotary positions, SwiGLU, no biases, a tied output head. It reads token IDs, or input
embeddings that somebody else computed (that is all SCONE needs), and keeps a key-value cache for generation.

Shapes: B batch, T position, D row width, H heads, C head width, V vocabulary, S positions seen so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngramstore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder. `dim` must be a multiple of `num_heads`, and a head an even number wide."""

    vocab_size: int
    dim: int = 192
    num_layers: int = 2
    num_heads: int = 3
    mlp_dim: int = 0
    """Width inside the SwiGLU; 0 means 8/3 of `dim`, rounded up to a multiple of 32."""
    max_positions: int = 256
    """Longest sequence, in tokens: the rotary tables and the cache are this long."""
    rope_base: float = 10_000.0
    tied_head: bool = True
    """Use the token table as the output head, as GPT-2 does; untied costs vocab_size * dim parameters more."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise UsageError(
                f"dim={self.dim} does not split into {self.num_heads} heads of an even width",
                hint="choose num_heads so that dim / num_heads is an even number",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        return self.mlp_dim or -(-self.dim * 8 // 3 // 32) * 32

    def num_parameters(self) -> int:
        """Trainable numbers, the token table counted once (twice where the head is not tied)."""
        tables = self.vocab_size * self.dim * (1 if self.tied_head else 2)
        norms = self.dim * (2 * self.num_layers + 1)
        return tables + norms + self.num_layers * block_weights(self.dim, self.hidden_dim)

    def flops_per_token(self, seq_len: int | None = None) -> int:
        """Forward FLOPs of one token in a sequence of `seq_len` (default max_positions): 2 a multiply-add.

        Counts every matrix product, the head, and the mean causal attention. A training step costs 3 times this.
        """
        seen = ((seq_len or self.max_positions) + 1) / 2
        attention = 2 * 2 * seen * self.dim
        layers = self.num_layers * (2 * block_weights(self.dim, self.hidden_dim) + attention)
        return round(layers + 2 * self.vocab_size * self.dim)

    def scaled(self, factor: float, *, by: str = "width") -> DecoderConfig:
        """The decoder of the same family whose `flops_per_token` comes nearest to `factor` times this one's.

        by="width" adds heads, of the same width where that comes within 5 %, else of another; by="depth" adds layers, and
        can come no nearer than a layer. The fair plain rival of a SCONE model.
        """
        if not 0 < factor < math.inf:
            raise UsageError(f"factor must be above 0, and a number, got {factor}")
        target = factor * self.flops_per_token()

        def error(config: DecoderConfig) -> float:
            return abs(config.flops_per_token() - target)

        if by == "depth":
            of_one = replace(self, num_layers=2).flops_per_token() - replace(self, num_layers=1).flops_per_token()
            return min((replace(self, num_layers=n) for n in range(1, 2 + math.ceil(target / of_one))), key=error)
        if by != "width":
            raise UsageError(f'by must be "width" or "depth", got {by!r}')
        most = math.ceil(max(factor, 1) * self.dim) + 2 * self.head_dim
        same = min((self._of_width(dim, self.head_dim) for dim in range(self.head_dim, most, self.head_dim)), key=error)
        if error(same) <= 0.05 * target:
            return same
        widths = (2 * width for width in range(max(1, self.head_dim // 3), self.head_dim + 1))
        return min((self._of_width(dim, width) for width in widths for dim in range(width, most, width)), key=error)

    def _of_width(self, dim: int, head_dim: int) -> DecoderConfig:
        return replace(self, dim=dim, num_heads=dim // head_dim, mlp_dim=0)


def block_weights(dim: int, hidden_dim: int) -> int:
    """Weights of the matrices of one transformer block: query, key, value, output, and the three of SwiGLU."""
    return 4 * dim * dim + 3 * dim * hidden_dim


class Decoder(nn.Module):
    """Token IDs (B, T) int64, or input embeddings (B, T, D), to logits (B, T, V).

    Position t sees positions up to t only. With a cache, the input continues what the cache holds.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim)
        self.head = None if config.tied_head else nn.Linear(config.dim, config.vocab_size, bias=False)
        cos_SC, sin_SC = rotary_tables(config.max_positions, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos_SC, persistent=False)
        self.register_buffer("sin", sin_SC, persistent=False)
        initialize(self, width=config.dim, num_branches=2 * config.num_layers)

    def forward(
        self, tokens_BT: Tensor | None = None, *, inputs_BTD: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Exactly one of tokens and inputs. Logits come in float32, or in the autocast type where that is on.

        Raises UsageError where the positions run past `max_positions`.
        """
        if (tokens_BT is None) == (inputs_BTD is None):
            raise UsageError("give the decoder either tokens or inputs, not both and not neither")
        x_BTD = self.tokens(tokens_BT) if inputs_BTD is None else inputs_BTD
        start = 0 if cache is None else cache.length
        end = start + x_BTD.shape[1]
        if end > self.config.max_positions:
            raise UsageError(
                f"the sequence is {end} tokens long, this decoder holds {self.config.max_positions}",
                hint="cut the sequence, or train with a larger max_positions",
            )
        rotary = self.cos[start:end], self.sin[start:end]
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotary, cache, layer)
        if cache is not None:
            cache.length = end
        weight_VD = self.tokens.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x_BTD), weight_VD)


class KVCache:
    """Keys and values of every layer for the positions seen so far, allocated once: 2 * L * B * S * D numbers.

    `length` positions are filled. One cache belongs to one batch of sequences of equal length.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch_size: int,
        *,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        positions = config.max_positions if max_length is None else max_length
        shape = (config.num_layers, batch_size, config.num_heads, positions, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, key_BHTC: Tensor, value_BHTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new positions of one layer; returns all S = length + T positions of it (`length` stays)."""
        end = self.length + key_BHTC.shape[2]
        if end > self.keys.shape[3]:
            raise UsageError(f"the cache holds {self.keys.shape[3]} positions, {end} are needed")
        self.keys[layer, :, :, self.length : end] = key_BHTC
        self.values[layer, :, :, self.length : end] = value_BHTC
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Block(nn.Module):
    """One layer: attention and SwiGLU, each normed before and added to the stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = RMSNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.attention_output = nn.Linear(config.dim, config.dim, bias=False)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config.dim, config.hidden_dim)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None, layer: int) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, cache, layer)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    def attention(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None, layer: int) -> Tensor:
        B, T, D = x_BTD.shape
        heads = self.query_key_value(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads)
        query_BHTC, key_BHTC, value_BHTC = heads.permute(2, 0, 3, 1, 4)
        query_BHTC, key_BHTC = rotate(query_BHTC, rotary), rotate(key_BHTC, rotary)
        if cache is None:
            mixed_BHTC = F.scaled_dot_product_attention(query_BHTC, key_BHTC, value_BHTC, is_causal=True)
        else:
            key_BHSC, value_BHSC = cache.append(layer, key_BHTC, value_BHTC)
            seen_TS = causal_mask(T, key_BHSC.shape[2], x_BTD.device)
            mixed_BHTC = F.scaled_dot_product_attention(
                query_BHTC, key_BHSC.to(query_BHTC.dtype), value_BHSC.to(query_BHTC.dtype), attn_mask=seen_TS
            )
        return self.attention_output(mixed_BHTC.transpose(1, 2).reshape(B, T, D))


class SwiGLU(nn.Module):
    """silu(gate) * up, projected back: x (.., D) -> (.., D).

    Gate and up are two matrices: the gradient of one matrix cut in two copies both halves (16 % of a step on a CPU).
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.mlp_output = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp_output(F.silu(self.gate(x)) * self.up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, eps=1e-6)


def rotary_tables(max_positions: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and frequency: two (S, C) tables, each frequency in both halves of C."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x_BHTC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (c, c + C/2) by their position's angle; the type of x stays."""
    cos_TC, sin_TC = (table.to(x_BHTC.dtype) for table in rotary)
    first, second = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * cos_TC + torch.cat((-second, first), dim=-1) * sin_TC


def causal_mask(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S) bool: the last T of S positions may see themselves and everything before."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def initialize(model: nn.Module, *, width: int, num_branches: int) -> None:
    """Normal weights of deviation 0.8 / sqrt(width); outputs of residual branches smaller by sqrt(num_branches).

    GPT-2's fixed 0.02 suits widths above a thousand. From it, at a width of 128, SCONE and the two-layer plain decoder learn
    more slowly; a one-layer plain one did not (single seeds, `bench/results/quality_search.json`).
    """
    std = 0.8 * width**-0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            is_branch_output = name.endswith(("attention_output", "mlp_output"))
            nn.init.normal_(module.weight, std=std / num_branches**0.5 if is_branch_output else std)
