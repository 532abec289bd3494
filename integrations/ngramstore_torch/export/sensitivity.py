"""How much a decoder minds errors in its input: second moments of the loss's gradient there, for rounding rows
(`SecondOrderInt4`).

For an error e in the vector of an f-gram the loss rises by about e H e / 2 nats, with H = E[g g^T], g the gradient of
the loss of a token drawn from the model's own prediction: the Fisher information, which needs no second derivatives
(and is right where the model is; the gradient of the text's own tokens would mix in what the model has not learned).

Shapes: B batch, T position, V vocabulary, D row width.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ngramstore.errors import UsageError
from ngramstore.files import publish_unlocked
from ngramstore_torch.data.batches import IGNORE, Batch, TaggedTokens, require_ids, require_lengths
from ngramstore_torch.model.scone import SconeModel

WINDOWS = 200
"""Windows that H is measured on when nothing is said."""


def input_sensitivity(
    model: SconeModel,
    data: TaggedTokens,
    *,
    seq_len: int = 0,
    batch_size: int = 16,
    max_windows: int = WINDOWS,
    seed: int = 0,
) -> np.ndarray:
    """H (D, D) float64 at the positions where an f-gram ends, over windows of text the model was trained on.

    seq_len: window length, 0 means the decoder's max_positions. max_windows: evenly spread, 0 means all. Costs a forward and
    a backward pass of the decoder a window. Raises UsageError where no f-gram ends in the text.
    """
    require_ids(data.tokens_P, model.decoder.config.vocab_size, "the tokens to measure on")
    require_lengths(data.fgram_lengths_N, model.fgram_model.config.max_n)
    parameter = next(model.parameters())
    device, dim = parameter.device, model.decoder.config.dim
    generator = torch.Generator().manual_seed(seed)
    moments_DD = torch.zeros(dim, dim, dtype=torch.float64, device="cpu")
    count = 0
    was_training = model.training
    model.eval()
    windows = data.evaluation_batches(
        seq_len or model.decoder.config.max_positions, batch_size, history=model.history, max_windows=max_windows
    )
    try:
        for batch in windows:
            batch = batch.to(device)
            is_padding_BT = batch.targets_BT == IGNORE
            gradient_BTD = _gradient(model, batch, is_padding_BT, generator)
            used_MD = gradient_BTD[(batch.fgram_at_BT >= 0) & ~is_padding_BT].double().cpu()
            moments_DD += used_MD.T @ used_MD
            count += len(used_MD)
    finally:
        model.train(was_training)
    if count == 0:
        raise UsageError("no f-gram ends in the text to measure on", hint="give the text that the model was trained on")
    return (moments_DD / count).numpy()


def kept_sensitivity(path: Path, of: str, measure: Callable[[], np.ndarray], *, is_needed: bool = False) -> np.ndarray:
    """What `measure` gave for `of` before, if the file at `path` says so, else what it gives now, kept there.

    An export that goes on after a kill must round by the very same numbers, and measuring again need not give them: on an
    accelerator sums have no fixed order. A file that cannot be read is replaced, and one of something else, unless it `is_needed`
    by rows that are there: then UsageError.
    """
    kept = _read(path)
    if kept is not None and kept[0] == of:
        return kept[1]
    if kept is not None and is_needed:
        raise UsageError(
            f"{path} is left of an export with another rounding: of another text, held-out part, vocabulary or checkpoint",
            hint="add --restart to throw it away, or choose another store",
        )
    sensitivity_DD = measure()
    content = io.BytesIO()
    np.savez(content, of=np.array(of), sensitivity_DD=sensitivity_DD)
    publish_unlocked(path, content.getvalue())
    return sensitivity_DD


def _read(path: Path) -> tuple[str, np.ndarray] | None:
    """Of what the matrix in a file was measured, and the matrix; None where there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return str(kept["of"]), kept["sensitivity_DD"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


@torch.enable_grad()
def _gradient(model: SconeModel, batch: Batch, is_padding_BT: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of the summed loss of drawn tokens, at the decoder's input: (B, T, D)."""
    with torch.no_grad():
        inputs_BTD = model.inputs(batch)
    inputs_BTD = inputs_BTD.detach().requires_grad_()
    logits_BTV = model.decoder(inputs_BTD=inputs_BTD).float()
    drawn_BT = _drawn(logits_BTV.detach(), generator).masked_fill(is_padding_BT, IGNORE)
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), drawn_BT.flatten(), ignore_index=IGNORE, reduction="sum")
    return torch.autograd.grad(loss, inputs_BTD)[0]


def _drawn(logits_BTV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token (B, T) int64 for each position, drawn from its prediction; on the CPU, so that a seed means one draw everywhere."""
    chances_MV = logits_BTV.softmax(-1).flatten(0, 1).cpu()
    drawn_M = torch.multinomial(chances_MV, 1, generator=generator)
    return drawn_M.reshape(logits_BTV.shape[:2]).to(logits_BTV.device)
