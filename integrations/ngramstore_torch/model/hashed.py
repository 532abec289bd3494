"""The rival of equal bytes: hashed n-gram tables summed into the input, as Over-Encoding does (arXiv 2501.16975).

    e_i = T(t_i) + sum over n = 2..K of E_n[hash(t_{i-n+1} .. t_i) mod R]

No n-gram is chosen and none is absent; different n-grams share rows. The table is trained itself, row by row, where
SCONE trains a small model and computes the table once. N-grams that would begin before the document add nothing.

Shapes: B batch, T position, D row width, J = K - 1 tables, R rows of one table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore_torch.data.batches import Batch
from ngramstore_torch.model.decoder import Decoder, DecoderConfig


@dataclass(frozen=True, kw_only=True)
class HashedConfig:
    """`num_rows` rows of the decoder's width in all, shared out evenly over n = 2..max_n."""

    num_rows: int
    max_n: int = 5

    def __post_init__(self) -> None:
        if not 2 <= self.max_n <= MAX_N:
            raise UsageError(f"max_n must be 2..{MAX_N}, got {self.max_n}")
        if self.rows_per_table < 1:
            raise UsageError(f"{self.num_rows} rows do not fill {self.max_n - 1} tables")

    @property
    def rows_per_table(self) -> int:
        return self.num_rows // (self.max_n - 1)


class HashedModel(nn.Module):
    """Decoder and hashed tables, trained jointly. The tables start at zero: training starts from the plain decoder."""

    kind = "hashed"

    def __init__(self, decoder: DecoderConfig, hashed: HashedConfig) -> None:
        super().__init__()
        self.config = hashed
        self.history = hashed.max_n - 1
        self.decoder = Decoder(decoder)
        self.tables = nn.Embedding(hashed.rows_per_table * self.history, decoder.dim)
        nn.init.zeros_(self.tables.weight)

    def inputs(self, batch: Batch) -> Tensor:
        """Input embeddings (B, T, D) of a batch made with history = max_n - 1."""
        assert batch.history_BTJ is not None, "batches for hashed tables are made with history="
        tokens_BTD = self.decoder.tokens(batch.tokens_BT)
        rows_BTJ, inside_BTJ = hashed_rows(batch.tokens_BT, batch.history_BTJ, self.config.rows_per_table)
        for j in range(self.history):  # one table after the other: a (B, T, J, D) tensor would be J times the memory
            tokens_BTD = tokens_BTD + self.tables(rows_BTJ[..., j]) * inside_BTJ[..., j, None]
        return tokens_BTD

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, T, V) of a batch."""
        return self.decoder(inputs_BTD=self.inputs(batch))


def hashed_rows(tokens_BT: Tensor, history_BTJ: Tensor, rows_per_table: int) -> tuple[Tensor, Tensor]:
    """Row of the n-gram of length j + 2 that ends at each token, and whether it lies inside its document."""
    hash_BT = tokens_BT + 1
    rows = []
    for j in range(history_BTJ.shape[2]):
        hash_BT = (hash_BT ^ (history_BTJ[..., j] + 1)) * -7046029254386353131  # 0x9E3779B97F4A7C15; wraps mod 2**64
        hash_BT = hash_BT ^ (hash_BT >> 29)
        rows.append((hash_BT >> 8) % rows_per_table + j * rows_per_table)
    return torch.stack(rows, -1), history_BTJ >= 0
