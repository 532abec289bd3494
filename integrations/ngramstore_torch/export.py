"""The f-gram table: run any model over a vocabulary, batch by batch, straight into a store build.

Only one batch of rows is in memory at a time, beside what the build itself keeps. A build that is cut short leaves
nothing readable; run it again with restart=True.

Shapes: M f-grams of a batch, K tokens of the longest, D row width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

import ngramstore
from ngramstore.errors import UsageError
from ngramstore_torch.data import VocabularyLike
from ngramstore_torch.scone import SconeModel


class RowSource(Protocol):
    """Anything that maps an n-gram to a vector can be exported."""

    dim: int
    """Width of a row, D."""
    max_n: int
    """Longest n-gram it takes, K."""

    def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
        """Left-aligned tokens (M, K) u32, zeros behind each length, and lengths (M,) -> rows (M, D) f32."""
        ...


class SconeRows:
    """Rows of a SCONE model: A_f over its own T, in float32 (bf16=True: matrix products in bfloat16)."""

    def __init__(self, model: SconeModel, *, device: torch.device | str = "cpu", bf16: bool = False) -> None:
        if not isinstance(model, SconeModel):
            raise UsageError(
                f"a model of kind {model.kind!r} has no f-gram table to export", hint="train one without --plain"
            )
        self.model = model.to(device).eval()
        self.device, self.bf16 = torch.device(device), bf16
        self.dim = model.decoder.config.dim
        self.max_n = model.fgram_model.config.max_n

    @torch.no_grad()
    def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
        """See RowSource. Batch sizes change the last bits of a row (about 1e-6), as in any matrix product."""
        order_M = np.argsort(lengths_M, kind="stable")
        lengths = torch.from_numpy(lengths_M[order_M].astype(np.int64))
        tokens = torch.from_numpy(tokens_MK[order_M, : int(lengths_M.max(initial=1))].astype(np.int64))
        counts = tuple(np.bincount(lengths_M, minlength=2)[2:].tolist())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            sorted_MD = self.model.rows(tokens.to(self.device), lengths.to(self.device), counts).float().cpu().numpy()
        rows_MD = np.empty_like(sorted_MD)
        rows_MD[order_M] = sorted_MD
        return rows_MD


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    num_rows: int
    dim: int


def export_table(
    source: RowSource,
    vocabulary: VocabularyLike,
    path: str | os.PathLike[str],
    *,
    codec: str | Mapping[str, Any] = "int8",
    batch_size: int = 4096,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
    restart: bool = False,
    **build_options: Any,
) -> Exported:
    """Write the row of every f-gram of a vocabulary into a new store at `path`.

    metadata: kept in the store's manifest (identities of tokenizer, vocabulary and checkpoint belong there).
    build_options go to `ngramstore.build`. Raises UsageError where the vocabulary has longer n-grams than the source takes.
    """
    tokens_NK, lengths_N = vocabulary.ngrams
    if int(lengths_N.max(initial=0)) > source.max_n:
        raise UsageError(
            f"the vocabulary has n-grams of {int(lengths_N.max())} tokens, the model takes up to {source.max_n}"
        )
    with (
        ngramstore.build(
            path,
            dim=source.dim,
            max_n=vocabulary.max_n,
            codec=codec,
            metadata=metadata,
            restart=restart,
            **build_options,
        ) as build,
        tqdm(
            total=len(lengths_N), unit="row", unit_scale=True, desc="export", file=sys.stderr, disable=not progress
        ) as bar,
    ):
        for first in range(0, len(lengths_N), batch_size):
            tokens_MK = tokens_NK[first : first + batch_size]
            lengths_M = lengths_N[first : first + batch_size]
            build.add((tokens_MK, lengths_M), source.rows(tokens_MK, lengths_M))
            bar.update(len(lengths_M))
    return Exported(Path(path), len(lengths_N), source.dim)
