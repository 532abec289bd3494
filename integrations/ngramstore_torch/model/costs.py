"""What a model costs: parameters, bytes of its table, and FLOPs per token, counted from its shapes.

A multiply-add is 2 FLOPs. A training step costs three forward passes. SCONE pays for A_f in training alone, once per
different f-gram of a batch; at inference its input is a look-up, so its decoder's cost is all.
"""

from __future__ import annotations

from dataclasses import dataclass

from ngramstore_torch.model.hashed import HashedModel
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import SconeModel


@dataclass(frozen=True)
class Costs:
    """Parameters and forward FLOPs; `train_flops_per_token` includes the backward pass."""

    parameters: int
    """Trained numbers in all."""
    decoder_parameters: int
    """Those that stay with the decoder when it serves (T included, tables not)."""
    table_rows: int
    """Rows of the n-gram table that serves it; a row is `dim` numbers before any codec."""
    flops_per_token: int
    """One token of inference at the decoder's full context."""
    train_flops_per_token: int | None
    """None for a SconeModel whose load of f-grams was not given: A_f's part is not known without the data."""


def cost_of(
    model: LanguageModel, *, num_fgrams: int = 0, fgrams_per_token: float | None = None, mean_length: float = 0.0
) -> Costs:
    """Costs of a model at its decoder's max_positions.

    num_fgrams: rows that an export would write. fgrams_per_token: different f-grams of a training batch / its tokens, and
    mean_length their mean length (0: max_n); both belong to the data, `SconeModel` alone needs them: `fgram_load` measures them.
    """
    decoder = model.decoder.config
    flops = decoder.flops_per_token()
    rows = 0
    fgram_flops: float | None = 0.0
    if isinstance(model, SconeModel):
        rows = num_fgrams
        per_fgram = model.fgram_model.config.flops_per_fgram(mean_length or None)
        fgram_flops = None if fgrams_per_token is None else fgrams_per_token * per_fgram
    elif isinstance(model, HashedModel):
        rows = model.tables.num_embeddings
    return Costs(
        parameters=sum(p.numel() for p in model.parameters()),
        decoder_parameters=decoder.num_parameters(),
        table_rows=rows,
        flops_per_token=flops,
        train_flops_per_token=None if fgram_flops is None else round(3 * (flops + fgram_flops)),
    )
