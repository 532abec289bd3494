"""Hashes of n-gram tables: from a token and those before it to row numbers, several a token. They belong to the model.

A hash is any object with `max_n`, `rows_per_token` and `rows`; `num_rows` and `spec`, where it has them, are checked.

Shapes: B batch, T position, S = K - 1 + T, J rows a token, R tokens looked back at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.keys import NOTHING, Keys
from ngramstore_torch.serving.windows import Windows


class RowHash(Protocol):
    """From tokens to row numbers: a pure function of a token and those before it. Any object will do that has

    max_n: K, the tokens it looks at, the last one included; at most 16.
    rows_per_token: J, the rows that a token has.
    rows(windows): their numbers.

    and, where the module is to check them: num_rows, of all its tables together, which the store has to hold; spec(), JSON values
    that tell one hash from another, which `state_dict` keeps.
    """

    max_n: int
    rows_per_token: int

    def rows(self, windows: Windows) -> np.ndarray:
        """Numbers of the rows of each new position: (B, T, J) i64, 0 .. N - 1; -1: none, the row is zeros.

        windows: the T new tokens behind the K - 1 before them, (B, K - 1 + T) u32, and room (B, T) u8. Where the room is less
        than n, no n-gram of n tokens ends there: it would begin before its document. Called from worker threads too.
        """
        ...


class OverEncodingHash:
    """Tables of n = 2..K as in Over-Encoding (arXiv 2501.16975): row of an n-gram = its base-V number modulo the table's size.

    sizes: rows of each table, for n = 2, 3, .., K; `per_length` tables a length follow each other. The store holds them
    all, one behind the other. Sizes that differ by a little (they should be coprime) make collisions differ by table.
    """

    def __init__(self, vocab_size: int, sizes: Sequence[int], *, per_length: int = 1) -> None:
        if not sizes or len(sizes) % per_length or min(sizes) < 1 or max(sizes) >= 1 << 31 or vocab_size < 1:
            raise UsageError(f"sizes {list(sizes)!r:.100} with {per_length} tables a length, vocabulary {vocab_size}")
        if len(sizes) // per_length > MAX_N - 1 or vocab_size > 1 << 32:
            raise UsageError(f"{len(sizes) // per_length} lengths, vocabulary {vocab_size}", hint=f"n is 2 to {MAX_N}")
        self.vocab_size = vocab_size
        self.sizes = tuple(int(size) for size in sizes)
        self.per_length = per_length
        self.max_n = 1 + len(sizes) // per_length
        self.rows_per_token = len(sizes)
        self.num_rows = sum(self.sizes)

    def spec(self) -> dict[str, Any]:
        """What the numbers depend on, for JSON."""
        return {
            "hash": "over-encoding",
            "vocab_size": self.vocab_size,
            "sizes": list(self.sizes),
            "per_length": self.per_length,
        }

    def rows(self, windows: Windows) -> np.ndarray:
        T = windows.room_BT.shape[1]
        largest = int(windows.tokens_BS.max(initial=0))
        if largest >= self.vocab_size:
            raise UsageError(
                f"token id {largest} is out of range", hint=f"this hash's ids are 0 to {self.vocab_size - 1}"
            )
        out_BTJ = np.empty((*windows.room_BT.shape, self.rows_per_token), np.int64)
        begin = windows.tokens_BS.shape[1] - T
        first = 0
        for j, size in enumerate(self.sizes):
            n = 2 + j // self.per_length
            number_BT = np.zeros(windows.room_BT.shape, np.uint64)
            for back in range(n - 1, -1, -1):  # Horner, reduced at each step: below 2**31 * 2**32 + 2**32
                token_BT = windows.tokens_BS[:, max(0, begin - back) : begin - back + T].astype(np.uint64)
                if token_BT.shape[1] < T:  # only where the room says no
                    token_BT = np.pad(token_BT, ((0, 0), (T - token_BT.shape[1], 0)))
                number_BT = (number_BT * np.uint64(self.vocab_size) + token_BT) % np.uint64(size)
            out_BTJ[..., j] = np.where(windows.room_BT >= n, number_BT.astype(np.int64) + first, -1)
            first += size
        return out_BTJ


class TrainedTableHash:
    """The hash of `ngramstore_torch.HashedModel`: one table for each n = 2..K, all of `rows_per_table` rows."""

    def __init__(self, rows_per_table: int, max_n: int) -> None:
        if rows_per_table < 1 or not 2 <= max_n <= MAX_N:
            raise UsageError(f"rows_per_table {rows_per_table}, max_n {max_n}")
        self.rows_per_table = rows_per_table
        self.max_n = max_n
        self.rows_per_token = max_n - 1
        self.num_rows = rows_per_table * (max_n - 1)

    def spec(self) -> dict[str, Any]:
        """What the numbers depend on, for JSON."""
        return {"hash": "trained", "rows_per_table": self.rows_per_table, "max_n": self.max_n}

    def rows(self, windows: Windows) -> np.ndarray:
        from ngramstore_torch.model.hashed import hashed_rows

        T = windows.room_BT.shape[1]
        begin = windows.tokens_BS.shape[1] - T
        tokens_BS = windows.tokens_BS.astype(np.int64)
        back_BTJ = np.full((*windows.room_BT.shape, self.rows_per_token), -1, np.int64)
        for j in range(self.rows_per_token):
            skip = max(0, j + 1 - begin)
            back_BTJ[:, skip:, j] = tokens_BS[:, begin - j - 1 + skip : begin - j - 1 + T]
        back_BTJ[np.arange(2, self.max_n + 1) > windows.room_BT[..., None]] = -1
        rows, inside = hashed_rows(
            torch.from_numpy(tokens_BS[:, begin:]), torch.from_numpy(back_BTJ), self.rows_per_table
        )
        return np.where(inside.numpy(), rows.numpy(), -1)


class KeysHash:
    """The key spec of a model family (`ngramstore.keys`: Engram, Qwen PLE, LongCat, ..) as a hash.

    An n-gram that begins before its document has a row there too: the model says which token stands for none.
    """

    def __init__(self, keys: Keys) -> None:
        if getattr(keys, "token_map", ()) is None:
            raise UsageError(
                f"{keys.model} keys need the token map, which the store does not hold",
                hint='give it with the keys: RowTableEmbedding(store, keys_from_spec(store.metadata["keys"], '
                "token_map=token_map_of(tokenizer))); both are in ngramstore.keys",
            )
        self.keys = keys
        self.max_n = keys.reach + 1
        self.rows_per_token = keys.num_heads
        self.num_rows = keys.num_rows
        if self.max_n > MAX_N:
            raise UsageError(f"{keys.model} looks {keys.reach} tokens back", hint=f"a history holds up to {MAX_N - 1}")

    def spec(self) -> dict[str, Any]:
        """What the numbers depend on, for JSON."""
        return self.keys.spec()

    def rows(self, windows: Windows) -> np.ndarray:
        room_BT, reach = windows.room_BT, self.keys.reach
        B, T = room_BT.shape
        tokens_BS = windows.tokens_BS.astype(np.int64)
        begin = tokens_BS.shape[1] - T
        if not room_BT.size:
            return np.full((B, T, self.rows_per_token), -1, np.int64)
        grows_BT = np.minimum(room_BT[:, :1].astype(np.int64) + np.arange(T), self.max_n)
        if room_BT[:, 0].all() and (room_BT == grows_BT).all():  # no holes, no documents: lines as they are
            back_R = np.arange(reach, 0, -1)
            history_BR = np.where(back_R < room_BT[:, :1], tokens_BS[:, begin - reach : begin], NOTHING)
            return self.keys.rows(tokens_BS[:, begin:], history_BR)
        views_BTK = np.lib.stride_tricks.sliding_window_view(tokens_BS[:, begin - reach :], self.max_n, axis=1)
        back_K = np.arange(reach, -1, -1)
        views_BTK = np.where(back_K < room_BT[..., None], views_BTK, NOTHING)
        there = room_BT.reshape(-1) > 0
        lines_MK = views_BTK.reshape(-1, self.max_n)[there]
        numbers = np.full((B * T, self.rows_per_token), -1, np.int64)
        numbers[there] = self.keys.rows(lines_MK[:, reach:], lines_MK[:, :reach])[:, 0]
        return numbers.reshape(B, T, -1)
