"""What lies in a store's directory and no manifest names: left by writers and builds that were killed or could not remove it."""

from __future__ import annotations

import os
from pathlib import Path

from ngramstore.files import remove_if_possible
from ngramstore.store.layers.in_use import remove_unless_read
from ngramstore.store.layers.manifest import BUILDING_NAME, Manifest
from ngramstore.store.layers.names import DATA_FILE, RUN_FILE, RUNS_NAME

_LEFT_OVER = {RUNS_NAME: RUN_FILE, BUILDING_NAME: None, "MANIFEST.tmp": None}
"""Journals apart; of a directory, the names that are ours."""


def remove_unnamed(directory: Path, manifest: Manifest) -> None:
    """Remove data files that the current manifest does not name, unless a reader still holds them, and what builds have left."""
    named = {entry.name for entry in manifest.files}
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if DATA_FILE.fullmatch(name) and name not in named:
            remove_unless_read(path)
        elif name in _LEFT_OVER:
            remove_if_possible(path, only=_LEFT_OVER[name])
