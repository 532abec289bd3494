"""Look-ups ahead of need: a ticket for rows that a worker thread fetches, waited on with a time limit.

Every ticket has buffers of its own, filled once: a look-up that comes too late writes where nobody reads. A ticket
answers only the windows and the store generation that it was made for; for others the module looks up anew, as it does in
a process that was forked while the worker thread was at it. A ticket that nobody waits for any more is cancelled: a disk
that stalls must not leave a queue of look-ups, each with its buffer, to be worked off when it answers again.

Shapes: B sequences, T new positions, S tokens of a window line, D row width, R bytes of a stored row.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngramstore.errors import LookupTimeout, NgramStoreError, UsageError, WrongProcess
from ngramstore.windows import as_tokens
from ngramstore_torch.serving.handle import StoreHandle
from ngramstore_torch.serving.windows import Windows

LookUp = Callable[[Any, Windows, Tensor], np.ndarray]
"""(store, windows, CPU tensor to fill) -> lengths (B, T) u8, 0 where nothing was found."""


class Ticket:
    """Rows on their way: `wait` returns them or raises what the look-up raised."""

    def __init__(
        self,
        handle: StoreHandle,
        look_up: LookUp,
        windows: Windows,
        rows: Tensor,
        timeout_s: float | None,
        *,
        question: Any = None,
    ) -> None:
        """question: equal for embeddings that read the same rows in the same form for the same windows."""
        self.windows = windows
        self._question = question
        self._look_up = look_up
        self.generation = -1
        self._rows: Tensor | None = rows
        self._timeout_s = timeout_s
        self._lengths: np.ndarray | None = None
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        self._is_cancelled = False
        self._done = threading.Event()
        self._is_taken = False
        self._pid = os.getpid()
        handle.submit(lambda: self._run(handle))

    @property
    def is_done(self) -> bool:
        """Waiting would not block."""
        return self._done.is_set()

    @property
    def is_lost(self) -> bool:
        """Not done when this process was forked, and so never: its worker thread is the parent's."""
        return not self._done.is_set() and os.getpid() != self._pid

    @property
    def is_cancelled(self) -> bool:
        """Given up: there are no rows, and there will be none."""
        return self._is_cancelled

    @property
    def error(self) -> BaseException | None:
        """What the look-up raised, once it is done."""
        return self._error

    def cancel(self) -> None:
        """Nobody waits for the rows any more: a look-up that was not begun is left out, and `wait` raises UsageError."""
        self._is_cancelled = True
        self._rows = None

    def take(self) -> bool:
        """True once: the rows are a buffer that its first taker may write into."""
        first, self._is_taken = not self._is_taken, True
        return first

    def answers(self, question: Any, windows: Windows) -> bool:
        """Made for exactly these windows, by an embedding that asks the same."""
        mine = self.windows
        return (
            self._question == question
            and np.array_equal(mine.tokens_BS, windows.tokens_BS)
            and np.array_equal(mine.room_BT, windows.room_BT)
        )

    def wait(self, timeout_s: float | None = None) -> tuple[Tensor, np.ndarray]:
        """The filled tensor, dequantized rows or u8 as stored, and lengths (B, T) u8. Raises LookupTimeout and the
        store's errors.

        timeout_s: at most that long; None: as the ticket was made. Fork: a ticket that was not done raises WrongProcess.
        """
        if self._is_cancelled:
            raise UsageError("the ticket was cancelled", hint="make another one with prefetch")
        if self.is_lost:
            raise WrongProcess(f"the look-up was begun in process {self._pid}, this is {os.getpid()}")
        limit = self._timeout_s if timeout_s is None else timeout_s
        # A fork may have copied the event locked, even behind its flag: it is waited on only where a thread will set it.
        if not self._done.is_set() and not self._done.wait(limit):
            raise LookupTimeout(f"a look-up of {self.windows.room_BT.size} positions did not end in {limit} s")
        if self._error is not None:
            raise self._error.with_traceback(self._trace)  # or it would grow with every call
        rows, lengths = self._rows, self._lengths
        if rows is None or lengths is None:  # cancelled by another thread meanwhile
            raise UsageError("the ticket was cancelled", hint="make another one with prefetch")
        return rows, lengths

    def _run(self, handle: StoreHandle) -> None:
        rows = self._rows
        try:
            if rows is None:
                return
            store = handle.store()
            self.generation = store.generation
            self._lengths = self._look_up(store, self.windows, rows)
        except BaseException as error:
            self._error, self._trace = error, error.__traceback__
        finally:
            self._done.set()


def rows_of(ticket: Ticket, store: Any) -> tuple[Tensor, np.ndarray] | None:
    """What a ticket brings; None where that is lost, or not what the store holds by now, be it rows or an error."""
    if not ticket.is_cancelled and (ticket.is_lost or store.options.mode == "rw"):  # whose own changes count at once
        return None
    try:
        made = ticket.wait()
    except (LookupTimeout, UsageError):  # not yet there; or cancelled
        raise
    except NgramStoreError:
        if ticket.generation == store.generation:
            raise
        return None
    return made if ticket.generation == store.generation else None


def check_timeout(timeout_s: float | None) -> None:
    """UsageError for a time limit that none can be; None, no limit, is one."""
    if timeout_s is not None and not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise UsageError(f"timeout_s is {timeout_s}", hint="give seconds above 0, or None for no limit")


def lookup_into(store: Any, windows: Windows, rows: Tensor) -> np.ndarray:
    """Look windows up into a CPU tensor: (B, T, D) f32, f16 or bf16, or (B, T, R) u8. Returns lengths (B, T) u8."""
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.uint16)
    return store.lookup_tail(windows.tokens_BS, windows.room_BT, out=rows.numpy())


def candidate_windows(context_BK: np.ndarray, room_B: np.ndarray, candidates_BC: np.ndarray, max_n: int) -> Windows:
    """One line for each candidate next token: context (B, K - 1) and candidates (B, C) -> B * C lines of K tokens."""
    if candidates_BC.ndim != 2 or len(candidates_BC) != len(context_BK):
        raise UsageError(f"candidates have shape {candidates_BC.shape}, wanted ({len(context_BK)}, C)")
    num = candidates_BC.shape[1]
    tokens = np.concatenate((np.repeat(context_BK, num, axis=0), as_tokens(candidates_BC).reshape(-1, 1)), 1)
    room = np.minimum(np.repeat(room_B.astype(np.int64), num) + 1, max_n).astype(np.uint8)
    return Windows(tokens, room[:, None])
