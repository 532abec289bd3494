"""Which conversion the rows of a half-made pack are of: what must be the same to go on with them, and what is not where
it differs.

Digests are of headers and sampled pages only; size, inode and time of change say that nobody wrote anywhere else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ngramstore
from ngramstore.codec.registry import Codec
from ngramstore.errors import IncompleteStore
from ngramstore.store.layers.external_entry import ExternalEntry, SourceEntry

_OF_A_FILE = ("size", "inode", "time of change (ns)")


def conversion_of(identity: str, entry: ExternalEntry, codec: Codec, compression: str) -> dict[str, Any]:
    """As JSON; `identity` is made from the digests of the files."""
    return {
        "release": ngramstore.__version__,
        "identity": identity,
        "num_rows": entry.num_rows,
        "codec": codec.spec(),
        "compression": compression,
        "sources": [_facts(source) for source in entry.sources],
    }


def another_one(directory: Path, saved: Any, asked: dict[str, Any], sources: Sequence[SourceEntry]) -> IncompleteStore:
    """The error where rows of another conversion lie in the way: what was another one then, old and new. `saved`: any JSON."""
    return IncompleteStore(
        f"{directory}: its import never finished, and this is another one: {'; '.join(_differences(saved, asked, sources))}",
        hint="import the same files in the same way to resume, or discard what is there with --restart (restart=True)",
    )


def is_changed(source: SourceEntry) -> bool:
    """Whether a file of the checkpoint was written to or replaced since the import began; False where nobody can say."""
    try:
        status = os.stat(source.path)
    except OSError:
        return False
    return [status.st_size, status.st_ino, status.st_mtime_ns] != _facts(source)


def _differences(saved: Any, asked: dict[str, Any], sources: Sequence[SourceEntry]) -> list[str]:
    if not isinstance(saved, dict):
        return [f"what is saved of it is {saved!r:.100}"]
    told = [
        f"{name.replace('_', ' ')} was {_text(saved.get(name))}, is {_text(asked[name])}"
        for name in ("release", "codec", "compression", "num_rows")
        if saved.get(name) != asked[name]
    ]
    told += _changed_files(saved.get("sources"), asked["sources"], sources)
    if not told and saved != asked:
        told.append("headers or sampled pages of the checkpoint's files are not what they were")
    return told


def _changed_files(saved: Any, asked: list[list[int]], sources: Sequence[SourceEntry]) -> list[str]:
    if saved == asked:
        return []
    if not isinstance(saved, list) or len(saved) != len(asked):
        return [f"its rows were in {len(saved) if isinstance(saved, list) else 'other'} files, are in {len(asked)}"]
    return [
        f"{source.path}: its {what} was {old}, is {new}"
        for source, before, now in zip(sources, saved, asked, strict=True)
        for what, old, new in zip(_OF_A_FILE, before if isinstance(before, list) else [before] * 3, now, strict=False)
        if old != new
    ]


def _facts(source: SourceEntry) -> list[int]:
    return [source.file_bytes, source.inode, source.mtime_ns]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
