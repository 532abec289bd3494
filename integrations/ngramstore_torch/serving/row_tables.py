"""Hashed n-gram tables from a store: a pluggable hash names rows by number, several a token, kept apart, joined or summed.

The hash belongs to the model (row_hashes.py); the store holds rows 0..N-1 and knows nothing of tokens (addressing "row").
Tickets, histories, masks, documents, time limits, state and copies are those of every embedding on a store.

Shapes: B batch, T position, J rows a token, D row width, G scales of a row, R bytes of a stored row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ngramstore.errors import UsageError
from ngramstore.keys import Keys, keys_from_spec
from ngramstore_torch.serving.dequantize import CODED, codes_and_scales
from ngramstore_torch.serving.module import StoreModule
from ngramstore_torch.serving.prefetch import LookUp
from ngramstore_torch.serving.row_hashes import KeysHash, OverEncodingHash, RowHash, TrainedTableHash
from ngramstore_torch.serving.tensors import width_of
from ngramstore_torch.serving.windows import Windows

__all__ = ["KeysHash", "OverEncodingHash", "RowHash", "RowTableEmbedding", "TrainedTableHash"]

_COMBINE = ("sum", "concat", "none", "codes")


class RowTableEmbedding(StoreModule):
    """Token ids (B, T) -> the J rows of each token, and T(t) where T is given, in T's type and on T's device.

    store: an open store with addressing "row" that holds `hasher.num_rows` rows or more. hasher: a RowHash, or a key spec
    of `ngramstore.keys`; None: the one that an import left in `store.metadata["keys"]`.

    combine:
    "sum"     (B, T, D): rows added up in float32, then T(t)
    "concat"  (B, T, J * D), behind T(t) where T is given
    "none"    (B, T, J, D): each row for itself, for tables that a model reads in several layers; without T
    "codes"   a pair (codes (B, T, J, D), scales (B, T, J, G)) as stored, for models that multiply in 8 bits; without T

    Rows whose n-gram would begin before its document, and all of a masked position's, are zeros. Without T the type is
    float32, or what `.to(..)` made of the module. No gradient reaches the store; T trains. timeout_s as for NGramEmbedding.
    """

    def __init__(
        self,
        store: Any,
        hasher: RowHash | Keys | None = None,
        token_embedding: nn.Module | None = None,
        *,
        combine: str = "sum",
        timeout_s: float | None = None,
    ) -> None:
        if store.spec.is_ngram:
            raise UsageError(f"{store.path} addresses rows by n-gram", hint="use NGramEmbedding")
        if combine not in _COMBINE:
            raise UsageError(f"combine is {combine!r}", hint=f"choose one of {', '.join(_COMBINE)}")
        if hasher is None:
            if "keys" not in store.metadata:
                raise UsageError(f"{store.path} does not say how tokens are hashed", hint="give a hasher")
            hasher = keys_from_spec(store.metadata["keys"])
        if isinstance(hasher, Keys):
            hasher = KeysHash(hasher)
        if combine == "codes" and store.spec.codec.name not in CODED:
            raise UsageError(
                f"rows of codec {store.spec.codec.name} have no codes of 8 bits", hint='use combine="none"'
            )
        num_rows = getattr(hasher, "num_rows", 0)
        if len(store) < num_rows:
            raise UsageError(f"the hash names {num_rows} rows, {store.path} holds {len(store)}")
        if token_embedding is not None:
            if combine in ("none", "codes"):
                raise UsageError(f'combine="{combine}" keeps rows apart and takes no token embedding')
            if combine == "sum" and width_of(token_embedding) != store.dim:
                raise UsageError(f"the store's rows are {store.dim} wide, T's {width_of(token_embedding)}")
        super().__init__(store, token_embedding, hasher.max_n, timeout_s)
        self.hasher, self.combine = hasher, combine

    def extra_repr(self) -> str:
        apart = f"{self.hasher.rows_per_token} rows a token, combine={self.combine!r}"
        return f"dim={self.dim}, max_n={self.max_n}, {apart}, store={self.handle!r}"

    def _look_up(self) -> LookUp:
        hasher = self.hasher

        def rows_into(store: Any, windows: Windows, rows: Tensor) -> np.ndarray:
            return _rows_into(store, hasher.rows(windows), rows)

        return rows_into

    def _question(self) -> tuple[Any, ...]:
        spec = getattr(self.hasher, "spec", None)
        return *super()._question(), id(self.hasher) if spec is None else spec()

    def _row_shape(self) -> tuple[int, ...]:
        return (self.hasher.rows_per_token,)

    def _row_dtype(self) -> torch.dtype:
        if self.combine == "codes":
            return torch.uint8
        return torch.float32 if self.combine == "sum" else self._like_weight().dtype

    def _state(self) -> dict[str, Any]:
        spec = getattr(self.hasher, "spec", None)
        return {"rows_per_token": self.hasher.rows_per_token, "hash": None if spec is None else spec()}

    def _set_state(self, saved: dict[str, Any]) -> None:
        mine = self._state()
        is_other = saved["hash"] is not None and mine["hash"] is not None and saved["hash"] != mine["hash"]
        if is_other or saved["rows_per_token"] != mine["rows_per_token"]:
            raise UsageError(f"the weights belong to another hash: {saved['hash']!r:.200}")

    def _mixed(self, tokens_BT: Tensor, rows: Tensor, found_BT: np.ndarray, num_found: int) -> Any:
        if num_found != found_BT.size:  # places that moved may show another's rows
            rows[torch.from_numpy(~found_BT).to(rows.device)] = 0
        if self.combine == "codes":
            return codes_and_scales(self.store.spec.codec, rows)
        like, embed = self._like_weight(), self.token_embedding
        if self.combine == "none":
            return rows
        rows = (rows.sum(2) if self.combine == "sum" else rows.flatten(2)).to(like.dtype)
        if embed is None:
            return rows
        own_BTD = embed(tokens_BT)
        return own_BTD + rows if self.combine == "sum" else torch.cat((own_BTD, rows), -1)


def _rows_into(store: Any, numbers_BTJ: np.ndarray, rows: Tensor) -> np.ndarray:
    """Rows by number into a CPU tensor (B, T, J, D), or (B, T, J, R) u8 as stored; -1: zeros. Returns rows read (B, T) u8."""
    out = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    there_BTJ = numbers_BTJ >= 0
    is_whole = bool(there_BTJ.all())
    if rows.dtype == torch.uint8:
        if is_whole:
            out[...] = store.rows_encoded(numbers_BTJ)
        else:
            out[...] = 0
            out[there_BTJ] = store.rows_encoded(numbers_BTJ[there_BTJ])
    elif is_whole:
        store.rows(numbers_BTJ, out=out)
    else:
        out[...] = 0
        found_MD = np.empty((int(there_BTJ.sum()), out.shape[-1]), out.dtype)
        out[there_BTJ] = store.rows(numbers_BTJ[there_BTJ], out=found_MD)
    return np.minimum(there_BTJ.sum(2), 255).astype(np.uint8)
