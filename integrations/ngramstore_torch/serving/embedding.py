"""The store as an embedding layer: each token gets the row of the longest f-gram that ends at it, or its own vector T(t).

    e_i = F(t_j .. t_i)   the longest stored n-gram that ends at i, of `min_length` tokens or more
    e_i = T(t_i)          where there is none

Rows are constants: no gradient reaches the store, T trains as usual. Look-ups run on the host; a token depends on itself
and the tokens before it. Full sequences, chunks and single tokens give the same vectors where an `NGramHistory` carries the
last K - 1 tokens from call to call. docs/serving.md shows a whole decoding loop.

Shapes: B batch, T position, D row width, K longest n-gram.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ngramstore.errors import UsageError
from ngramstore_torch.serving.history import NGramHistory
from ngramstore_torch.serving.module import HOST_DTYPES, StoreModule
from ngramstore_torch.serving.prefetch import LookUp, lookup_into
from ngramstore_torch.serving.tensors import width_of

_FEW = 64
"""Positions of which all get T's vector, and some a row after that: choosing those without a row first would take longer."""


class StoreLike(Protocol):
    """What is needed of an open store: look-ups by tokens, how wide its rows are and how long its n-grams."""

    @property
    def dim(self) -> int: ...

    @property
    def max_n(self) -> int: ...

    def lookup(self, tokens: np.ndarray) -> Any: ...


class NGramEmbedding(StoreModule):
    """Token ids (B, T) -> vectors (B, T, D), in T's type and on T's device.

    store: an open `ngramstore.Store` with addressing "ngram". token_embedding: T, any module from ids to vectors of width
    D with a `weight`; None gives zeros where nothing matched. min_length: shorter matches count as none (SCONE's f-grams
    have 2 tokens or more). timeout_s: look-ups run on a worker thread and raise LookupTimeout after that long; None runs
    them in the calling thread, which costs no hand-over and waits for the disk as long as it takes.

    Calls, tickets, state and copies are those of StoreModule; a masked position's vector is T's.
    """

    def __init__(
        self,
        store: Any,
        token_embedding: nn.Module | None = None,
        *,
        min_length: int = 2,
        timeout_s: float | None = None,
    ) -> None:
        if not store.spec.is_ngram:
            raise UsageError(f"{store.path} addresses rows by number", hint="use RowTableEmbedding")
        check_min_length(min_length, store)
        width = store.dim if token_embedding is None else width_of(token_embedding)
        if width != store.dim:
            raise UsageError(f"the store's rows are {store.dim} wide, the token embedding's are {width}")
        super().__init__(store, token_embedding, store.max_n, timeout_s)
        self.min_length = min_length

    def extra_repr(self) -> str:
        return f"dim={self.dim}, max_n={self.max_n}, min_length={self.min_length}, store={self.handle!r}"

    def _look_up(self) -> LookUp:
        return lookup_into

    def _state(self) -> dict[str, Any]:
        return {"min_length": self.min_length}

    def _set_state(self, saved: dict[str, Any]) -> None:
        self.min_length = int(saved["min_length"])

    def _step(self, tokens_B1: Tensor, history: NGramHistory) -> Tensor | None:
        """After a decoder's step its weights fill the processor's caches, and each thing touched here comes from memory:
        so there are few of them."""
        shape = tokens_B1.shape
        if len(shape) != 2 or shape[1] != 1 or shape[0] != history.batch_size or history.max_n != self.max_n:
            return None
        like = self._like_weight()
        if self.timeout_s is not None or not like.is_cpu or not tokens_B1.is_cpu or like.dtype not in HOST_DTYPES:
            return None
        return self._one(tokens_B1, history, like) if shape[0] == 1 else self._one_each(tokens_B1, history, like)

    def _one(self, tokens_11: Tensor, history: NGramHistory, like: Tensor) -> Tensor:
        """One token of one sequence."""
        began = time.perf_counter_ns()
        token: Any = tokens_11.item()
        tokens_S, end, room = history._next_one(token)
        scratch: Any = history.scratch or (None, None, None, 0)
        row_11D, bits_D, dtype, dim = scratch
        if dtype is not like.dtype or dim != self.dim:
            dtype, dim = like.dtype, self.dim
            row_11D = torch.empty((1, 1, dim), dtype=dtype, device="cpu")
            bits_D = (row_11D.view(torch.uint16) if dtype is torch.bfloat16 else row_11D).numpy()[0, 0]
            history.scratch = row_11D, bits_D, dtype, dim
        length = self.handle.store().lookup_one(tokens_S, end, room, out=bits_D)
        is_found = length >= self.min_length
        self.stats.add_call(1, int(is_found), time.perf_counter_ns() - began)
        if is_found:
            own_11D = row_11D.clone()
        else:
            embed = self._modules.get("token_embedding")
            own_11D = torch.zeros_like(row_11D) if embed is None else embed(tokens_11)
        history._push_one()  # last: T may refuse the token
        return own_11D

    def _one_each(self, tokens_B1: Tensor, history: NGramHistory, like: Tensor) -> Tensor:
        """One token of each of several sequences."""
        began = time.perf_counter_ns()
        windows = history._next_each(tokens_B1.numpy())
        rows = torch.empty((*windows.room_BT.shape, self.dim), dtype=like.dtype, device="cpu")
        lengths_B1 = lookup_into(self.handle.store(), windows, rows)
        found_B1 = lengths_B1 >= self.min_length
        num_found = int(np.count_nonzero(found_B1))
        self.stats.add_call(found_B1.size, num_found, time.perf_counter_ns() - began)
        made = self._mixed(tokens_B1, rows, found_B1, num_found)
        history._push_one()  # last: T may refuse a token
        return made

    def _mixed(self, tokens_BT: Tensor, rows: Tensor, found_BT: np.ndarray, num_found: int) -> Tensor:
        """The rule: rows where an n-gram was found, T elsewhere."""
        embed = self.token_embedding
        if embed is None:
            if num_found < found_BT.size:
                rows[torch.from_numpy(~found_BT).to(rows.device)] = 0
            return rows
        if num_found == 0:
            return embed(tokens_BT)
        # In training T is asked for every position, even if none needs it: it may have hooks that expect (B, T), such
        # as NEFTune's, and what follows may need an input with a gradient, as checkpoints of activations do.
        is_trained = embed.training or (torch.is_grad_enabled() and embed.weight.requires_grad)
        if num_found == found_BT.size and not is_trained:
            return rows
        if found_BT.size <= _FEW or is_trained:
            found_BT1 = torch.from_numpy(found_BT)[..., None].to(rows.device, non_blocking=True)
            return torch.where(found_BT1, rows, embed(tokens_BT).to(rows.dtype))
        missing_M = torch.from_numpy(np.flatnonzero(~found_BT)).to(rows.device, non_blocking=True)
        own_MD = embed(tokens_BT.reshape(-1)[missing_M])
        rows.view(-1, self.dim).index_copy_(0, missing_M, own_MD.to(rows.dtype))
        return rows


def check_min_length(min_length: int, store: StoreLike) -> None:
    """UsageError for a shortest match that no n-gram of the store can be."""
    if not 1 <= min_length <= store.max_n:
        raise UsageError(f"min_length is {min_length}, the store's n-grams have 1 to {store.max_n} tokens")
