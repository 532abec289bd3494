"""SCONE: a decoder whose input at a token is the vector of the longest f-gram that ends there (arXiv 2502.01637, alg. 1).

    e_i = A_f(T(t_j), .., T(t_i))   where the longest f-gram of length >= 2 that ends at i begins at j
    e_i = T(t_i)                    where no f-gram ends at i

e_i REPLACES T(t_i). A_f, the decoder and T are trained together: A_f reads the decoder's own T, and the gradient of the
next-token loss flows through both. Each different f-gram of a batch is computed once. The rival that is trained
by the same loop, a hashed table, stands in hashed.py.

Shapes: B batch, T position, D row width, V vocabulary, U different f-grams of a batch, K tokens of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ngramstore.errors import UsageError
from ngramstore_torch.data.batches import Batch
from ngramstore_torch.model.decoder import Decoder, DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig, FgramModel


class PlainModel(nn.Module):
    """The decoder alone: e_i = T(t_i)."""

    kind = "plain"
    history = 0

    def __init__(self, decoder: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(decoder)

    def inputs(self, batch: Batch) -> Tensor:
        """Input embeddings (B, T, D) of a batch."""
        return self.decoder.tokens(batch.tokens_BT)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, T, V) of a batch."""
        return self.decoder(inputs_BTD=self.inputs(batch))


class SconeModel(nn.Module):
    """Decoder and f-gram model, trained jointly; `rows` is what an export stores."""

    kind = "scone"
    history = 0

    def __init__(self, decoder: DecoderConfig, fgram: FgramConfig) -> None:
        if decoder.dim != fgram.dim:
            raise UsageError(
                f"the f-gram model reads and writes rows of width {fgram.dim}, the decoder's are {decoder.dim}"
            )
        super().__init__()
        self.decoder = Decoder(decoder)
        self.fgram_model = FgramModel(fgram)

    def inputs(self, batch: Batch) -> Tensor:
        """Input embeddings (B, T, D) of a batch, the f-grams of it computed now."""
        tokens_BTD = self.decoder.tokens(batch.tokens_BT)
        if batch.fgram_lengths_U.numel() == 0:
            return tokens_BTD
        rows_UD = self.rows(batch.fgram_tokens_UK, batch.fgram_lengths_U, batch.fgram_counts)
        return replace_matched(tokens_BTD, rows_UD, batch.fgram_at_BT)

    def rows(self, tokens_UK: Tensor, lengths_U: Tensor, counts: tuple[int, ...] = ()) -> Tensor:
        """A_f of f-grams: left-aligned tokens (U, K) int64 and lengths (U,) int64 -> rows (U, D).

        `counts` (f-grams of length 2, 3, .., which must then come in this order) lets a CPU work without padding.
        """
        if tokens_UK.device.type != "cpu" or not counts:  # an accelerator prefers one padded call to K - 1 small ones
            return self.fgram_model(self.decoder.tokens(tokens_UK), lengths_U)
        parts, first = [], 0
        for length, count in enumerate(counts, start=2):
            part = slice(first, first + count)
            if count:
                parts.append(self.fgram_model(self.decoder.tokens(tokens_UK[part, :length]), lengths_U[part]))
            first += count
        return torch.cat(parts)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, T, V) of a batch."""
        return self.decoder(inputs_BTD=self.inputs(batch))


def replace_matched(tokens_BTD: Tensor, rows_UD: Tensor, at_BT: Tensor) -> Tensor:
    """The embedding rule: rows[at] where at >= 0, else the token's own embedding; in the type of the tokens.

    Written with an embedding look-up: its gradient sums in a fixed order, an indexed assignment's does not.
    """
    fgrams_BTD = F.embedding(at_BT.clamp(min=0), rows_UD).to(tokens_BTD.dtype)
    return torch.where((at_BT >= 0)[..., None], fgrams_BTD, tokens_BTD)
