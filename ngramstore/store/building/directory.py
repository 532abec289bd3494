"""The directory of a store that is being written: taken over from nobody, cleared of nothing that is not ours."""

from __future__ import annotations

import os
from pathlib import Path

from ngramstore.errors import UsageError
from ngramstore.files import make_directory, our_errors, remove
from ngramstore.store.journal.left import is_journal
from ngramstore.store.layers.manifest import BUILDING_NAME, LOCK_NAME, MANIFEST_NAME, unfinished
from ngramstore.store.layers.names import DATA_FILE, RUN_FILE, RUNS_NAME

_OURS = (MANIFEST_NAME, MANIFEST_NAME + ".tmp", BUILDING_NAME, BUILDING_NAME + ".tmp")


def claim_directory(path: Path, restart: bool) -> bool:
    """Make or take over the directory; True if it was made."""
    with our_errors(path):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file", hint="a store is a directory; choose another path")
        if not path.exists():
            make_directory(path)
            return True
        if (path / MANIFEST_NAME).exists():
            raise UsageError(f"{path} already holds a store", hint="choose another path, or delete the directory first")
        if (path / BUILDING_NAME).exists():
            if not restart:
                raise unfinished(path)
            return False
        strangers = [name for name in os.listdir(path) if name not in (LOCK_NAME, BUILDING_NAME + ".tmp")]
        if (
            strangers
        ):  # also files of ours: without BUILDING they are not what a build left, but a store without its manifest
            raise UsageError(f"{path} is not empty (it holds {strangers[0]!r})", hint="build into a new directory")
    return False


def clear_directory(path: Path) -> None:
    """Remove every file of ours but the lock, the manifest first, BUILDING last; files of others stay."""
    for name in sorted(os.listdir(path), key=lambda name: (name != MANIFEST_NAME, name == BUILDING_NAME)):
        if name == RUNS_NAME:
            remove(path / name, only=RUN_FILE)
        elif name in _OURS or DATA_FILE.fullmatch(name) or is_journal(path / name):
            remove(path / name)
