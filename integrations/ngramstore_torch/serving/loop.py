"""Decode with the store in front of the decoder: prompt in chunks fetched ahead, then one token at a time.

This is the loop of docs/serving.md. Each look-up stands between a drawn token and the next step, so it is kept short;
while a token is being drawn, the rows that the likeliest ones would need can be brought into the cache.

Shapes: T tokens of the prompt, V vocabulary, D row width, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ngramstore.errors import UsageError
from ngramstore_torch.model.decoder import Decoder, KVCache
from ngramstore_torch.serving.embedding import NGramEmbedding
from ngramstore_torch.serving.generation import check_sampling, choose, prompt_tokens, require_room, require_width


@torch.inference_mode()
def generate_served(
    decoder: Decoder,
    embedding: NGramEmbedding,
    prompt: np.ndarray,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    candidates: int = 0,
    chunk: int = 512,
) -> Iterator[int]:
    """Continue a prompt (T,) of at least one token, one token at a time; temperature 0 takes the likeliest.

    candidates: while a token is drawn, fetch the rows that the C likeliest next tokens would need. chunk: prompt tokens
    per step; the next chunk's rows are fetched while a chunk runs. The same seed gives the tokens of `generate` with
    `live_embedding`, up to what the store's codec rounds. Look-ups of the prompt and of each token have the embedding's
    timeout_s. Raises UsageError as `generate`, LookupTimeout, and the store's errors.
    """
    prompt = prompt_tokens(prompt, decoder.config.vocab_size)
    if chunk < 1 or candidates < 0:
        raise UsageError(f"chunk={chunk}, candidates={candidates}", hint="chunk is at least 1, candidates at least 0")
    require_width(embedding.store, decoder)
    require_room(len(prompt), max_new_tokens, decoder.config.max_positions)
    check_sampling(temperature, top_k)
    device = decoder.tokens.weight.device
    cache, history = KVCache(decoder.config, 1, device=device), embedding.new_history(1, max_rollback=0)
    random = torch.Generator().manual_seed(seed)
    chunks = torch.from_numpy(prompt.astype(np.int64))[None].split(chunk, dim=1)
    limit = embedding.timeout_s
    ticket = embedding.prefetch(chunks[0], history=history, timeout_s=limit)
    try:
        for number, tokens_1T in enumerate(chunks):
            inputs_1TD = embedding(tokens_1T.to(device), history=history, ticket=ticket)
            if number + 1 < len(chunks):
                ticket = embedding.prefetch(chunks[number + 1], history=history, timeout_s=limit)
            logits_V = decoder(inputs_BTD=inputs_1TD, cache=cache)[0, -1]
    except BaseException:
        ticket.cancel()
        raise
    while True:
        if candidates:
            embedding.prefetch_candidates(logits_V.topk(min(candidates, len(logits_V))).indices[None], history)
        token = choose(logits_V.float().cpu(), temperature, top_k, random)
        yield token
        max_new_tokens -= 1
        if not max_new_tokens:
            return
        inputs_11D = embedding(torch.tensor([[token]], device=device), history=history)
        logits_V = decoder(inputs_BTD=inputs_11D, cache=cache)[0, -1]
