"""What is looked up: the new tokens of each sequence with those before them, and how far back an n-gram may reach.

Shapes: B sequences, T new positions, K longest n-gram, S = K - 1 + T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Windows:
    """T new positions of B sequences: what `Store.lookup_tail` takes, and what a `RowHash` is given. Not to be changed.

    Where a call masks positions, they may stand elsewhere here, with no room, so that the tokens follow one another.
    """

    tokens_BS: np.ndarray
    """(B, K - 1 + T) u32: the K - 1 tokens before, then the T new ones. New token t of each line is tokens_BS[:, K - 1 + t]."""
    room_BT: np.ndarray
    """(B, T) u8: how many tokens an n-gram may have that ends there, itself included: 1 .. K; 0: no token is there. What is
    further back belongs to another document, or stands for nothing."""
    place_BT: np.ndarray | None = None
    """(B, T) i64, only where masked positions moved the tokens: which of the T answers belongs to each position of the call, -1:
    none. For the module, which puts answers back; a hash answers without it."""
