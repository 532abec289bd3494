"""Keys of byte-group tables (Byte Latent Transformer): a polynomial of the last g byte tokens, wrapping in int64.

Ids are what the model's encoder sees (its byte tokens; 260 of them in the released tokenizer). Tables: for each hash
function, one for each group size, all of `encoder_hash_byte_group_vocab` rows. Places before the start count as 0.
Sources: facebookresearch/blt, bytelatent/model/blt.py; transformers, models/blt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.keys.base import Keys, Table, number, numbers

PRIMES = (
    1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899,
    9576890767, 3628273133, 2860486313, 5463458053, 3367900313,
)  # fmt: skip
"""Base of the polynomial, one for each hash function; published with the model."""
_DEFAULT_VOCAB = 260


@dataclass(frozen=True, kw_only=True)
class ByteKeys(Keys):
    """See the module."""

    model: ClassVar[str] = "bytes"
    group_sizes: tuple[int, ...]
    bases: tuple[int, ...]
    table_rows: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ByteKeys:
        """From the model's config. Raises UsageError: keys missing or wrong."""
        functions = number(config, "encoder_hash_byte_group_nb_functions", least=1, default=1)
        if functions > len(PRIMES):
            raise UsageError(
                f"the config says encoder_hash_byte_group_nb_functions = {functions}, expected 1 to {len(PRIMES)}"
            )
        return cls(
            vocab_size=number(config, "vocab_size", least=1, default=_DEFAULT_VOCAB),
            group_sizes=numbers(config, "encoder_hash_byte_group_size", 1),
            bases=PRIMES[:functions],
            table_rows=number(config, "encoder_hash_byte_group_vocab", least=1),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> ByteKeys:
        """From what `spec` returned."""
        return cls(
            vocab_size=number(spec, "vocab_size", least=1),
            group_sizes=numbers(spec, "group_sizes", 1),
            bases=numbers(spec, "bases", 1),
            table_rows=number(spec, "table_rows", least=1),
        )

    def __post_init__(self) -> None:
        if max(self.group_sizes) > 64:
            raise UsageError(f"group sizes {list(self.group_sizes)}, expected 1 to 64 bytes")

    @property
    def reach(self) -> int:
        return max(self.group_sizes) - 1

    @property
    def tables(self) -> tuple[Table, ...]:
        pairs = [(f, g) for f in range(len(self.bases)) for g in self.group_sizes]
        return tuple(
            Table(f"function {f}, {g} bytes", i * self.table_rows, self.table_rows, i, 1)
            for i, (f, g) in enumerate(pairs)
        )

    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        rows = np.maximum(np.stack(back, axis=-1), 0) @ self._powers_NH  # int64 wraps, as the model's does
        np.remainder(rows, self.table_rows, out=rows)
        rows += self.first_rows
        return rows

    @cached_property
    def _powers_NH(self) -> np.ndarray:
        """What a byte k places back counts for, mod 2**64; the oldest of a group has power 0."""
        powers = [
            [pow(base, size - 1 - k, 1 << 64) if k < size else 0 for k in range(self.reach + 1)]
            for base in self.bases
            for size in self.group_sizes
        ]
        return np.array(powers, np.uint64).view(np.int64).T.copy()

    def _spec(self) -> dict[str, Any]:
        return {
            "group_sizes": list(self.group_sizes),
            "bases": list(map(str, self.bases)),
            "table_rows": self.table_rows,
        }
