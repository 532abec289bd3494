"""A model's config.json: read from disk, and the part of it that describes the language model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngramstore.errors import UsageError


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A model's config.json, given as the file or as its directory. Raises UsageError where there is none."""
    path = Path(path)
    hint = "give the model's config.json, or the directory that holds it"
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UsageError(f"{path} has no config.json", hint=hint)
        path = path / "config.json"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(path)!r}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    if not isinstance(config, Mapping):
        raise UsageError(f"a config is a JSON object, got {type(config).__name__}")
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
