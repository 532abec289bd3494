"""Hashed n-gram tables from a store: a pluggable hash names rows by number, several a token, and they are summed or joined.

The hash belongs to the model; the store holds rows 0..N-1 and knows nothing of tokens (addressing "row"). History, masks,
documents and statistics are those of NGramEmbedding; there are no tickets here, every call reads its own rows.

Shapes: B batch, T position, S = K - 1 + T, J rows a token, D row width, W = D or J * D.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ngramstore.errors import UsageError
from ngramstore_torch.handle import StoreHandle
from ngramstore_torch.history import NGramHistory, Windows
from ngramstore_torch.serving_stats import ServingStats


class RowHash(Protocol):
    """From tokens to row numbers: a pure function of a token and those before it."""

    max_n: int
    """Tokens it looks at, K."""
    rows_per_token: int
    """J."""

    def rows(self, windows: Windows) -> np.ndarray:
        """Tokens (B, S) u32 and room (B, T) u8 -> (B, T, J) i64; -1 where the n-gram begins before its document."""
        ...


class OverEncodingHash:
    """Tables of n = 2..K as in Over-Encoding (arXiv 2501.16975): row of an n-gram = its base-V number modulo the table's size.

    sizes: rows of each table, for n = 2, 3, .., K; `per_length` tables a length follow each other. The store holds them
    all, one behind the other. Sizes that differ by a little (they should be coprime) make collisions differ by table.
    """

    def __init__(self, vocab_size: int, sizes: Sequence[int], *, per_length: int = 1) -> None:
        if not sizes or len(sizes) % per_length or min(sizes) < 1 or max(sizes) >= 1 << 31 or vocab_size < 1:
            raise UsageError(f"sizes {list(sizes)!r:.100} with {per_length} tables a length, vocabulary {vocab_size}")
        if len(sizes) // per_length > 15 or vocab_size > 1 << 32:
            raise UsageError(f"{len(sizes) // per_length} lengths, vocabulary {vocab_size}", hint="n is 2 to 16")
        self.vocab_size = vocab_size
        self.sizes = tuple(int(size) for size in sizes)
        self.per_length = per_length
        self.max_n = 1 + len(sizes) // per_length
        self.rows_per_token = len(sizes)
        self.num_rows = sum(self.sizes)

    def rows(self, windows: Windows) -> np.ndarray:
        T = windows.room_BT.shape[1]
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
        if rows_per_table < 1 or not 2 <= max_n <= 16:
            raise UsageError(f"rows_per_table {rows_per_table}, max_n {max_n}")
        self.rows_per_table = rows_per_table
        self.max_n = max_n
        self.rows_per_token = max_n - 1
        self.num_rows = rows_per_table * (max_n - 1)

    def rows(self, windows: Windows) -> np.ndarray:
        from ngramstore_torch.hashed import hashed_rows

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


class RowTableEmbedding(nn.Module):
    """Token ids (B, T) -> (B, T, W): a token's J rows summed (W = D) or joined (W = J * D), plus T(t) where T is given.

    store: an open store with addressing "row" that holds `hasher.num_rows` rows or more. Rows whose n-gram would begin
    before its document count as zeros. combine: "sum" or "concat"; T is added to a sum, and put in front of joined rows.
    No gradient reaches the store; T trains. A copy, a pickle and a fork behave as NGramEmbedding's do.
    """

    def __init__(
        self, store: Any, hasher: RowHash, token_embedding: nn.Module | None = None, *, combine: str = "sum"
    ) -> None:
        super().__init__()
        if store.spec.is_ngram:
            raise UsageError(f"{store.path} addresses rows by n-gram", hint="use NGramEmbedding")
        if combine not in ("sum", "concat"):
            raise UsageError(f"combine is {combine!r}", hint='choose "sum" or "concat"')
        if len(store) < getattr(hasher, "num_rows", 0):
            raise UsageError(f"the hash names {hasher.num_rows} rows, {store.path} holds {len(store)}")  # type: ignore[attr-defined]
        if combine == "sum" and token_embedding is not None and token_embedding.weight.shape[1] != store.dim:
            raise UsageError(f"the store's rows are {store.dim} wide, T's {token_embedding.weight.shape[1]}")
        self.handle = StoreHandle(store)
        self.hasher, self.combine, self.token_embedding = hasher, combine, token_embedding
        self.dim, self.max_n = store.dim, hasher.max_n
        self.stats = ServingStats()
        self.register_buffer("_like", torch.empty(0), persistent=False)

    @property
    def store(self) -> Any:
        """The open store, of this process."""
        return self.handle.store()

    def new_history(self, batch_size: int, *, max_rollback: int = 64) -> NGramHistory:
        """State for decoding B sequences in several calls."""
        return NGramHistory(batch_size, self.max_n, max_rollback=max_rollback)

    @torch.compiler.disable
    def forward(
        self,
        tokens_BT: Tensor,
        *,
        history: NGramHistory | None = None,
        attention_mask: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Vectors (B, T, W) of tokens (B, T) int64; arguments as for NGramEmbedding."""
        began = time.perf_counter_ns()
        like = self._like if self.token_embedding is None else self.token_embedding.weight
        ids_BT = tokens_BT.cpu().numpy()
        before = NGramHistory(len(ids_BT), self.max_n, max_rollback=0) if history is None else history
        windows = before.windows(ids_BT, attention_mask, starts)
        numbers_BTJ = self.hasher.rows(windows)
        if windows.place_BT is not None:
            place_BT1 = windows.place_BT[..., None]
            numbers_BTJ = np.take_along_axis(numbers_BTJ, np.maximum(place_BT1, 0), 1)
            numbers_BTJ = np.where(place_BT1 >= 0, numbers_BTJ, -1)
        rows_BTJD = torch.from_numpy(self.store.rows(np.maximum(numbers_BTJ, 0)))
        missing_BTJ = numbers_BTJ < 0
        if missing_BTJ.any():
            rows_BTJD[torch.from_numpy(missing_BTJ)] = 0
        if history is not None:
            history.push(ids_BT, attention_mask, starts)
        self.stats.add_call(ids_BT.size, int(ids_BT.size), time.perf_counter_ns() - began)
        rows = rows_BTJD.sum(2) if self.combine == "sum" else rows_BTJD.flatten(2)
        rows = rows.to(device=like.device, dtype=like.dtype)
        if self.token_embedding is None:
            return rows
        own_BTD = self.token_embedding(tokens_BT)
        return own_BTD + rows if self.combine == "sum" else torch.cat((own_BTD, rows), -1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "stats": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "stats": ServingStats()})
