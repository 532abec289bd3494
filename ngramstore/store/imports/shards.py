"""The safetensors files of a checkpoint: which tensors may be of an n-gram table, and the file of each.

What holds no table need not be there, whole or read: a download of the other shards may be unfinished.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ngramstore.errors import FormatError, UsageError
from ngramstore.safetensors_header import TensorEntry, read_safetensors_header

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint and the file it lies in."""

    name: str
    path: Path
    entry: TensorEntry

    def __str__(self) -> str:
        return f"{self.name} ({self.entry.dtype} {list(self.entry.shape)}, {self.path.name})"


def table_tensors(directory: Path) -> dict[str, Tensor]:
    """Name -> tensor, of those that may be of a table; the checkpoint's index, where there is one, says which of two it is.

    Raises UsageError: no files, a table in a file that is missing, a tensor twice; FormatError: a file that is not safetensors.
    """
    paths = sorted(path for path in directory.glob("*.safetensors") if path.is_file())  # not a link to nothing
    if not paths:
        raise UsageError(f"{directory} holds no .safetensors file")
    shards = _shard_by_name(directory)
    _require_tables(directory, shards, {path.name for path in paths})
    found: dict[str, dict[str, TensorEntry]] = {}
    for path in paths:
        for name, entry in _header(path, shards).items():
            if may_be_of_a_table(name):
                found.setdefault(name, {})[path.name] = entry
    return {name: _the_one(directory, name, entries, shards.get(name)) for name, entries in found.items()}


def _the_one(directory: Path, name: str, entries: dict[str, TensorEntry], wanted: str | None) -> Tensor:
    """Of the files that hold a tensor, the one that the index names, or the only one."""
    file = wanted if wanted in entries else next(iter(entries))
    if len(entries) > 1 and file != wanted:
        raise UsageError(
            f"{directory}: tensor {name} is in {' and in '.join(entries)}",
            hint=f"remove the file that is not of this model, or have {_INDEX} say which one is",
        )
    return Tensor(name, (directory / file).resolve(), entries[file])


def may_be_of_a_table(name: str) -> bool:
    """Whether a tensor of that name may be part of a table of any model that is known."""
    return any(part in name for part in (".engram.embed.", ".ngram_embedding.", "ngram_embeddings.embedders."))


def _shard_by_name(directory: Path) -> dict[str, str]:
    """Name of a tensor -> its file, as the checkpoint's index says; empty without one."""
    path = directory / _INDEX
    if not path.is_file():
        return {}
    try:
        return {name: str(file) for name, file in json.loads(path.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not an index of a checkpoint: {error!r:.200}") from error


def _require_tables(directory: Path, shards: dict[str, str], there: set[str]) -> None:
    missing = sorted(set(shards.values()) - there)
    tables = [name for name, file in shards.items() if file in missing and may_be_of_a_table(name)]
    if tables:
        raise UsageError(
            f"{directory}: {shards[tables[0]]} is missing; the index says it holds {tables[0]}",
            hint=f"{len(missing)} files of the checkpoint are missing: {', '.join(missing[:5])}",
        )


def _header(path: Path, shards: dict[str, str]) -> dict[str, TensorEntry]:
    """The tensors of a file; none where it cannot be read and the index names nothing of a table in it."""
    try:
        return read_safetensors_header(path)
    except FormatError:
        names = [name for name, file in shards.items() if file == path.name]
        if not names or any(map(may_be_of_a_table, names)):
            raise
        return {}
