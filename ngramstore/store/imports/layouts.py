"""How the checkpoint of each model family holds its tables: names of tensors, width of a row, where scales are."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ngramstore.errors import UsageError
from ngramstore.keys import EngramKeys, Keys, LongcatKeys, QwenPleKeys
from ngramstore.keys import Table as KeyTable
from ngramstore.keys.base import number
from ngramstore.keys.qwen_ple import with_defaults
from ngramstore.store.imports.tensors import Tensor, Tensors


@dataclass(frozen=True)
class TableTensors:
    """The tensors of one table, in row order: weights, and the scales of each weight's rows, if they have some.

    table_scale: the one scale of all rows as a hexadecimal float, if there is one.
    """

    weights: list[Tensor]
    scales: list[Tensor]
    table_scale: str | None = None


class TableLayout(ABC):
    """What has to be known of a family's checkpoints."""

    part: ClassVar[str]
    """The names of all tensors of its tables hold this."""

    @abstractmethod
    def row_width(self, keys: Keys, config: Mapping[str, Any]) -> int:
        """Values of a row, by the config."""

    @abstractmethod
    def tensors_of(self, table: KeyTable, config: Mapping[str, Any], tensors: Tensors) -> TableTensors:
        """The tensors of a table. UsageError where one is missing."""


class EngramLayout(TableLayout):
    """`layers.{id}.engram.embed`: one weight, in FP8 with a tensor of block scales beside it."""

    part = ".engram.embed."

    def row_width(self, keys: Keys, config: Mapping[str, Any]) -> int:
        return number(config, "engram_head_dim", least=1)

    def tensors_of(self, table: KeyTable, config: Mapping[str, Any], tensors: Tensors) -> TableTensors:
        stem = rf"layers\.{_layer_of(table)}\.engram\.embed"
        weight = tensors.one(rf"{stem}\.weight")
        if weight.entry.dtype != "F8_E4M3":
            return TableTensors([weight], [])
        if not tensors.find(rf"{stem}\.scale"):
            raise UsageError(
                f"{tensors.directory}: {weight} has no scales",
                hint=f"expected a tensor {weight.name.removesuffix('.weight')}.scale beside it",
            )
        return TableTensors([weight], [tensors.one(rf"{stem}\.scale")])


class QwenPleLayout(TableLayout):
    """`layers.{id}.ple.ple_embedding.ngram_embedding`: numbered shards, in FP8 with one scale for the whole table."""

    part = ".ngram_embedding."

    def row_width(self, keys: Keys, config: Mapping[str, Any]) -> int:
        total = number(with_defaults(config), "ple_embed_dim", "hidden_size", least=1)
        return _part_of(total, keys.num_heads // len(keys.tables))

    def tensors_of(self, table: KeyTable, config: Mapping[str, Any], tensors: Tensors) -> TableTensors:
        stem = rf"layers\.{_layer_of(table)}\.ple\.ple_embedding\.ngram_embedding"
        is_said = config.get("split_ngram_parts") is not None
        weights = tensors.shards(stem, partial(number, config, "split_ngram_parts", least=1) if is_said else None)
        if weights[0].entry.dtype != "F8_E4M3":
            return TableTensors(weights, [])
        return TableTensors(weights, [], tensors.one(rf"{stem}\.weight_scale").as_hex())


class LongcatLayout(TableLayout):
    """`ngram_embeddings.embedders.{i}`: one weight."""

    part = "ngram_embeddings.embedders."

    def row_width(self, keys: Keys, config: Mapping[str, Any]) -> int:
        return _part_of(number(config, "hidden_size", least=1), keys.num_heads)

    def tensors_of(self, table: KeyTable, config: Mapping[str, Any], tensors: Tensors) -> TableTensors:
        return TableTensors([tensors.one(rf"ngram_embeddings\.{re.escape(table.name)}\.weight")], [])


LAYOUTS: dict[str, TableLayout] = {
    EngramKeys.model: EngramLayout(),
    QwenPleKeys.model: QwenPleLayout(),
    LongcatKeys.model: LongcatLayout(),
}
"""By the model of the keys."""


def _layer_of(table: KeyTable) -> str:
    return table.name.removeprefix("layer ")


def _part_of(total: int, heads: int) -> int:
    if total % heads:
        raise UsageError(f"the config's embedding width {total} is not a multiple of its {heads} heads")
    return total // heads
