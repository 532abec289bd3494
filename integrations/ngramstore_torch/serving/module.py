"""What every embedding that reads a store has in common: history, tickets, time limits, state, copies, transfer, statistics.

A kind of embedding says which windows it looks up (`_look_up`), how wide its rows are, and what it makes of them.

Shapes: B batch, T position, C candidates; a row is (D,) or (J, D), its stored bytes (R,) or (J, R).
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngramstore.errors import StaleStore, UsageError
from ngramstore_torch.serving.dequantize import dequantize, saves_transfer
from ngramstore_torch.serving.handle import StoreHandle
from ngramstore_torch.serving.history import NGramHistory
from ngramstore_torch.serving.prefetch import LookUp, Ticket, candidate_windows, check_timeout, rows_of
from ngramstore_torch.serving.stats import ServingStats
from ngramstore_torch.serving.tensors import on_host, require_floats, require_tensor
from ngramstore_torch.serving.windows import Windows

HOST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types that the store writes itself; others are made from float32."""


class StoreModule(nn.Module, ABC):
    """Base of NGramEmbedding and RowTableEmbedding: their calls, tickets, state and copies.

    `state_dict` holds T and the store's identity, never rows; loading into a module on another store raises StaleStore.
    `copy.deepcopy` shares the store and its cache; a pickle and a forked process open it again.
    Threads: calls from several threads share one store and its cache; a history belongs to one thread at a time.
    """

    min_length = 1
    """A position counts as found where the look-up says so much."""

    def __init__(self, store: Any, token_embedding: nn.Module | None, max_n: int, timeout_s: float | None) -> None:
        super().__init__()
        check_timeout(timeout_s)
        if token_embedding is not None:
            require_floats(token_embedding)
        self.handle = StoreHandle(store)
        self.token_embedding = token_embedding
        self.timeout_s = timeout_s
        self.dim, self.max_n, self.row_bytes = store.dim, max_n, store.spec.codec.row_bytes
        self.stats = ServingStats()
        self._candidates: Ticket | None = None
        self.register_buffer("_like", torch.empty(0, dtype=torch.float32, device="cpu"), persistent=False)

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
        """Vectors of tokens (B, T) int64; the class says of which shape.

        history: what came before; these tokens are pushed to it once their rows are there (after an error it is as it
        was). attention_mask (B, T): 0 where there is no token: n-grams run over it as if it were not there. starts (B, T):
        true at the first token of a document. ticket: what `prefetch` gave for the same arguments.
        Raises UsageError, LookupTimeout and the store's errors.
        """
        require_tensor(tokens_BT)
        if torch.compiler.is_compiling():
            return self._outside_the_graph(tokens_BT, history, attention_mask, starts, ticket)
        if history is not None and attention_mask is None and starts is None and ticket is None:
            made = self._step(tokens_BT, history)
            if made is not None:
                return made
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

        The history is read, not changed. timeout_s: how long `forward` waits at most before it raises LookupTimeout; a ticket
        that is not waited for any more is to be cancelled then. Rows of a store that is open for changes (mode="rw") are looked
        up again by `forward`, since what has changed meanwhile counts at once.
        """
        require_tensor(tokens_BT)
        check_timeout(timeout_s)
        windows = self._windows(on_host(tokens_BT), history, attention_mask, starts)
        self.stats.count(tickets=1)
        return Ticket(
            self.handle, self._look_up(), windows, self._buffer(windows), timeout_s, question=self._question()
        )

    def prefetch_candidates(self, candidates_BC: Tensor, history: NGramHistory) -> Ticket | None:
        """Bring what the likely next tokens (B, C) would need into the row cache while the step runs.

        Returns at once; a ticket to wait on for tests and tools. Does nothing (and counts it) while the last one is still
        under way. Its errors are counted, not raised: the look-up itself meets them. Needs a store opened with a cache.
        """
        require_tensor(candidates_BC)
        last = self._candidates
        if last is not None and not (last.is_done or last.is_lost):
            self.stats.count(candidates_skipped=1)
            return None
        if last is not None and last.error is not None:
            self.stats.count(candidate_errors=1)
            self.stats.last_candidate_error = str(last.error)
        self._candidates = None
        if candidates_BC.numel() == 0:
            return None
        windows = candidate_windows(history.context, history.room, on_host(candidates_BC), self.max_n)
        stored = torch.empty(self._stored_shape(windows), dtype=torch.uint8, device="cpu")
        self._candidates = Ticket(self.handle, self._look_up(), windows, stored, 60.0)
        self.stats.count(candidate_calls=1, candidate_rows=len(windows.room_BT))
        return self._candidates

    def get_extra_state(self) -> Tensor:
        """The store's identity as bytes: what `state_dict` keeps in place of rows."""
        state = {"identity": self.store.identity, "dim": self.dim, "max_n": self.max_n, **self._state()}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises StaleStore where the state was saved with another store."""
        saved = json.loads(bytes(state.cpu().numpy()).decode())
        if saved["identity"] != self.store.identity:
            raise StaleStore(f"the weights belong to store {saved['identity']}, this is {self.store.identity}")
        self._set_state(saved)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stats": None, "_candidates": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "stats": ServingStats()})

    # What a kind of embedding says

    @abstractmethod
    def _look_up(self) -> LookUp:
        """(store, windows, CPU tensor to fill) -> lengths (B, T) u8. A worker thread may call it; it changes nothing here."""

    def _question(self) -> tuple[Any, ...]:
        """What rows a look-up here reads, and in which form: a ticket of an embedding with another question is refused."""
        return self.handle, self._row_dtype() == torch.uint8

    def _row_shape(self) -> tuple[int, ...]:
        """Rows of one position: () for one, (J,) for several."""
        return ()

    def _row_dtype(self) -> torch.dtype:
        """Type of the rows that `_mixed` gets; uint8: as stored."""
        return self._like_weight().dtype

    @abstractmethod
    def _mixed(self, tokens_BT: Tensor, rows: Tensor, found_BT: np.ndarray, num_found: int) -> Tensor:
        """The answer, of rows (B, T, D) or (B, T, J, D) that it may write into, and T."""

    def _step(self, tokens_B1: Tensor, history: NGramHistory) -> Tensor | None:
        """The answer for one token of each sequence on the CPU, by the shortest way; None: not such a call."""
        return None

    def _state(self) -> dict[str, Any]:
        """What `state_dict` says beside the store's identity; JSON values."""
        return {}

    def _set_state(self, saved: dict[str, Any]) -> None:
        """Take over, or refuse, what `_state` gave when the weights were saved."""

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
        ids_BT = on_host(tokens_BT)
        windows = self._windows(ids_BT, history, attention_mask, starts)
        rows, lengths_BT = self._fetch(windows, ticket)
        found_BT = lengths_BT >= self.min_length
        num_found = int(np.count_nonzero(found_BT))
        self.stats.add_call(found_BT.size, num_found, time.perf_counter_ns() - began)
        if windows.place_BT is not None:
            place_BT = np.maximum(windows.place_BT, 0)
            found_BT = np.take_along_axis(found_BT, place_BT, 1) & (windows.place_BT >= 0)
            index = torch.from_numpy(place_BT).to(rows.device).view(*place_BT.shape, *[1] * (rows.ndim - 2))
            rows = rows.gather(1, index.expand(rows.shape))
        made = self._mixed(tokens_BT.to(rows.device), rows, found_BT, num_found)
        if history is not None:
            history.push(ids_BT, attention_mask, starts)  # last: T may refuse a token
        return made

    def _windows(self, ids_BT: np.ndarray, history: NGramHistory | None, mask: Any, starts: Any) -> Windows:
        if ids_BT.ndim != 2:
            raise UsageError(f"tokens have shape {ids_BT.shape}, wanted (B, T)")
        if history is None:
            history = NGramHistory(len(ids_BT), self.max_n, max_rollback=0)
        elif history.max_n != self.max_n:
            raise UsageError(f"the history was made for max_n {history.max_n}, this embedding has {self.max_n}")
        return history.windows(ids_BT, mask, starts)

    def _like_weight(self) -> Tensor:
        # Through the dictionaries: an attribute of a module costs a microsecond or two, at every call.
        embed: Any = self._modules.get("token_embedding")
        if embed is None:
            like: Any = self._buffers["_like"]
            return like
        weight = embed._parameters.get("weight")
        return embed.weight if weight is None else weight

    def _stored_shape(self, windows: Windows) -> tuple[int, ...]:
        return (*windows.room_BT.shape, *self._row_shape(), self.row_bytes)

    def _buffer(self, windows: Windows) -> Tensor:
        """A new CPU tensor for the answer; pinned, and as stored where that is less to copy, for an accelerator.

        PyTorch's pinned allocator hands a buffer out again only after copies from it have ended. No inference tensor: a ticket
        made in inference mode may be used outside it, where such tensors cannot be written to.
        """
        with torch.inference_mode(False):
            device, dtype = self._like_weight().device, self._row_dtype()
            pin = device.type == "cuda"
            is_remote = device.type != "cpu"
            is_narrow = is_remote and (saves_transfer(self.store.spec.codec, dtype) or dtype not in HOST_DTYPES)
            if dtype == torch.uint8 or is_narrow:
                return torch.empty(self._stored_shape(windows), dtype=torch.uint8, device="cpu", pin_memory=pin)
            shape = (*windows.room_BT.shape, *self._row_shape(), self.dim)
            dtype = dtype if dtype in HOST_DTYPES else torch.float32
            return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pin)

    def _fetch(self, windows: Windows, ticket: Ticket | None) -> tuple[Tensor, np.ndarray]:
        """Rows where T lives and in the type that is wanted, and lengths (B, T) u8."""
        store = self.store
        try:
            if ticket is not None:
                if not ticket.answers(self._question(), windows):
                    raise UsageError(
                        "the ticket was made for other tokens, or by another embedding",
                        hint="hand it over with the tokens, mask and history that `prefetch` was given, to the same embedding",
                    )
                made = rows_of(ticket, store)
                if made is not None and ticket.take():
                    rows, lengths_BT = made
                    self.stats.count(tickets_used=1)
                else:
                    self.stats.count(tickets_outdated=1)
                    ticket = None
            if ticket is None:
                rows = self._buffer(windows)
                if self.timeout_s is None:
                    lengths_BT = self._look_up()(store, windows, rows)
                else:
                    frozen = Windows(windows.tokens_BS.copy(), windows.room_BT.copy())
                    rows, lengths_BT = self._in_time(frozen, rows, self.timeout_s)
        except TimeoutError:
            self.stats.count(timeouts=1)
            raise
        return self._moved(rows), lengths_BT

    def _in_time(self, windows: Windows, rows: Tensor, timeout_s: float) -> tuple[Tensor, np.ndarray]:
        ticket = Ticket(self.handle, self._look_up(), windows, rows, timeout_s)
        try:
            return ticket.wait()
        except BaseException:
            ticket.cancel()
            raise

    def _moved(self, rows: Tensor) -> Tensor:
        """Rows where T lives, and in the type that is wanted."""
        device, dtype = self._like_weight().device, self._row_dtype()
        if device.type != "cpu":
            rows = rows.to(device, non_blocking=True)
        if rows.dtype == torch.uint8 != dtype:
            rows = dequantize(self.store.spec.codec, rows.flatten(0, -2), dtype).unflatten(0, rows.shape[:-1])
        return rows if rows.dtype == dtype else rows.to(dtype)
