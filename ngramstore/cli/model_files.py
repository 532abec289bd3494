"""Files of a model that commands are given beside its config: the tokenizer, the token map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ngramstore.errors import MissingExtra, UsageError


def read_tokenizer(path: Path) -> Any:
    """A tokenizer.json, given as the file or as its directory."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtra("tokenizers", "mine") from None
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}", hint="give the model's tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise UsageError(f"{path} is not a tokenizer: {error}") from error


def read_token_map(path: Path) -> Any:
    """An integer array in a .npy file."""
    import numpy as np

    from ngramstore.npy import map_npy

    return np.array(map_npy(path))
