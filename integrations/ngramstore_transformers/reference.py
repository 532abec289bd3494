"""A model folder's reference to its store: path and identity in ngramstore.json, beside the weights.

    {"format": "ngramstore-reference", "version": 1, "store": path, "identity": .., "min_length": .., "crc32": ..}

`path` is relative to the folder where the store lies inside it, so that folder and store can be moved together.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ngramstore
from ngramstore.checked_json import CHANGED_HINT, crc_fits, with_crc
from ngramstore.errors import FormatError, UnsupportedVersion, UsageError
from ngramstore.files import publish
from ngramstore_torch import NGramEmbedding
from ngramstore_transformers.attaching import attach, attached

FILE_NAME = "ngramstore.json"
FORMAT, VERSION = "ngramstore-reference", 1


def save_reference(model: Any, directory: str | os.PathLike[str]) -> None:
    """Write which store the model reads; call it beside `model.save_pretrained(directory)`. UsageError without a store."""
    embedding = attached(model)
    if embedding is None:
        raise UsageError("the model has no store", hint="attach(model, store) first")
    directory, path = Path(directory), Path(os.path.realpath(embedding.store.path))
    folder = os.path.realpath(directory)
    inside = path.is_relative_to(folder)
    reference = {
        "format": FORMAT,
        "version": VERSION,
        "store": os.path.relpath(path, folder) if inside else str(path),
        "identity": embedding.store.identity,
        "min_length": embedding.min_length,
    }
    directory.mkdir(parents=True, exist_ok=True)
    publish(directory / FILE_NAME, (json.dumps(with_crc(reference), indent=2) + "\n").encode())


def load_reference(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    probe: bool = True,
    timeout_s: float | None = None,
    **open_options: Any,
) -> NGramEmbedding:
    """Attach the store that a model folder names, after `from_pretrained(directory)`; returns the look-up module.

    store: another path, for a store that has moved. probe, timeout_s: as for `attach`. open_options: those of
    `ngramstore.open` (cache_bytes, ..). Raises StaleStore where the path holds a store of another identity, UsageError
    and FormatError for a bad reference.
    """
    directory = Path(directory)
    try:
        text = (directory / FILE_NAME).read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{directory} names no store", hint=f"save_reference(model, directory) writes {FILE_NAME}"
        ) from None
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise FormatError(f"{directory / FILE_NAME} is of format {found['format']!r}")
        if found["version"] != VERSION:
            raise UnsupportedVersion(f"{FILE_NAME} of version {found['version']!r}, this release reads {VERSION}")
        if not crc_fits(found, may_lack=True):
            raise FormatError(
                f"{directory / FILE_NAME} is damaged, or was changed: its checksum differs", hint=CHANGED_HINT
            )
        path, identity, min_length = found["store"], found["identity"], found["min_length"]
        if not isinstance(path, str) or not isinstance(identity, str) or not isinstance(min_length, int):
            raise FormatError(f"{directory / FILE_NAME}: store and identity are strings, min_length is a number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{directory / FILE_NAME} cannot be read: {error!r}") from None
    opened = ngramstore.open(directory / path if store is None else store, identity=identity, **open_options)
    try:
        return attach(model, opened, probe=probe, min_length=min_length, timeout_s=timeout_s)
    except BaseException:
        opened.close()
        raise
