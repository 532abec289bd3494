"""The n-gram tables inside a model checkpoint: recognized by config and tensor names, every shape and type compared.

A checkpoint is a directory with config.json and safetensors files. Nothing but headers (and a scale of one number) is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.codec.registry import Codec, codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.keys import EngramKeys, Keys, LongcatKeys, QwenPleKeys, keys_from_config, read_config, text_config
from ngramstore.keys import Table as KeyTable
from ngramstore.keys.base import number
from ngramstore.keys.qwen_ple import with_defaults
from ngramstore.store.imports.shards import Tensor, may_be_of_a_table, table_tensors
from ngramstore.store.layers.external_entry import Piece, Segment

_NAMED = 10  # missing shards in a message
_ITEM_BYTES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4}
_FLOAT_CODECS = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
_MODELS = (EngramKeys.model, QwenPleKeys.model, LongcatKeys.model)


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
    if keys.model not in _MODELS:
        raise UsageError(
            f"{directory}: no tensor names are known for {keys.model} tables",
            hint=f"checkpoints of {', '.join(_MODELS)} can be imported; others with `ngramstore build`",
        )
    config = text_config(config)
    tensors = table_tensors(directory)
    dim = _row_width(keys, config)
    groups: list[tuple[list[Tensor], list[Tensor], str | None]] = []
    for table in keys.tables:
        groups.append(_tensors_of(directory, keys, table, config, tensors))
    dtypes = {tensor.entry.dtype for weights, _, _ in groups for tensor in weights}
    if len(dtypes) != 1 or next(iter(dtypes)) not in _ITEM_BYTES:
        raise UsageError(
            f"{directory}: the table's tensors are of type {', '.join(sorted(dtypes))}",
            hint=f"expected one of {', '.join(_ITEM_BYTES)} for all of them",
        )
    dtype = dtypes.pop()
    specs = {
        json.dumps(_codec_of(dtype, weights[0], scales, table_scale, dim)) for weights, scales, table_scale in groups
    }
    if len(specs) != 1:
        raise UsageError(
            f"{directory}: tables with different scales: {', '.join(sorted(specs))}",
            hint="this release has one codec for all rows and cannot import such a model in FP8; in BF16 it can",
        )
    files = sorted({tensor.path for weights, scales, _ in groups for tensor in (*weights, *scales)})
    segments = []
    for table, (weights, scales, _) in zip(keys.tables, groups, strict=True):
        _check_shapes(directory, table, weights, scales, dim)
        segments += [
            _segment(files, weight, scale)
            for weight, scale in zip(weights, scales or [None] * len(weights), strict=True)  # type: ignore[list-item]
        ]
    return Checkpoint(
        directory=directory,
        keys=keys,
        codec=codec_from_spec(json.loads(specs.pop()), dim),
        files=tuple(files),
        segments=tuple(segments),
        tensors=tuple(tensor.name for weights, scales, _ in groups for tensor in (*weights, *scales)),
    )


def _row_width(keys: Keys, config: Mapping[str, Any]) -> int:
    if isinstance(keys, EngramKeys):
        return number(config, "engram_head_dim", least=1)
    if isinstance(keys, QwenPleKeys):
        config = with_defaults(config)
        total, heads = number(config, "ple_embed_dim", "hidden_size", least=1), keys.num_heads // len(keys.tables)
    else:
        total, heads = number(config, "hidden_size", least=1), keys.num_heads
    if total % heads:
        raise UsageError(f"the config's embedding width {total} is not a multiple of its {heads} heads")
    return total // heads


def _tensors_of(
    directory: Path, keys: Keys, table: KeyTable, config: Mapping[str, Any], tensors: dict[str, Tensor]
) -> tuple[list[Tensor], list[Tensor], str | None]:
    """Weights and scales of a table, in row order, and the scale of the whole table as a hexadecimal float."""
    layer = table.name.removeprefix("layer ")
    if isinstance(keys, EngramKeys):
        stem = rf"layers\.{layer}\.engram\.embed"
        weight = _must_find(directory, tensors, rf"{stem}\.weight")
        if weight.entry.dtype != "F8_E4M3":
            return [weight], [], None
        if not _find(tensors, rf"{stem}\.scale"):
            raise UsageError(f"{directory}: {weight} has no scales", hint=f"expected a tensor {stem}.scale beside it")
        return [weight], [_must_find(directory, tensors, rf"{stem}\.scale")], None
    if isinstance(keys, LongcatKeys):
        return [_must_find(directory, tensors, rf"ngram_embeddings\.{re.escape(table.name)}\.weight")], [], None
    stem = rf"layers\.{layer}\.ple\.ple_embedding\.ngram_embedding"
    weights = _shards(directory, stem, config, tensors)
    scale = None
    if weights[0].entry.dtype == "F8_E4M3":
        scale = _scalar(_must_find(directory, tensors, rf"{stem}\.weight_scale"))
    return weights, [], scale


def _shards(directory: Path, stem: str, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> list[Tensor]:
    """The shards of a table in the order of their numbers, whatever the order of files; or its one tensor."""
    numbered: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(rf"(?:.*\.)?{stem}\.shard_(\d{{1,9}})\.weight", name)
        if found and int(found[1]) in numbered:
            raise UsageError(
                f"{directory}: {numbered[int(found[1])]} and {tensor} are both shard {int(found[1])}",
                hint="leave the files of one model in the directory",
            )
        if found:
            numbered[int(found[1])] = tensor
    if not numbered:
        return [_must_find(directory, tensors, rf"{stem}\.(?:shard_0\.)?weight")]
    expected = number(config, "split_ngram_parts", least=1, default=max(numbered) + 1)
    missing = list(islice((i for i in range(expected) if i not in numbered), _NAMED))
    if missing or len(numbered) != expected:
        raise UsageError(
            f"{directory}: found {len(numbered)} shards of {stem.replace(chr(92), '')}, expected {expected}",
            hint=f"missing: shard_{', shard_'.join(map(str, missing))}" if missing else "shards are numbered from 0",
        )
    return [numbered[i] for i in range(expected)]


def _find(tensors: dict[str, Tensor], pattern: str) -> list[Tensor]:
    return [tensor for name, tensor in tensors.items() if re.fullmatch(rf"(?:.*\.)?{pattern}", name)]


def _must_find(directory: Path, tensors: dict[str, Tensor], pattern: str) -> Tensor:
    found = _find(tensors, pattern)
    wanted = pattern.replace("\\", "").replace("(?:shard_0.)?", "")
    if len(found) != 1:
        near = [name for name in tensors if may_be_of_a_table(name)][:5]
        raise UsageError(
            f"{directory}: {len(found)} tensors are named ...{wanted}, expected one",
            hint=f"its table tensors are {', '.join(near)}" if near else "it holds no table tensors",
        )
    return found[0]


def _scalar(tensor: Tensor) -> str:
    """A tensor of one number as a hexadecimal float, bit for bit."""
    entry = tensor.entry
    if entry.dtype not in _FLOAT_CODECS or int(np.prod(entry.shape)) != 1:
        raise UsageError(f"{tensor} is not a scale", hint="expected one number, BF16, F16 or F32")
    with open(tensor.path, "rb") as file:
        file.seek(entry.begin)
        data = file.read(_ITEM_BYTES[entry.dtype])
    if entry.dtype == "BF16":
        return float(np.frombuffer(b"\0\0" + data, "<f4")[0]).hex()
    return float(np.frombuffer(data, "<f2" if entry.dtype == "F16" else "<f4")[0]).hex()


def _codec_of(dtype: str, weight: Tensor, scales: list[Tensor], table_scale: str | None, dim: int) -> dict[str, Any]:
    if dtype in _FLOAT_CODECS:
        return {"name": _FLOAT_CODECS[dtype]}
    if table_scale is not None:
        return {"name": "e4m3", "block": 0, "scale": table_scale}
    scale = scales[0].entry
    if scale.dtype not in ("F8_E8M0", "U8") or len(scale.shape) != 2 or scale.shape[1] < 1 or dim % scale.shape[1]:
        raise UsageError(f"{scales[0]} does not fit {weight}", hint=f"expected F8_E8M0 (rows, n), n a divisor of {dim}")
    return {"name": "e4m3", "block": dim // scale.shape[1]}


def _check_shapes(directory: Path, table: KeyTable, weights: list[Tensor], scales: list[Tensor], dim: int) -> None:
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
            item = _ITEM_BYTES.get(tensor.entry.dtype, 1)
            pieces.append(Piece(files.index(tensor.path), tensor.entry.begin, width * item))
    return Segment(weight.entry.shape[0], tuple(pieces))
