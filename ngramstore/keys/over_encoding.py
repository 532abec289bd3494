"""Keys of Over-Encoding tables (arXiv 2501.16975): a polynomial of raw token ids modulo a table size.

No checkpoint of this family is public, so nothing of it is derived: the config is ours and says every size outright.
    {"model_type": "over_encoding", "vocab_size": V, "orders": [2, 3], "sizes": [12800000, 12800002],
     "absent_token_id": 0, "eos_token_id": 2}
A head is a table; order 1 is the token alone. `absent_token_id` stands before the start; with the optional `eos_token_id`,
also at and before an EOS that lies behind. Not compared with the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.keys.base import Keys, Table, number, numbers, token
from ngramstore.keys.polynomial import Polynomial, check_polynomial


@dataclass(frozen=True, kw_only=True)
class OverEncodingKeys(Keys):
    """See the module."""

    model: ClassVar[str] = "over_encoding"
    orders: tuple[int, ...]
    sizes: tuple[int, ...]
    absent_token_id: int
    eos_token_id: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OverEncodingKeys:
        """From the config of the module's docstring. Raises UsageError: keys missing or wrong."""
        vocab_size = number(config, "vocab_size", least=1)
        return cls(
            vocab_size=vocab_size,
            orders=numbers(config, "orders", 1),
            sizes=numbers(config, "sizes", 1),
            absent_token_id=token(config, "absent_token_id", vocab_size),
            eos_token_id=None if config.get("eos_token_id") is None else token(config, "eos_token_id", vocab_size),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> OverEncodingKeys:
        """From what `spec` returned."""
        return cls.from_config(spec)

    def __post_init__(self) -> None:
        if len(self.orders) != len(self.sizes) or max(self.orders) > 16:
            raise UsageError(
                f"{len(self.orders)} orders {list(self.orders)} and {len(self.sizes)} sizes, expected one size an order",
                hint="orders are 1 to 16",
            )
        check_polynomial(self.vocab_size, self.orders, self.sizes)

    @property
    def reach(self) -> int:
        return max(self.orders) - 1

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(
            Table(f"{n}-grams, table {i}", sum(self.sizes[:i]), size, i, 1)
            for i, (n, size) in enumerate(zip(self.orders, self.sizes, strict=True))
        )

    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        values = [back[0]]
        ended = np.zeros(back[0].shape, bool)
        for tokens in back[1:]:
            ended = ended | (tokens < 0)
            if self.eos_token_id is not None:
                ended = ended | (tokens == self.eos_token_id)
            values.append(np.where(ended, self.absent_token_id, tokens))
        return self._polynomial.rows(values)

    @cached_property
    def _polynomial(self) -> Polynomial:
        return Polynomial(self.vocab_size, self.orders, self.sizes)

    def _spec(self) -> dict[str, Any]:
        return {
            "orders": list(self.orders),
            "sizes": list(self.sizes),
            "absent_token_id": self.absent_token_id,
            "eos_token_id": self.eos_token_id,
        }
