"""Keys of Qwen's per-layer n-gram tables (Qwen3.8-Flash-Next, `qwen4_exp`): raw ids, multiply-xor, primes, EOS walls.

Tables: one for each layer of sorted `ple_layer_ids`, padded up to a multiple. Heads order by order, 2-grams first.
Sources: Hugging Face transformers, models/qwen4_exp; vLLM, models/qwen4_exp. docs/tables/qwen_ple.md says what was
compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.keys.base import MOST_HEADS, Keys, Table, layers, number, numbers, require_no_overflow, token
from ngramstore.keys.mixing import Mixer
from ngramstore.keys.primes import next_prime

DEFAULT_SEED = 1234
_DEFAULTS = {
    "vocab_size": 248_320,
    "hidden_size": 2048,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20_000_000,
    "make_ngram_vocab_size_divisible_by": 128,
    "seed": DEFAULT_SEED,
}
"""What a config that does not say means: transformers' Qwen4ExpTextConfig, whose files leave out what is as by default."""
_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_TABLE_STEP = 10007


@dataclass(frozen=True, kw_only=True)
class QwenPleKeys(Keys):
    """See the module. `layer_ids` count from one, as in the config."""

    model: ClassVar[str] = "qwen_ple"
    layer_ids: tuple[int, ...]
    max_n: int
    heads_per_order: int
    eos_token_id: int
    multipliers: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    table_rows: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QwenPleKeys:
        """From the model's config (the text part); missing sizes are the model's defaults, of several EOS tokens the
        first counts.

        Raises UsageError: keys missing or wrong.
        """
        config = with_defaults(config)
        vocab_size = number(config, "vocab_size", least=1)
        layer_ids = tuple(sorted(layers(config, "ple_layer_ids")))
        max_n = number(config, "ngram_size", least=2, most=MOST_HEADS)
        heads = number(config, "heads_per_ngram", least=1, most=MOST_HEADS)
        base = number(config, "ngram_vocab_size_base", least=1)
        multiple = number(config, "make_ngram_vocab_size_divisible_by", least=1)
        seed = number(config, "seed")
        columns = (max_n - 1) * heads
        sizes, current = [], base - 1
        for _ in layer_ids:
            table = []
            for _ in range(columns):
                current = next_prime(current)
                table.append(current)
            sizes.append(tuple(table))
        return cls(
            vocab_size=vocab_size,
            layer_ids=layer_ids,
            max_n=max_n,
            heads_per_order=heads,
            eos_token_id=token(config, "eos_token_id", vocab_size, is_first=True),
            multipliers=tuple(table_multipliers(t, max_n, vocab_size, seed) for t in range(len(layer_ids))),
            sizes=tuple(sizes),
            table_rows=tuple(-(-sum(table) // multiple) * multiple for table in sizes),
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> QwenPleKeys:
        """From what `spec` returned."""
        return cls(
            vocab_size=number(spec, "vocab_size", least=1),
            layer_ids=numbers(spec, "layer_ids"),
            max_n=number(spec, "max_n", least=2, most=MOST_HEADS),
            heads_per_order=number(spec, "heads_per_order", least=1, most=MOST_HEADS),
            eos_token_id=number(spec, "eos_token_id"),
            multipliers=tuple(numbers({"multipliers": line}, "multipliers", 1) for line in spec["multipliers"]),
            sizes=tuple(numbers({"sizes": line}, "sizes", 1) for line in spec["sizes"]),
            table_rows=numbers(spec, "table_rows", 1),
        )

    def __post_init__(self) -> None:
        require_no_overflow((self.vocab_size - 1) * max(map(max, self.multipliers)), "token id times multiplier")
        columns = (self.max_n - 1) * self.heads_per_order
        num_tables = len(self.layer_ids)
        if not len(self.multipliers) == len(self.sizes) == len(self.table_rows) == num_tables or any(
            len(m) != self.max_n or len(s) != columns or sum(s) > rows
            for m, s, rows in zip(self.multipliers, self.sizes, self.table_rows, strict=True)
        ):
            raise UsageError(f"{num_tables} tables of {self.max_n} multipliers and {columns} sizes expected")

    @property
    def reach(self) -> int:
        return self.max_n - 1

    @property
    def tables(self) -> tuple[Table, ...]:
        heads = (self.max_n - 1) * self.heads_per_order
        return tuple(
            Table(f"layer {layer - 1}", sum(self.table_rows[:i]), rows, i * heads, heads)
            for i, (layer, rows) in enumerate(zip(self.layer_ids, self.table_rows, strict=True))
        )

    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        eos = self.eos_token_id
        values = [back[0]]
        walled = np.zeros(back[0].shape, bool)
        for tokens in back[1:]:  # an EOS hides what lies before it; the EOS itself still sees its own segment
            walled = walled | (tokens < 0) | (tokens == eos)
            values.append(np.where(walled, eos, tokens))
        return self._mixer.rows(values)

    @cached_property
    def _mixer(self) -> Mixer:
        return Mixer(self.multipliers, self.sizes, self.table_rows)

    def _spec(self) -> dict[str, Any]:
        return {
            "layer_ids": list(self.layer_ids),
            "max_n": self.max_n,
            "heads_per_order": self.heads_per_order,
            "eos_token_id": self.eos_token_id,
            "multipliers": [list(map(str, line)) for line in self.multipliers],
            "sizes": [list(line) for line in self.sizes],
            "table_rows": list(self.table_rows),
        }


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as the model reads it."""
    return _DEFAULTS | {name: value for name, value in config.items() if value is not None}


def table_multipliers(table: int, max_n: int, vocab_size: int, seed: int = DEFAULT_SEED) -> tuple[int, ...]:
    """One odd multiplier for each look-back, from SplitMix64: bounded so that no product leaves int64."""
    bound = max(1, ((1 << 63) - 1) // vocab_size // 2)
    base = seed + _TABLE_STEP * table
    return tuple(2 * (_splitmix64(base + _GAMMA * (i + 1)) % bound) + 1 for i in range(max_n))


def _splitmix64(state: int) -> int:
    z = (state + _GAMMA) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
