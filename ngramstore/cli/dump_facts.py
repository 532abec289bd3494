"""metadata.json of a dump: what the store was, as `dump` writes it, and what `build --metadata` takes from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngramstore.errors import UsageError

if TYPE_CHECKING:
    from ngramstore.codec import Codec
    from ngramstore.serve.store import Store

FACTS_NAME = "metadata.json"
_VERSION_KEY = "ngramstore_dump"
_VERSION = 1


def facts_of(store: Store, *, is_encoded: bool) -> bytes:
    """The file, of the published state: a JSON object; the store's own metadata are its "metadata"."""
    spec = store.spec
    of_ngrams = {"max_n": spec.max_n, "seed": spec.seed} if spec.is_ngram else {}
    facts = {
        _VERSION_KEY: _VERSION,
        "identity": store.identity,
        "generation": store.generation,
        "addressing": spec.addressing,
        "rows": len(store),
        "dim": spec.dim,
        **of_ngrams,
        "codec": spec.codec.spec(),
        "is_encoded": is_encoded,
        "metadata": spec.metadata,
    }
    return (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode()


def read_metadata(path: Path, stored_as: Codec | None) -> dict[str, Any]:
    """The metadata for a new store: those in metadata.json of a dump, or the whole JSON object of another file.

    stored_as: what rows that are encoded already are taken for, else None. Raises UsageError, also where the dump says
    that its rows are of another codec or width: their bytes may be as many.
    """
    from ngramstore.store.building.row_files import no_file

    if not path.is_file():
        raise UsageError(no_file(path), hint="give a file that holds a JSON object, such as metadata.json of a dump")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and _VERSION_KEY in value:
        if value[_VERSION_KEY] != _VERSION:
            raise UsageError(f"{path} is of a dump of version {value[_VERSION_KEY]!r}, this release reads {_VERSION}")
        is_of = value.get("codec"), value.get("dim")
        if stored_as is not None and is_of != (stored_as.spec(), stored_as.dim):
            raise UsageError(
                f"{path} says that its rows are {is_of[0]} of {is_of[1]} numbers, not {stored_as.spec()} of {stored_as.dim}",
                hint="with --encoded give --codec and --dim of the dump; `dump` prints that command",
            )
        value = value.get("metadata")
    if not isinstance(value, dict):
        raise UsageError(
            f"{path} holds no metadata", hint='metadata is a JSON object, such as {"checkpoint_id": "..."}'
        )
    return value
