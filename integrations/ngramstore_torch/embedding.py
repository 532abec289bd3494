"""The store as an embedding layer: each token gets the row of the longest f-gram that ends at it, or its own vector T(t).

    e_i = F(t_j .. t_i)   the longest stored n-gram that ends at i, of `min_length` tokens or more
    e_i = T(t_i)          where there is none

Rows are constants: no gradient reaches the store, T trains as usual. Look-ups run on the host; a token depends on itself
and the tokens before it. Full sequences, chunks and single tokens give the same vectors where an `NGramHistory` carries the
last K - 1 tokens from call to call. docs/serving.md shows a whole decoding loop.

Shapes: B batch, T position, D row width, K longest n-gram, C candidates.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngramstore.errors import StaleStore, UsageError
from ngramstore_torch.dequantize import dequantize, saves_transfer
from ngramstore_torch.handle import StoreHandle
from ngramstore_torch.history import NGramHistory, Windows
from ngramstore_torch.prefetch import Ticket, candidate_windows, lookup_into
from ngramstore_torch.serving_stats import ServingStats

_HOST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class NGramEmbedding(nn.Module):
    """Token ids (B, T) -> vectors (B, T, D), in T's type and on T's device.

    store: an open `ngramstore.Store` with addressing "ngram". token_embedding: T, any module from ids to vectors of width
    D with a `weight`; None gives zeros where nothing matched. min_length: shorter matches count as none (SCONE's f-grams
    have 2 tokens or more). timeout_s: look-ups run on a worker thread and raise LookupTimeout after that long; None runs
    them in the calling thread, which costs no hand-over and waits for the disk as long as it takes.

    `state_dict` holds T and the store's identity, never rows; loading into a module on another store raises StaleStore.
    Threads: calls from several threads share one store and its cache; a history belongs to one thread at a time.
    """

    def __init__(
        self,
        store: Any,
        token_embedding: nn.Module | None = None,
        *,
        min_length: int = 2,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__()
        if not store.spec.is_ngram:
            raise UsageError(f"{store.path} addresses rows by number", hint="use RowTableEmbedding")
        if not 1 <= min_length <= store.max_n:
            raise UsageError(f"min_length is {min_length}, the store's n-grams have 1 to {store.max_n} tokens")
        width = store.dim if token_embedding is None else token_embedding.weight.shape[1]
        if width != store.dim:
            raise UsageError(f"the store's rows are {store.dim} wide, the token embedding's are {width}")
        self.handle = StoreHandle(store)
        self.token_embedding = token_embedding
        self.min_length = min_length
        self.timeout_s = timeout_s
        self.dim, self.max_n, self.row_bytes = store.dim, store.max_n, store.spec.codec.row_bytes
        self.stats = ServingStats()
        self._candidates: Ticket | None = None
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def store(self) -> Any:
        """The open store, of this process."""
        return self.handle.store()

    def new_history(self, batch_size: int, *, max_rollback: int = 64) -> NGramHistory:
        """State for decoding B sequences in several calls."""
        return NGramHistory(batch_size, self.max_n, max_rollback=max_rollback)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        history: NGramHistory | None = None,
        attention_mask: Tensor | None = None,
        starts: Tensor | None = None,
        ticket: Ticket | None = None,
    ) -> Tensor:
        """Vectors (B, T, D) of tokens (B, T) int64.

        history: what came before; these tokens are pushed to it once their rows are there (after an error it is as it
        was). attention_mask (B, T): 0 where there is no token: n-grams run over it as if it were not there and its vector
        is T's. starts (B, T): true at the first token of a document. ticket: what `prefetch` gave for the same arguments.
        Raises UsageError, LookupTimeout and the store's errors.
        """
        if torch.compiler.is_compiling():
            return self._outside_the_graph(tokens_BT, history, attention_mask, starts, ticket)
        if history is not None and attention_mask is None and starts is None and ticket is None:
            found = self._one(tokens_BT, history)
            if found is not None:
                return found
        return self._forward(tokens_BT, history, attention_mask, starts, ticket)

    def prefetch(
        self,
        tokens_BT: Tensor,
        *,
        history: NGramHistory | None = None,
        attention_mask: Tensor | None = None,
        starts: Tensor | None = None,
        timeout_s: float | None = 60.0,
    ) -> Ticket:
        """Start fetching the rows of tokens (B, T) on a worker thread; hand the ticket to `forward` with the same arguments.

        The history is read, not changed. timeout_s: how long `forward` waits at most before it raises LookupTimeout.
        """
        windows = self._windows(_on_host(tokens_BT), history, attention_mask, starts)
        self.stats.count(tickets=1)
        return Ticket(self.handle, windows, self._buffer(windows), timeout_s)

    def prefetch_candidates(self, candidates_BC: Tensor, history: NGramHistory) -> Ticket | None:
        """Bring what the likely next tokens (B, C) would need into the row cache while the step runs.

        Returns at once; a ticket to wait on for tests and tools. Does nothing (and counts it) while the last one is still
        under way. Its errors are counted, not raised: the look-up itself meets them. Needs a store opened with a cache.
        """
        if self._candidates is not None and not self._candidates.is_done:
            self.stats.count(candidates_skipped=1)
            return None
        last = self._candidates
        if last is not None and last.error is not None:
            self.stats.count(candidate_errors=1)
            self.stats.last_candidate_error = str(last.error)
        self._candidates = None
        if candidates_BC.numel() == 0:
            return None
        windows = candidate_windows(history.context, history.room, _on_host(candidates_BC), self.max_n)
        stored = torch.empty((*windows.room_BT.shape, self.row_bytes), dtype=torch.uint8)
        self._candidates = Ticket(self.handle, windows, stored, 60.0)
        self.stats.count(candidate_calls=1, candidate_rows=len(windows.room_BT))
        return self._candidates

    def get_extra_state(self) -> Tensor:
        """The store's identity as bytes: what `state_dict` keeps in place of rows."""
        state = {"identity": self.store.identity, "dim": self.dim, "max_n": self.max_n, "min_length": self.min_length}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises StaleStore where the state was saved with another store."""
        saved = json.loads(bytes(state.cpu().numpy()).decode())
        if saved["identity"] != self.store.identity:
            raise StaleStore(f"the weights belong to store {saved['identity']}, this is {self.store.identity}")
        self.min_length = int(saved["min_length"])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, max_n={self.max_n}, min_length={self.min_length}, store={self.handle!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stats": None, "_candidates": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "stats": ServingStats()})

    # Inside

    @torch.compiler.disable
    def _outside_the_graph(self, *arguments: Any) -> Tensor:
        return self._forward(*arguments)

    def _forward(
        self,
        tokens_BT: Tensor,
        history: NGramHistory | None,
        attention_mask: Tensor | None,
        starts: Tensor | None,
        ticket: Ticket | None,
    ) -> Tensor:
        began = time.perf_counter_ns()
        ids_BT = _on_host(tokens_BT)
        windows = self._windows(ids_BT, history, attention_mask, starts)
        rows_BTD, lengths_BT = self._fetch(windows, ticket)
        if history is not None:
            history.push(ids_BT, attention_mask, starts)
        found_BT = lengths_BT >= self.min_length
        num_found = int(np.count_nonzero(found_BT))
        self.stats.add_call(found_BT.size, num_found, time.perf_counter_ns() - began)
        if windows.place_BT is not None:
            place_BT = np.maximum(windows.place_BT, 0)
            found_BT = np.take_along_axis(found_BT, place_BT, 1) & (windows.place_BT >= 0)
            index_BT1 = torch.from_numpy(place_BT)[..., None].to(rows_BTD.device)
            rows_BTD = rows_BTD.gather(1, index_BT1.expand(rows_BTD.shape))
        return self._mixed(tokens_BT, rows_BTD, found_BT, num_found)

    def _one(self, tokens_11: Tensor, history: NGramHistory) -> Tensor | None:
        """The answer for one token of one sequence on the CPU, by the shortest way; None: not such a call."""
        if tokens_11.numel() != 1 or tokens_11.ndim != 2 or history.batch_size != 1 or history.max_n != self.max_n:
            return None
        like, embed = self._like_weight(), self._modules.get("token_embedding")
        if like.device.type != "cpu" or like.dtype not in _HOST_DTYPES or self.timeout_s is not None:
            return None
        began = time.perf_counter_ns()
        windows = history.one_window(tokens_11.item())
        row_11D = torch.empty((1, 1, self.dim), dtype=like.dtype)
        length = int(lookup_into(self.store, windows, row_11D)[0, 0])
        history.push_one()
        is_found = length >= self.min_length
        self.stats.add_call(1, int(is_found), time.perf_counter_ns() - began)
        if is_found:
            return row_11D
        return row_11D.zero_() if embed is None else embed(tokens_11)

    def _windows(self, ids_BT: np.ndarray, history: NGramHistory | None, mask: Any, starts: Any) -> Windows:
        if ids_BT.ndim != 2:
            raise UsageError(f"tokens have shape {ids_BT.shape}, wanted (B, T)")
        if history is None:
            history = NGramHistory(len(ids_BT), self.max_n, max_rollback=0)
        elif history.max_n != self.max_n:
            raise UsageError(f"the history was made for max_n {history.max_n}, the store has {self.max_n}")
        return history.windows(ids_BT, mask, starts)

    def _like_weight(self) -> Tensor:
        embed = self._modules.get("token_embedding")  # a third of the cost of the attribute, at every call
        return self._buffers["_like"] if embed is None else embed.weight

    def _buffer(self, windows: Windows) -> Tensor:
        """A new CPU tensor for the answer; pinned, and as stored where that is less to copy, for an accelerator.

        PyTorch's pinned allocator hands a buffer out again only after copies from it have ended.
        """
        like = self._like_weight()
        if like.device.type == "cpu":
            dtype = like.dtype if like.dtype in _HOST_DTYPES else torch.float32
            return torch.empty((*windows.room_BT.shape, self.dim), dtype=dtype)
        codec = self.store.spec.codec
        pin = like.device.type == "cuda"
        if saves_transfer(codec, like.dtype) or like.dtype not in _HOST_DTYPES:
            return torch.empty((*windows.room_BT.shape, codec.row_bytes), dtype=torch.uint8, pin_memory=pin)
        return torch.empty((*windows.room_BT.shape, self.dim), dtype=like.dtype, pin_memory=pin)

    def _fetch(self, windows: Windows, ticket: Ticket | None) -> tuple[Tensor, np.ndarray]:
        """Rows (B, T, D) where T lives and in its type, and lengths (B, T) u8."""
        store = self.store
        try:
            if ticket is not None:
                if not ticket.answers(windows):
                    raise UsageError(
                        "the ticket was made for other tokens",
                        hint="hand it over with the tokens, mask and history that `prefetch` was given",
                    )
                rows, lengths_BT = ticket.wait()
                if ticket.generation == store.generation and ticket.take():
                    self.stats.count(tickets_used=1)
                else:
                    self.stats.count(tickets_outdated=1)
                    ticket = None
            if ticket is None:
                rows = self._buffer(windows)
                if self.timeout_s is None:
                    lengths_BT = lookup_into(store, windows, rows)
                else:
                    frozen = Windows(windows.tokens_BS.copy(), windows.room_BT.copy())
                    rows, lengths_BT = Ticket(self.handle, frozen, rows, self.timeout_s).wait()
        except TimeoutError:
            self.stats.count(timeouts=1)
            raise
        like = self._like_weight()
        if like.device.type != "cpu":
            rows = rows.to(like.device, non_blocking=True)
            if rows.dtype == torch.uint8:
                flat = rows.flatten(0, 1)
                rows = dequantize(store.spec.codec, flat, like.dtype).unflatten(0, rows.shape[:2])
        return rows if rows.dtype == like.dtype else rows.to(like.dtype), lengths_BT

    def _mixed(self, tokens_BT: Tensor, rows_BTD: Tensor, found_BT: np.ndarray, num_found: int) -> Tensor:
        """The rule: rows where an n-gram was found, T elsewhere."""
        if num_found == found_BT.size:
            return rows_BTD
        embed = self.token_embedding
        if embed is None:
            rows_BTD[torch.from_numpy(~found_BT).to(rows_BTD.device)] = 0
            return rows_BTD
        if num_found == 0:
            return embed(tokens_BT)
        if torch.is_grad_enabled() and embed.weight.requires_grad:
            found_BT1 = torch.from_numpy(found_BT)[..., None].to(rows_BTD.device, non_blocking=True)
            return torch.where(found_BT1, rows_BTD, embed(tokens_BT))
        missing_M = torch.from_numpy(np.flatnonzero(~found_BT)).to(rows_BTD.device, non_blocking=True)
        own_MD = embed(tokens_BT.reshape(-1)[missing_M])
        rows_BTD.view(-1, self.dim).index_copy_(0, missing_M, own_MD.to(rows_BTD.dtype))
        return rows_BTD


def _on_host(tokens_BT: Tensor) -> np.ndarray:
    """Ids as a numpy array; from an accelerator this waits for it."""
    return (tokens_BT if tokens_BT.device.type == "cpu" else tokens_BT.cpu()).detach().numpy()
