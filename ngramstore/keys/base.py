"""A key spec: how a model turns token ids into row numbers of its table, with every constant frozen as an integer.

`rows` is a pure function of the tokens and of the few that came before them: `history`, the state that a caller carries
from chunk to chunk and rewrites where a draft is rejected. Answers do not depend on how a sequence is cut.

Several tables of one model (layers, splits) lie one behind the other in one numbering: head h adds `first_rows[h]`.

Shapes: B batch, T position, H heads (rows a token), R reach (tokens looked back at).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import UsageError
from ngramstore.windows import PADDED, as_array, as_integers

NOTHING = -1
"""In `history`: no token there, the sequence had not begun."""
SPEC_VERSION = 1


@dataclass(frozen=True)
class Table:
    """One of the model's tables inside the common numbering: rows first_row .. first_row + num_rows - 1, some heads."""

    name: str
    first_row: int
    num_rows: int
    first_head: int
    num_heads: int


@dataclass(frozen=True, kw_only=True)
class Keys(ABC):
    """Base of the key specs; a subclass is one model family. Threads: any number, nothing changes after construction."""

    model: ClassVar[str]
    vocab_size: int
    """Token ids are 0 .. vocab_size - 1."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """Tokens looked back at, R."""

    @property
    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """The model's tables in the order of the numbering."""

    @cached_property
    def num_heads(self) -> int:
        """Rows a token, H."""
        return sum(table.num_heads for table in self.tables)

    @cached_property
    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(table.num_rows for table in self.tables)

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(H,) i64: the first row of the table that a head reads; `rows - first_rows` counts inside that table."""
        starts = np.array([table.first_row for table in self.tables], np.int64)
        return np.repeat(starts, [table.num_heads for table in self.tables])

    def rows(self, tokens: ArrayLike, history: np.ndarray | None = None) -> np.ndarray:
        """Row numbers: tokens (B, T) integers, history (B, R) -> (B, T, H) i64. tokens (T,) give (T, H).

        history: what `advance` returned for the chunk before; None: the sequences begin here.
        Raises UsageError for a token id out of range, naming where it stands.
        """
        tokens_BT, history_BR, shape = self._arguments(tokens, history)
        joined = np.concatenate([history_BR, tokens_BT], axis=1)
        width = tokens_BT.shape[1]
        back = [joined[:, self.reach - k : self.reach - k + width] for k in range(self.reach + 1)]
        return self._rows(back).reshape(*shape, self.num_heads)

    def advance(self, tokens: ArrayLike, history: np.ndarray | None = None) -> np.ndarray:
        """The history for the next chunk: (B, R) i64, the last R tokens, -1 where there were fewer."""
        tokens_BT, history_BR, _ = self._arguments(tokens, history)
        joined = np.concatenate([history_BR, tokens_BT], axis=1)
        return joined[:, joined.shape[1] - self.reach :]

    def spec(self) -> dict[str, Any]:
        """Everything `rows` needs, for JSON: integers, those that may exceed 2**53 as strings."""
        return {"version": SPEC_VERSION, "model": self.model, "vocab_size": self.vocab_size, **self._spec()}

    @abstractmethod
    def _rows(self, back: list[np.ndarray]) -> np.ndarray:
        """back[k] (B, T) i64: the token k places back, NOTHING where there is none -> (B, T, H) i64."""

    @abstractmethod
    def _spec(self) -> dict[str, Any]: ...

    def _arguments(
        self, tokens: ArrayLike, history: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        array = as_integers(tokens, "tokens", PADDED)
        if array.ndim not in (1, 2):
            raise UsageError(f"tokens have shape {array.shape}, wanted integers (B, T)")
        tokens_BT = array.reshape((1, *array.shape)[-2:])
        self._check_range(tokens_BT, "token", self._lowest)
        batch = len(tokens_BT)
        if history is None:
            history_BR = np.full((batch, self.reach), NOTHING, np.int64)
        else:
            history_BR = as_array(history, "history")
            if history_BR.shape != (batch, self.reach) or (history_BR.dtype.kind not in "iu" and history_BR.size):
                raise UsageError(
                    f"history is {history_BR.dtype} of shape {history_BR.shape}, wanted integers ({batch}, {self.reach})",
                    hint="give what advance() returned for the chunk before, or None at the start",
                )
            self._check_range(history_BR, "history", NOTHING)
        return tokens_BT.astype(np.int64), history_BR.astype(np.int64), array.shape

    _lowest: ClassVar[int] = 0

    def _check_range(self, array: np.ndarray, what: str, lowest: int) -> None:
        if array.size == 0 or (lowest <= int(array.min()) and int(array.max()) < self.vocab_size):
            return
        line, place = np.argwhere((array < lowest) | (array >= self.vocab_size))[0]
        raise UsageError(
            f"{what} id {array[line, place]} at line {line}, position {place} is out of range",
            hint=f"this model's ids are {lowest} to {self.vocab_size - 1}",
        )


MOST_HEADS = 1024
"""Of heads, orders or splits in a config; shipped models have 8 at most. A billion would be worked on for ever."""


def number(
    config: Mapping[str, Any], *names: str, least: int = 0, most: int = (1 << 62) - 1, default: int | None = None
) -> int:
    """An integer of a config, under the first of the names that is there. UsageError names what was found."""
    for name in names:
        if config.get(name) is not None:
            value = config[name]
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise UsageError(f"the config says {name} = {value!r}, expected an integer from {least} to {most}")
            return value
    if default is not None:
        return default
    raise UsageError(f"the config has no {names[0]}", hint=f"it holds {', '.join(sorted(map(str, config)))[:400]}")


def numbers(config: Mapping[str, Any], name: str, least: int = 0) -> tuple[int, ...]:
    """A list of integers of a config (or spec), one at least; decimal strings count as integers."""
    value = config.get(name)
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f"the config says {name} = {value!r}, expected a list of integers")
    return tuple(number({name: int(item) if _is_decimal(item) else item}, name, least=least) for item in value)


def layers(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The layers that have a table, as the config lists them, each once."""
    found = numbers(config, name)
    if len(set(found)) < len(found):
        raise UsageError(f"the config says {name} = {list(found)}, expected each layer once")
    return found


def token(config: Mapping[str, Any], name: str, vocab_size: int, *, is_first: bool = False) -> int:
    """A token id of a config; of a list of several the first if the model does so (`is_first`), else they are refused."""
    value = config.get(name)
    if isinstance(value, (list, tuple)):
        if not value or (len(value) > 1 and not is_first):
            raise UsageError(f"the config says {name} = {value!r}, expected one token id", hint="name the one to use")
        config = {name: value[0]}
    found = number(config, name)
    if found >= vocab_size:
        raise UsageError(f"the config says {name} = {found}, expected an id below vocab_size = {vocab_size}")
    return found


def require_no_overflow(largest_product: int, what: str) -> None:
    """UsageError where an int64 would wrap: the model's own code would hash to other rows, or differ by library."""
    if largest_product >= 1 << 63:
        raise UsageError(
            f"{what} reaches {largest_product:,}, past the int64 limit of {(1 << 63) - 1:,}",
            hint="the constants do not fit this vocabulary; compare them with the model's own config",
        )


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()
