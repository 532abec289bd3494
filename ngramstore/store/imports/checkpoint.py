"""The n-gram tables inside a model checkpoint: recognized by config and tensor names, every shape and type compared.

A checkpoint is a directory with config.json and safetensors files. Nothing but headers (and a scale of one number) is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngramstore.codec.registry import Codec, codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.keys import Keys, keys_from_config, read_config, text_config
from ngramstore.keys import Table as KeyTable
from ngramstore.store.imports.layouts import LAYOUTS, TableTensors
from ngramstore.store.imports.shards import table_tensors
from ngramstore.store.imports.tensors import FLOAT_CODECS, ITEM_BYTES, Tensor
from ngramstore.store.layers.external_entry import Piece, Segment


@dataclass(frozen=True)
class Checkpoint:
    """What an import needs to know: the keys, how a row is encoded, and where rows lie, in the order of their numbers."""

    directory: Path
    keys: Keys
    codec: Codec
    files: tuple[Path, ...]
    segments: tuple[Segment, ...]
    tensors: tuple[str, ...]


def read_checkpoint(directory: Path, *, tokenizer: Any = None, token_map: Any = None) -> Checkpoint:
    """Recognize the tables of a checkpoint.

    Raises UsageError, naming what was found and what was expected: no known model, missing shards, shapes, row counts and
    types that do not fit the config; FormatError for a safetensors file that is none.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", hint="give the directory of a checkpoint")
    config: Mapping[str, Any] = read_config(directory)
    keys = keys_from_config(config, tokenizer=tokenizer, token_map=token_map)
    layout = LAYOUTS.get(keys.model)
    if layout is None:
        raise UsageError(
            f"{directory}: no tensor names are known for {keys.model} tables",
            hint=f"checkpoints of {', '.join(LAYOUTS)} can be imported; others with `ngramstore build`",
        )
    config = text_config(config)
    tensors = table_tensors(directory, layout.part)
    dim = layout.row_width(keys, config)
    found = [layout.tensors_of(table, config, tensors) for table in keys.tables]
    codec = _codec_of_all(directory, found, dim)
    files = sorted({tensor.path for table in found for tensor in (*table.weights, *table.scales)})
    segments = []
    for table, of_table in zip(keys.tables, found, strict=True):
        _check_shapes(directory, table, of_table, dim)
        segments += [
            _segment(files, weight, scale)
            for weight, scale in zip(of_table.weights, of_table.scales or [None] * len(of_table.weights), strict=True)  # type: ignore[list-item]
        ]
    return Checkpoint(
        directory=directory,
        keys=keys,
        codec=codec,
        files=tuple(files),
        segments=tuple(segments),
        tensors=tuple(tensor.name for table in found for tensor in (*table.weights, *table.scales)),
    )


def _codec_of_all(directory: Path, tables: list[TableTensors], dim: int) -> Codec:
    """The one codec of all tables."""
    dtypes = {tensor.entry.dtype for table in tables for tensor in table.weights}
    if len(dtypes) != 1 or next(iter(dtypes)) not in ITEM_BYTES:
        raise UsageError(
            f"{directory}: the table's tensors are of type {', '.join(sorted(dtypes))}",
            hint=f"expected one of {', '.join(ITEM_BYTES)} for all of them",
        )
    dtype = dtypes.pop()
    specs = {json.dumps(_codec_spec(dtype, table, dim)) for table in tables}
    if len(specs) != 1:
        raise UsageError(
            f"{directory}: tables with different scales: {', '.join(sorted(specs))}",
            hint="this release has one codec for all rows and cannot import such a model in FP8; in BF16 it can",
        )
    return codec_from_spec(json.loads(specs.pop()), dim)


def _codec_spec(dtype: str, table: TableTensors, dim: int) -> dict[str, Any]:
    if dtype in FLOAT_CODECS:
        return {"name": FLOAT_CODECS[dtype]}
    if table.table_scale is not None:
        return {"name": "e4m3", "block": 0, "scale": table.table_scale}
    scale = table.scales[0].entry
    if scale.dtype not in ("F8_E8M0", "U8") or len(scale.shape) != 2 or scale.shape[1] < 1 or dim % scale.shape[1]:
        raise UsageError(
            f"{table.scales[0]} does not fit {table.weights[0]}",
            hint=f"expected F8_E8M0 (rows, n), n a divisor of {dim}",
        )
    return {"name": "e4m3", "block": dim // scale.shape[1]}


def _check_shapes(directory: Path, table: KeyTable, of_table: TableTensors, dim: int) -> None:
    weights, scales = of_table.weights, of_table.scales
    for tensor in weights:
        if len(tensor.entry.shape) != 2 or tensor.entry.shape[1] != dim:
            raise UsageError(f"{directory}: {tensor}, expected rows of {dim} values as the config says")
    found = sum(tensor.entry.shape[0] for tensor in weights)
    if found != table.num_rows:
        raise UsageError(
            f"{directory}: {table.name} has {found:,} rows in {len(weights)} tensors, its config gives {table.num_rows:,}",
            hint="this config.json is not the one of these tensors, or a shard is missing",
        )
    for weight, scale in zip(weights, scales, strict=bool(scales)):
        if scale.entry.shape[0] != weight.entry.shape[0]:
            raise UsageError(f"{directory}: {scale} has another number of rows than {weight}")


def _segment(files: list[Path], weight: Tensor, scale: Tensor | None) -> Segment:
    pieces = []
    for tensor in (weight, scale):
        if tensor is not None:
            width = tensor.entry.shape[1]
            item = ITEM_BYTES.get(tensor.entry.dtype, 1)
            pieces.append(Piece(files.index(tensor.path), tensor.entry.begin, width * item))
    return Segment(weight.entry.shape[0], tuple(pieces))
