"""Keys of LongCat-Flash-Lite's input tables: a polynomial of raw token ids inside one EOS-terminated segment.

Tables: one for each order and split, `ratio * vocab + 2 i + 1` rows, in the order of `embedders.{i}`; a head is a table.
Sources: arXiv 2601.21204; SGLang, python/sglang/srt/layers/n_gram_embedding.py. docs/tables/longcat.md says what was
compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.keys.base import MOST_HEADS, Keys, Table, number, numbers, token
from ngramstore.keys.polynomial import Polynomial, check_polynomial

_CHANGES_THE_HASH = (
    "ngram_exclude_sp_token",
    "special_token_scope",
    "ngram_fix_normalize_factor",
    "ngram_mod_force_prime",
    "ngram_compressed_tokenizer",
    "oe_ignored_token_ids",
    "text_vocab_size",
)


@dataclass(frozen=True, kw_only=True)
class LongcatKeys(Keys):
    """See the module."""

    model: ClassVar[str] = "longcat"
    max_n: int
    splits: int
    eos_token_id: int
    sizes: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LongcatKeys:
        """From the model's config. Raises UsageError: keys missing or wrong, or options of siblings that are not known."""
        unknown = {name: config[name] for name in _CHANGES_THE_HASH if config.get(name)}
        if unknown:
            raise UsageError(
                f"the config sets {unknown}, expected none of these",
                hint="such a sibling of LongCat-Flash-Lite may number its rows in a way this release does not know",
            )
        vocab_size = number(config, "vocab_size", least=1)
        ratio = number(config, "ngram_vocab_size_ratio", "oe_vocab_size_ratio", least=1)
        max_n = number(config, "emb_neighbor_num", "oe_neighbor_num", least=2, most=MOST_HEADS)
        splits = number(config, "emb_split_num", "oe_split_num", least=1, most=MOST_HEADS)
        return cls(
            vocab_size=vocab_size,
            max_n=max_n,
            splits=splits,
            eos_token_id=token(config, "eos_token_id", vocab_size),
            sizes=tuple(ratio * vocab_size + 2 * i + 1 for i in range((max_n - 1) * splits)),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> LongcatKeys:
        """From what `spec` returned."""
        return cls(
            vocab_size=number(spec, "vocab_size", least=1),
            max_n=number(spec, "max_n", least=2, most=MOST_HEADS),
            splits=number(spec, "splits", least=1, most=MOST_HEADS),
            eos_token_id=number(spec, "eos_token_id"),
            sizes=numbers(spec, "sizes", 1),
        )

    def __post_init__(self) -> None:
        if len(self.sizes) != (self.max_n - 1) * self.splits:
            raise UsageError(f"{len(self.sizes)} sizes, expected {(self.max_n - 1) * self.splits}")
        check_polynomial(self.vocab_size, self._orders, self.sizes)

    @property
    def _orders(self) -> list[int]:
        return [2 + i // self.splits for i in range(len(self.sizes))]

    @property
    def reach(self) -> int:
        return self.max_n - 1

    @property
    def tables(self) -> tuple[Table, ...]:
        return tuple(Table(f"embedders.{i}", sum(self.sizes[:i]), size, i, 1) for i, size in enumerate(self.sizes))

    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        values = [back[0]]
        ended = np.zeros(back[0].shape, bool)
        for tokens in back[1:]:  # an EOS ends its segment: nothing at or before it counts for the tokens after it
            ended = ended | (tokens < 0) | (tokens == self.eos_token_id)
            values.append(np.where(ended, 0, tokens))
        return self._polynomial.rows(values)

    @cached_property
    def _polynomial(self) -> Polynomial:
        return Polynomial(self.vocab_size, self._orders, self.sizes)

    def _spec(self) -> dict[str, Any]:
        return {
            "max_n": self.max_n,
            "splits": self.splits,
            "eos_token_id": self.eos_token_id,
            "sizes": list(self.sizes),
        }
