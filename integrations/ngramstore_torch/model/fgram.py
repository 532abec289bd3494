"""A_f, the f-gram model: the embeddings of an f-gram's tokens in, one vector out; at the start it returns the last one.

Its input is the decoder's own token table T, so it has no table of tokens. F-grams are left-aligned and padded to the
longest; attention is causal and the answer is read at the last token, so padding (which comes after it) is never seen.

Starting as the identity on T(t_i) means that training starts from the plain decoder instead of from noise: the output
projections of the residual branches and the position table start at zero, and no fresh projection stands in the way.
bench/results/quality_start.json measures it against a random start.

Shapes: U f-grams, K tokens of the longest one, D width of T, E own width, H heads, C head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore_torch.model.decoder import RMSNorm, SwiGLU, block_weights, initialize


@dataclass(frozen=True, kw_only=True)
class FgramConfig:
    """Shape of A_f. The paper gains, ever less, from sizes up to 3 times the decoder's."""

    dim: int
    """Width of the decoder's token table, and of a row."""
    max_n: int = 5
    """Longest f-gram, K. Gains flatten at 4 (arXiv 2502.01637, section 4.1)."""
    num_layers: int = 2
    num_heads: int = 3
    width: int = 0
    """Own width E; 0 means `dim`. Another width adds a projection on each side."""
    identity_start: bool = True
    """False starts from noise; only measurements want that."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_n <= MAX_N:
            raise UsageError(f"max_n must be 2..{MAX_N}, got {self.max_n}")
        if self.num_layers < 1:
            raise UsageError(f"num_layers must be at least 1, got {self.num_layers}")
        if self.own_width < 1 or self.num_heads < 1 or self.own_width % self.num_heads:
            raise UsageError(f"an f-gram model {self.own_width} wide does not split into {self.num_heads} heads")

    @property
    def own_width(self) -> int:
        return self.width or self.dim

    @property
    def hidden_dim(self) -> int:
        return -(-self.own_width * 8 // 3 // 32) * 32

    @property
    def has_projection(self) -> bool:
        return self.own_width != self.dim

    def num_parameters(self) -> int:
        """Trainable numbers; none of them is needed once the table is computed."""
        E = self.own_width
        layers = self.num_layers * (block_weights(E, self.hidden_dim) + 2 * E)
        return layers + self.max_n * E + (2 * self.dim * E if self.has_projection else 0)

    def flops_per_fgram(self, length: float | None = None) -> int:
        """Forward FLOPs of one f-gram of `length` tokens (default max_n): 2 a multiply-add.

        The last layer works for the last token alone, apart from its keys and values.
        """
        n, E = self.max_n if length is None else length, self.own_width
        last = 2 * E * E * n + (block_weights(E, self.hidden_dim) - 2 * E * E)
        weights = (self.num_layers - 1) * n * block_weights(E, self.hidden_dim) + last
        projection = (n + 1) * self.dim * E if self.has_projection else 0
        attention = (self.num_layers - 1) * n * (n + 1) * E + 2 * n * E
        return round(2 * (weights + projection + attention))


class FgramModel(nn.Module):
    """Embeddings (U, K, D) of left-aligned f-grams and lengths (U,) int64 to rows (U, D).

    What stands behind an f-gram's length is never looked at. At the start the answer is embeddings[u, length - 1].
    """

    def __init__(self, config: FgramConfig) -> None:
        super().__init__()
        self.config = config
        E = config.own_width
        self.positions = nn.Parameter(torch.zeros(config.max_n, E))
        self.project_in = nn.Linear(config.dim, E, bias=False) if config.has_projection else None
        blocks = [FgramBlock(E, config.num_heads, config.hidden_dim) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.project_out = nn.Linear(E, config.dim, bias=False) if config.has_projection else None
        initialize(self, width=E, num_branches=2 * config.num_layers)
        if config.identity_start:
            for block in blocks:
                nn.init.zeros_(block.attention_output.weight)
                nn.init.zeros_(block.mlp.mlp_output.weight)
            if self.project_out is not None:
                nn.init.zeros_(self.project_out.weight)
        else:
            nn.init.normal_(self.positions, std=0.8 * E**-0.5)

    def forward(self, embeddings_UKD: Tensor, lengths_U: Tensor) -> Tensor:
        last_UD = at_last(embeddings_UKD, lengths_U)
        stream_UKE = embeddings_UKD if self.project_in is None else self.project_in(embeddings_UKD)
        x_UKE = stream_UKE + self.positions[: embeddings_UKD.shape[1]]
        for block in self.blocks[:-1]:
            x_UKE = block(x_UKE)
        last: Any = self.blocks[-1]
        x_UE = last.last_token(x_UKE, lengths_U)
        if self.project_out is None:
            return x_UE
        return last_UD + self.project_out(x_UE)  # the token's own embedding goes around the narrower (or wider) model


class FgramBlock(nn.Module):
    """One layer of A_f: causal attention over at most 16 tokens, then SwiGLU. No rotary positions: the table has them."""

    def __init__(self, width: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden_dim)

    def forward(self, x_UKE: Tensor) -> Tensor:
        """Every token: (U, K, E) -> (U, K, E)."""
        K = x_UKE.shape[1]
        seen_KK = torch.ones(K, K, dtype=torch.bool, device=x_UKE.device).tril()
        normed_UKE = self.attention_norm(x_UKE)
        x_UKE = x_UKE + self.attend(normed_UKE, normed_UKE, seen_KK)
        return x_UKE + self.mlp(self.mlp_norm(x_UKE))

    def last_token(self, x_UKE: Tensor, lengths_U: Tensor) -> Tensor:
        """The last token of each f-gram alone: (U, K, E) -> (U, E), 1/K of the work of all but keys and values."""
        seen_UHQK = (torch.arange(x_UKE.shape[1], device=x_UKE.device) < lengths_U[:, None])[:, None, None]
        normed_UKE = self.attention_norm(x_UKE)
        mixed_U1E = self.attend(at_last(normed_UKE, lengths_U)[:, None], normed_UKE, seen_UHQK)
        x_UE = at_last(x_UKE, lengths_U) + mixed_U1E[:, 0]
        return x_UE + self.mlp(self.mlp_norm(x_UE))

    def attend(self, query_UQE: Tensor, x_UKE: Tensor, seen: Tensor) -> Tensor:
        """Written out: with K <= 16 the scores are tiny, and fused kernels are built for long sequences."""
        U, K, E = x_UKE.shape
        query_UHQC = self.query(query_UQE).view(U, -1, self.num_heads, E // self.num_heads).transpose(1, 2)
        key_UHKC, value_UHKC = self.key_value(x_UKE).view(U, K, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores_UHQK = query_UHQC @ key_UHKC.transpose(-1, -2) * (E // self.num_heads) ** -0.5
        weights_UHQK = scores_UHQK.masked_fill(~seen, float("-inf")).softmax(-1).to(value_UHKC.dtype)
        mixed_UQE = (weights_UHQK @ value_UHKC).transpose(1, 2).reshape(U, -1, E)
        return self.attention_output(mixed_UQE)


def at_last(x_UKE: Tensor, lengths_U: Tensor) -> Tensor:
    """x[u, lengths[u] - 1] for each u: (U, K, E) -> (U, E)."""
    return x_UKE.gather(1, (lengths_U - 1)[:, None, None].expand(-1, 1, x_UKE.shape[2]))[:, 0]
