"""How large a store will be, before building it: disk, index and memory from counts alone.

The index is computed by the same plan that writes it; rows are exact without compression. Tokens are an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ngramstore.codec.registry import CODECS, codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.kernels.native.cache import SLOT_OVERHEAD_BYTES
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, PAGE_BYTES
from ngramstore.options import choose, is_whole
from ngramstore.store.layers.index_plan import IndexPlan
from ngramstore.store.layers.manifest import ADDRESSINGS

_TOKENS_PER_NGRAM_BYTES = 2.0  # a varint of a token id below 16,384 takes 2 bytes, below 2 million 3


@dataclass(frozen=True)
class Sizes:
    """Bytes of one choice of codec. `index_bytes` without compression; with it add 2.1 B a row."""

    codec: str
    num_rows: int
    row_bytes: int
    rows_bytes: int
    index_bytes: int
    tokens_bytes: int
    disk_bytes: int
    resident_bytes: int
    cache_bytes_for_all: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def sizes(
    num_rows: int,
    dim: int,
    *,
    codec: str | Mapping[str, Any] | None = None,
    addressing: str = "ngram",
    mean_length: float = 3.0,
    tokens: bool = True,
) -> list[Sizes]:
    """Sizes of a store of `num_rows` rows of width `dim`, for one codec or for each of them.

    mean_length: tokens per n-gram on average. The sidecar of tokens is estimated at 2 B a token and 1 B a row. Raises UsageError.
    """
    choose("addressing", addressing, ADDRESSINGS)
    if not is_whole(num_rows) or not 1 <= num_rows < 1 << RANK_BITS:
        raise UsageError(
            f"num_rows is {num_rows!r}", hint=f"give a whole number of rows from 1 to {(1 << RANK_BITS) - 1}"
        )
    if not isinstance(mean_length, (int, float, np.number)) or not 1 <= mean_length <= MAX_N:
        raise UsageError(f"mean_length is {mean_length!r}", hint=f"n-grams have 1 to {MAX_N} tokens")
    num_rows = int(num_rows)  # of numpy's smaller ones the products do not fit
    is_ngram = addressing == "ngram"
    index_bytes = IndexPlan(num_rows, is_keyed=is_ngram, is_sized=False).file_bytes
    blocks = -(-num_rows // BLOCK_ROWS)
    tokens_bytes = 0
    if is_ngram and tokens:
        tokens_bytes = PAGE_BYTES * 2 + int(num_rows * (1 + _TOKENS_PER_NGRAM_BYTES * mean_length)) + blocks * 12
    result = []
    for name in CODECS if codec is None else [codec]:
        chosen = codec_from_spec(name, dim)
        rows_bytes = PAGE_BYTES + num_rows * (chosen.row_bytes + CHECKSUM_BYTES)
        result.append(
            Sizes(
                codec=chosen.name,
                num_rows=num_rows,
                row_bytes=chosen.row_bytes,
                rows_bytes=rows_bytes,
                index_bytes=index_bytes,
                tokens_bytes=tokens_bytes,
                disk_bytes=rows_bytes + index_bytes + tokens_bytes,
                resident_bytes=num_rows * chosen.row_bytes + index_bytes,
                cache_bytes_for_all=num_rows * (chosen.row_bytes + SLOT_OVERHEAD_BYTES),
            )
        )
    return result
