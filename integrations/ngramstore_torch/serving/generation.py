"""Generation with the live model, token by token with a cache; and what `generate_served` (loop.py) shares with it.

Shapes: T tokens so far, S new tokens, D row width, K tokens of the longest f-gram.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngramstore.errors import UsageError
from ngramstore.windows import as_tokens
from ngramstore_torch.data.batches import VocabularyLike, require_ids, require_lengths, tag
from ngramstore_torch.model.decoder import Decoder, KVCache
from ngramstore_torch.model.kinds import LanguageModel
from ngramstore_torch.model.scone import SconeModel

Embed = Callable[[np.ndarray, int], Tensor]
"""(tokens of the document so far (T,), how many of them are new S) -> input embeddings of the new ones (1, S, D)."""


@torch.no_grad()
def generate(
    decoder: Decoder,
    embed: Embed,
    prompt: np.ndarray,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[int]:
    """Continue a prompt (at least one token), one token at a time; temperature 0 takes the likeliest.

    embed: where input embeddings come from, such as `live_embedding`; `generate_served` is the loop for a store.

    Raises UsageError for a prompt of other things than the decoder's token ids, fewer than one new token, and where
    prompt and answer do not fit into the decoder's max_positions.
    """
    tokens = prompt_tokens(prompt, decoder.config.vocab_size).tolist()
    require_room(len(tokens), max_new_tokens, decoder.config.max_positions)
    check_sampling(temperature, top_k)
    device = decoder.tokens.weight.device
    cache = KVCache(decoder.config, 1, device=device)
    random = torch.Generator().manual_seed(seed)
    num_new = len(tokens)
    for _ in range(max_new_tokens):
        inputs_1SD = embed(np.array(tokens, np.uint32), num_new)
        logits_V = decoder(inputs_BTD=inputs_1SD, cache=cache)[0, -1].float().cpu()
        tokens.append(choose(logits_V, temperature, top_k, random))
        num_new = 1
        yield tokens[-1]


def prompt_tokens(prompt: np.ndarray, vocab_size: int) -> np.ndarray:
    """A prompt (T,) u32. UsageError for another shape, and for what is no token id of the decoder."""
    tokens_T = as_tokens(prompt, "the tokens of the prompt")
    if tokens_T.ndim != 1:
        raise UsageError(f"a prompt has shape {tokens_T.shape}", hint="give one line of token ids, (T,)")
    require_ids(tokens_T, vocab_size, "the tokens of the prompt")
    return tokens_T


def require_room(num_prompt: int, num_new: int, room: int) -> None:
    """UsageError where prompt or answer has no token, or both do not fit into the decoder's positions."""
    if num_prompt < 1 or num_new < 1:
        raise UsageError(f"{num_prompt} prompt tokens and {num_new} new ones", hint="both are at least 1")
    if num_prompt + num_new > room:
        raise UsageError(
            f"{num_prompt} prompt tokens and {num_new} new ones do not fit into {room} positions",
            hint=f"the model was trained with sequences of {room} tokens: shorten the prompt, ask for fewer new ones "
            "(`--max-new-tokens`), or train with a longer `--seq-len`",
        )


def check_sampling(temperature: float, top_k: int) -> None:
    """UsageError for what no token can be drawn with."""
    if not 0 <= temperature < math.inf or top_k < 1:
        raise UsageError(
            f"temperature {temperature}, top_k {top_k}", hint="a temperature is a number from 0, top_k is at least 1"
        )


def require_width(store: Any, decoder: Decoder) -> None:
    """UsageError where the store's rows are not as wide as the decoder's input: rows of one number would fill a whole vector."""
    if store.dim != decoder.config.dim:
        raise UsageError(
            f"the store's rows are {store.dim} wide, the token embedding's are {decoder.config.dim}",
            hint="give the store that was exported from this decoder's model",
        )


def choose(logits_V: Tensor, temperature: float, top_k: int, random: torch.Generator) -> int:
    """A token drawn from the top_k likeliest at a temperature; 0 means the likeliest."""
    if temperature == 0:
        return int(logits_V.argmax())
    best_logits, best = logits_V.topk(min(top_k, len(logits_V)))
    behind = (
        best_logits.double() - best_logits[0].double()
    )  # from 0 down: divided by whatever temperature, chances are numbers
    chances = (behind / temperature).softmax(0).float()
    return int(best[torch.multinomial(chances, 1, generator=random)])


def live_embedding(model: LanguageModel, vocabulary: VocabularyLike | None = None) -> Embed:
    """Embeddings computed by the model itself: A_f runs for each matched token."""
    if isinstance(model, SconeModel) and vocabulary is not None:
        require_lengths(vocabulary.ngrams[1], model.fgram_model.config.max_n)

    def embed(tokens_T: np.ndarray, num_new: int) -> Tensor:
        tagged = tag(tokens_T, np.array([0, len(tokens_T)]), vocabulary)
        index_1S = np.arange(len(tokens_T) - num_new, len(tokens_T))[None]
        device = next(model.parameters()).device
        return model.inputs(tagged.at(index_1S, history=model.history).to(device))

    return embed
