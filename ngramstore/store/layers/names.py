"""What builds and writers put into a store's directory beside MANIFEST: nothing with another name is ever removed from it."""

from __future__ import annotations

import re

JOURNAL = re.compile(r"journal-([0-9]{6,20})")
DATA_FILE = re.compile(r"(base|overlay|tombstones)-[0-9]+\.(index|rows|tokens|sums)")
RUNS_NAME = "runs"
"""The directory of a build's sorted runs, and of what an import goes on from. Others use that name too."""
RUN_FILE = re.compile(r"run-[0-9]{5,20}\.(ids|rows|tokens|lengths)|(state\.json|dictionary)(\.tmp)?|lengths")


def numbered(kind: str, generation: int) -> str:
    """Name of a file (without its suffix) or of a journal that came with a generation."""
    return f"{kind}-{generation:06d}"
