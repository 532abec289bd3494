"""The safetensors files of a checkpoint: which tensors are of n-gram tables, and the file of each.

What holds no table need not be there, whole or read: a download of the other shards may be unfinished.
"""

from __future__ import annotations

import json
from pathlib import Path

from ngramstore.errors import FormatError, UsageError
from ngramstore.safetensors_header import TensorEntry, read_safetensors_header
from ngramstore.store.imports.tensors import Tensor, Tensors

_INDEX = "model.safetensors.index.json"


def table_tensors(directory: Path, part: str) -> Tensors:
    """Those whose names hold `part`, as all of a table do; the checkpoint's index, where there is one, says which of two it is.

    Raises UsageError: no files, a table in a file that is missing, a tensor twice; FormatError: a file that is not safetensors.
    """
    paths = sorted(path for path in directory.glob("*.safetensors") if path.is_file())  # not a link to nothing
    if not paths:
        raise UsageError(f"{directory} holds no .safetensors file")
    shards = _shard_by_name(directory)
    of_tables = {name: file for name, file in shards.items() if part in name}
    _require_tables(directory, shards, of_tables, {path.name for path in paths})
    found: dict[str, dict[str, TensorEntry]] = {}
    for path in paths:
        is_needed = path.name in of_tables.values() or path.name not in shards.values()
        for name, entry in _header(path, is_needed=is_needed).items():
            if part in name:
                found.setdefault(name, {})[path.name] = entry
    return Tensors(
        directory, {name: _the_one(directory, name, entries, shards.get(name)) for name, entries in found.items()}
    )


def _the_one(directory: Path, name: str, entries: dict[str, TensorEntry], wanted: str | None) -> Tensor:
    """Of the files that hold a tensor, the one that the index names, or the only one."""
    file = wanted if wanted in entries else next(iter(entries))
    if len(entries) > 1 and file != wanted:
        raise UsageError(
            f"{directory}: tensor {name} is in {' and in '.join(entries)}",
            hint=f"remove the file that is not of this model, or have {_INDEX} say which one is",
        )
    return Tensor(name, (directory / file).resolve(), entries[file])


def _shard_by_name(directory: Path) -> dict[str, str]:
    """Name of a tensor -> its file, as the checkpoint's index says; empty without one."""
    path = directory / _INDEX
    if not path.is_file():
        return {}
    try:
        return {name: str(file) for name, file in json.loads(path.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not an index of a checkpoint: {error!r:.200}") from error


def _require_tables(directory: Path, shards: dict[str, str], of_tables: dict[str, str], there: set[str]) -> None:
    missing = sorted(set(shards.values()) - there)
    tables = [name for name, file in of_tables.items() if file in missing]
    if tables:
        raise UsageError(
            f"{directory}: {shards[tables[0]]} is missing; the index says it holds {tables[0]}",
            hint=f"{len(missing)} files of the checkpoint are missing: {', '.join(missing[:5])}",
        )


def _header(path: Path, *, is_needed: bool) -> dict[str, TensorEntry]:
    """The tensors of a file; none where it cannot be read and is not needed: the index names nothing of a table in it."""
    try:
        return read_safetensors_header(path)
    except FormatError:
        if is_needed:
            raise
        return {}
