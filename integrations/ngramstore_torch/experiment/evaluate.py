"""Held-out perplexity of a model live, and of a decoder served from a store: the same windows, the same tokens.

Shapes: B batch, T position, D row width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ngramstore.errors import UsageError
from ngramstore_torch.data.batches import (
    IGNORE,
    Batch,
    TaggedTokens,
    document_windows,
    require_ids,
    require_lengths,
)
from ngramstore_torch.model.decoder import Decoder
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import SconeModel, replace_matched
from ngramstore_torch.serving.embedding import StoreLike, check_min_length
from ngramstore_torch.serving.generation import require_width


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over held-out tokens. Differences of `nats` are what to compare; perplexity is exp(nats)."""

    nats: float
    num_tokens: int
    matched: float
    """Fraction of scored input tokens where an f-gram ends: of the data's tags, or found in the store that served."""
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where no float is as large."""
        try:
            return math.exp(self.nats)
        except OverflowError:
            return math.inf


@torch.no_grad()
def evaluate_model(
    model: LanguageModel,
    data: TaggedTokens,
    *,
    store: StoreLike | None = None,
    min_length: int = 2,
    seq_len: int = 0,
    batch_size: int = 16,
    max_windows: int = 0,
    bf16: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Mean next-token loss of a model over every held-out document, in float32 unless bf16.

    store: serve f-gram rows from it instead of computing them; only the model's decoder is used then. min_length: shorter
    matches in it count as none, as in NGramEmbedding.
    seq_len: window length, 0 means the decoder's max_positions. max_windows: 0 means all. progress: a bar on stderr.
    Raises UsageError where the data has no target, or tokens that the model does not have.
    """
    started = time.perf_counter()
    require_ids(data.tokens_P, model.decoder.config.vocab_size, "the held-out tokens")
    look_up = _live(model)
    if store is not None:
        look_up = _served(model.decoder, store, min_length)
    elif isinstance(model, SconeModel):
        require_lengths(data.fgram_lengths_N, model.fgram_model.config.max_n)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, num_tokens, num_matched = 0.0, 0, 0
    seq_len = seq_len or model.decoder.config.max_positions
    batches = data.evaluation_batches(seq_len, batch_size, history=model.history, max_windows=max_windows)
    num_windows = len(document_windows(data.starts, seq_len)[0])
    num_windows = min(num_windows, max_windows) if max_windows > 0 else num_windows
    try:
        for batch in tqdm(batches, "evaluate", -(-num_windows // batch_size), unit="batch", disable=not progress):
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                inputs_BTD, found_BT = look_up(batch)
                logits_BTV = model.decoder(inputs_BTD=inputs_BTD)
            losses = F.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.targets_BT.flatten(), reduction="none")
            scored_BT = batch.targets_BT != IGNORE
            total += float(losses.double().sum())
            num_tokens += int(scored_BT.sum())
            num_matched += int((found_BT & scored_BT).sum())
    finally:
        model.train(was_training)
    if num_tokens == 0:
        raise UsageError("there is nothing to evaluate: no held-out document has two tokens")
    return Evaluation(total / num_tokens, num_tokens, num_matched / num_tokens, time.perf_counter() - started)


Inputs = Callable[[Batch], tuple[Tensor, Tensor]]
"""Batch -> input embeddings (B, T, D), and where an f-gram's vector is one: (B, T) bool."""


def _live(model: LanguageModel) -> Inputs:
    return lambda batch: (model.inputs(batch), batch.fgram_at_BT >= 0)


def _served(decoder: Decoder, store: StoreLike, min_length: int) -> Inputs:
    """The embedding rule with rows from a store, for batches with `documents`.

    min_length: shorter matches count as none; SCONE's f-grams have 2 tokens or more, a store may hold single tokens.
    """
    check_min_length(min_length, store)
    require_width(store, decoder)

    def look_up(batch: Batch) -> tuple[Tensor, Tensor]:
        tokens_BTD = decoder.tokens(batch.tokens_BT)
        B, T, D = tokens_BTD.shape
        rows_BTD = np.zeros((B, T, D), np.float32)
        found = np.zeros((B, T), bool)
        targets_BT = batch.targets_BT.cpu().numpy()
        for b, document in enumerate(batch.documents):
            length = int((targets_BT[b] != IGNORE).sum())
            hit = store.lookup(np.asarray(document, np.uint32)[None])
            rows_BTD[b, :length] = hit.rows[0, -length:]
            found[b, :length] = hit.length[0, -length:] >= min_length
        rows_ND = torch.from_numpy(rows_BTD).to(tokens_BTD.device).reshape(-1, D)
        at_BT = torch.arange(B * T, device=tokens_BTD.device).reshape(B, T)
        found_BT = torch.from_numpy(found).to(at_BT.device)
        return replace_matched(tokens_BTD, rows_ND, at_BT.where(found_BT, -1)), found_BT

    return look_up
