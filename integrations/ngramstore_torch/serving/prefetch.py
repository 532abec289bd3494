"""Look-ups ahead of need: a ticket for rows that a worker thread fetches, waited on with a time limit.

Every ticket has buffers of its own, filled once: a look-up that comes too late writes where nobody reads. A ticket
answers only the windows and the store generation that it was made for; for others the module looks up anew, as it does in
a process that was forked while the worker thread was at it.

Shapes: B sequences, T new positions, S tokens of a window line, D row width, R bytes of a stored row.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ngramstore.errors import LookupTimeout, UsageError, WrongProcess
from ngramstore.windows import as_tokens
from ngramstore_torch.serving.handle import StoreHandle
from ngramstore_torch.serving.history import Windows

LookUp = Callable[[Any, Windows, Tensor], np.ndarray]
"""(store, windows, CPU tensor to fill) -> lengths (B, T) u8, 0 where nothing was found."""


class Ticket:
    """Rows on their way: `wait` returns them or raises what the look-up raised."""

    def __init__(
        self, handle: StoreHandle, look_up: LookUp, windows: Windows, rows: Tensor, timeout_s: float | None
    ) -> None:
        self.windows = windows
        self._look_up = look_up
        self.generation = -1
        self._rows = rows
        self._timeout_s = timeout_s
        self._lengths: np.ndarray | None = None
        self._error: BaseException | None = None
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
    def error(self) -> BaseException | None:
        """What the look-up raised, once it is done."""
        return self._error

    def take(self) -> bool:
        """True once: the rows are a buffer that its first taker may write into."""
        first, self._is_taken = not self._is_taken, True
        return first

    def answers(self, windows: Windows) -> bool:
        """Made for exactly these windows."""
        mine = self.windows
        return np.array_equal(mine.tokens_BS, windows.tokens_BS) and np.array_equal(mine.room_BT, windows.room_BT)

    def wait(self, timeout_s: float | None = None) -> tuple[Tensor, np.ndarray]:
        """The filled tensor, dequantized rows or u8 as stored, and lengths (B, T) u8. Raises LookupTimeout and the store's errors.

        timeout_s: at most that long; None: as the ticket was made. Fork: a ticket that was not done raises WrongProcess.
        """
        if self.is_lost:
            raise WrongProcess(f"the look-up was begun in process {self._pid}, this is {os.getpid()}")
        limit = self._timeout_s if timeout_s is None else timeout_s
        # A fork may have copied the event locked, even behind its flag: it is waited on only where a thread will set it.
        if not self._done.is_set() and not self._done.wait(limit):
            raise LookupTimeout(f"a look-up of {self.windows.room_BT.size} positions did not end in {limit} s")
        if self._error is not None:
            raise self._error
        assert self._lengths is not None
        return self._rows, self._lengths

    def _run(self, handle: StoreHandle) -> None:
        try:
            store = handle.store()
            self.generation = store.generation
            self._lengths = self._look_up(store, self.windows, self._rows)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()


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
