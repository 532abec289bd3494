"""Keys of Engram tables (DeepSeek-V4.1-Flash): compressed token ids, multiply-xor, a prime-sized bucket for each head.

Tables: one for each layer, in the config's order; heads order by order (2-grams first), `engram_n_heads` of each.
Sources: arXiv 2601.07372; the port in vLLM, vllm/models/deepseek_v41/common/engram.py. docs/tables/engram.md says what
was compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import UsageError
from ngramstore.keys.base import MOST_HEADS, NOTHING, Keys, Table, layers, number, numbers, require_no_overflow
from ngramstore.keys.mixing import Mixer
from ngramstore.keys.primes import next_prime
from ngramstore.keys.token_map import token_map_of
from ngramstore.windows import as_array

DEAD = NOTHING
"""As a token: a position that takes part in no n-gram (an image span); it blocks all that look across it."""
_LAYER_STEP = 10007


@dataclass(frozen=True, kw_only=True)
class EngramKeys(Keys):
    """See the module. `token_map` (vocab_size,) i64, or None: constants and sizes are known, `rows` is refused."""

    model: ClassVar[str] = "engram"
    _lowest: ClassVar[int] = DEAD
    layer_ids: tuple[int, ...]
    max_n: int
    heads_per_order: int
    compressed_vocab_size: int
    pad_token_id: int
    multipliers: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    token_map: np.ndarray | None = field(compare=False, repr=False)
    token_map_digest: str | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, tokenizer: Any = None, token_map: ArrayLike | None = None
    ) -> EngramKeys:
        """From the model's config and its tokenizer (a fast Hugging Face one, or tokenizers.Tokenizer), or the token map.

        Raises UsageError: keys missing or wrong, published row counts that do not come out, a tokenizer that gives
        another compressed size.
        """
        layer_ids = layers(config, "engram_layer_ids")
        max_n = number(config, "engram_max_ngram_size", least=2, most=MOST_HEADS)
        heads = number(config, "engram_n_heads", least=1, most=MOST_HEADS)
        base = number(config, "engram_vocab_size", least=1)
        compressed = number(config, "engram_compressed_vocab_size", least=1)
        sizes = head_sizes(len(layer_ids), max_n, heads, base)
        if config.get("engram_num_embeddings") is not None:
            stated = numbers(config, "engram_num_embeddings")
            derived = tuple(map(sum, sizes))
            if stated != derived:
                raise UsageError(
                    f"the config says engram_num_embeddings = {list(stated)}, its other keys give {list(derived)}"
                )
        if tokenizer is not None:
            token_map = token_map_of(tokenizer)
        if token_map is not None:
            token_map = as_array(token_map, "token maps")
        return cls(
            vocab_size=number(config, "vocab_size", least=1, default=0) if token_map is None else token_map.size,
            layer_ids=layer_ids,
            max_n=max_n,
            heads_per_order=heads,
            compressed_vocab_size=compressed,
            pad_token_id=number(config, "engram_pad_token_id"),
            multipliers=tuple(layer_multipliers(layer, max_n, compressed) for layer in layer_ids),
            sizes=sizes,
            token_map=token_map,
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, token_map: ArrayLike | None = None) -> EngramKeys:
        """From what `spec` returned; the token map is checked against the digest kept there."""
        return cls(
            vocab_size=number(spec, "vocab_size"),
            layer_ids=numbers(spec, "layer_ids"),
            max_n=number(spec, "max_n", least=2, most=MOST_HEADS),
            heads_per_order=number(spec, "heads_per_order", least=1, most=MOST_HEADS),
            compressed_vocab_size=number(spec, "compressed_vocab_size", least=1),
            pad_token_id=number(spec, "pad_token_id"),
            multipliers=tuple(numbers({"multipliers": line}, "multipliers", 1) for line in spec["multipliers"]),
            sizes=tuple(numbers({"sizes": line}, "sizes", 1) for line in spec["sizes"]),
            token_map=None if token_map is None else as_array(token_map, "token maps"),
            token_map_digest=spec.get("token_map_digest"),
        )

    def __post_init__(self) -> None:
        require_no_overflow(
            (self.compressed_vocab_size - 1) * max(map(max, self.multipliers)), "token id times multiplier"
        )
        columns = (self.max_n - 1) * self.heads_per_order
        if not len(self.multipliers) == len(self.sizes) == len(self.layer_ids) or any(
            len(m) != self.max_n or len(s) != columns for m, s in zip(self.multipliers, self.sizes, strict=True)
        ):
            raise UsageError(f"{len(self.layer_ids)} layers of {self.max_n} multipliers and {columns} sizes expected")
        if self.token_map is not None:
            object.__setattr__(self, "token_map", self._checked_map(self.token_map))

    def _checked_map(self, token_map: np.ndarray) -> np.ndarray:
        if token_map.ndim != 1 or token_map.dtype.kind not in "iu" or len(token_map) == 0:
            raise UsageError(f"the token map is {token_map.dtype} of shape {token_map.shape}, wanted integers (vocab,)")
        found = np.unique(token_map)
        size = self.compressed_vocab_size
        if (int(found[0]), int(found[-1]), len(found)) != (0, size - 1, size):
            raise UsageError(
                f"the tokenizer gives {len(found)} compressed ids ({found[0]} to {found[-1]}), "
                f"the config expects {size}, numbered from 0",
                hint="every multiplier is made from that number: take the tokenizer that ships with this checkpoint",
            )
        if self.pad_token_id >= len(token_map):
            raise UsageError(f"engram_pad_token_id is {self.pad_token_id}, the token map has {len(token_map)} ids")
        is_known = self.token_map_digest is not None  # else the size is that of a checkpoint, which may be padded
        if (is_known and self.vocab_size != len(token_map)) or 0 < self.vocab_size < len(token_map):
            raise UsageError(f"the token map has {len(token_map)} ids, expected {self.vocab_size}")
        frozen = np.array(token_map, np.int64, order="C")  # ours: what the caller has may change
        frozen.flags.writeable = False
        digest = blake2b(frozen.astype("<i8").tobytes(), digest_size=16).hexdigest()
        if self.token_map_digest not in (None, digest):
            raise UsageError(f"the token map has digest {digest}, the store was made with {self.token_map_digest}")
        object.__setattr__(self, "token_map_digest", digest)
        object.__setattr__(self, "vocab_size", len(frozen))
        return frozen

    @property
    def reach(self) -> int:
        return self.max_n - 1

    @property
    def tables(self) -> tuple[Table, ...]:
        heads = (self.max_n - 1) * self.heads_per_order
        first, tables = 0, []
        for i, (layer, sizes) in enumerate(zip(self.layer_ids, self.sizes, strict=True)):
            tables.append(Table(f"layer {layer}", first, sum(sizes), i * heads, heads))
            first += sum(sizes)
        return tuple(tables)

    def _arguments(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        if self.token_map is None:  # before ids are compared with a vocabulary that is not known
            raise UsageError(
                "Engram keys need the token map, which the checkpoint does not hold",
                hint="give tokenizer=... (the model's own, `--tokenizer`) or token_map=... (a saved integer array, `--token-map`)",
            )
        return super()._arguments(*arguments)

    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        assert self.token_map is not None
        pad = int(self.token_map[self.pad_token_id])
        blocked = np.zeros(back[0].shape, bool)
        values = []
        for tokens in back:  # nearest first: what blocks one place blocks all behind it
            blocked = blocked | (tokens < 0)
            values.append(np.where(blocked, pad, self.token_map[np.maximum(tokens, 0)]))
        return self._mixer.rows(values)

    @cached_property
    def _mixer(self) -> Mixer:
        return Mixer(self.multipliers, self.sizes, [sum(sizes) for sizes in self.sizes])

    def _spec(self) -> dict[str, Any]:
        return {
            "layer_ids": list(self.layer_ids),
            "max_n": self.max_n,
            "heads_per_order": self.heads_per_order,
            "compressed_vocab_size": self.compressed_vocab_size,
            "pad_token_id": self.pad_token_id,
            "multipliers": [list(map(str, line)) for line in self.multipliers],
            "sizes": [list(line) for line in self.sizes],
            "token_map_digest": self.token_map_digest,
        }


def layer_multipliers(layer: int, max_n: int, compressed_vocab_size: int, seed: int = 0) -> tuple[int, ...]:
    """One odd multiplier for each look-back, from numpy's PCG64: bounded so that no product leaves int64."""
    bound = max(1, ((1 << 63) - 1) // compressed_vocab_size // 2)
    drawn = np.random.default_rng(seed + _LAYER_STEP * layer).integers(0, bound, max_n, np.int64)
    return tuple(2 * int(value) + 1 for value in drawn)


def head_sizes(num_layers: int, max_n: int, heads: int, base: int) -> tuple[tuple[int, ...], ...]:
    """A prime for each head: the search starts anew at `base` for each layer and order, and no prime is used twice."""
    taken: set[int] = set()
    layers = []
    for _ in range(num_layers):
        sizes: list[int] = []
        for _ in range(2, max_n + 1):
            current = base - 1
            for _ in range(heads):
                current = next_prime(current, taken)
                taken.add(current)
                sizes.append(current)
        layers.append(tuple(sizes))
    return tuple(layers)
