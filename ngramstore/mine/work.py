"""The work directory of a mining run: which steps are finished, for which corpus and options.

`STEP` is a small JSON file with a checksum: the options and the last length that is finished. Everything else is recognised
by its name: files appear whole or not at all.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from ngramstore.errors import DamagedStore, UsageError
from ngramstore.files import publish, remove

STEP_NAME = "STEP"


class WorkDirectory:
    """Names and steps. One process at a time drives it; its workers only write files."""

    def __init__(self, path: str | Path, options: dict[str, Any], *, restart: bool) -> None:
        """Open or make it. Raises UsageError where it holds other options or foreign files, DamagedStore for a bad STEP."""
        self.path = Path(path)
        self._options = options
        self.finished_n = 1
        step = self.path / STEP_NAME
        if self.path.exists() and not step.exists() and any(p.name != STEP_NAME + ".tmp" for p in self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty and holds no unfinished mining", hint="give another work directory"
            )
        if restart and self.path.exists():
            remove(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if step.exists():
            self._resume(step)
        else:
            self.finish(1)

    def finish(self, n: int) -> None:
        """Record that lengths up to n are counted and their positions numbered."""
        body = {"options": self._options, "finished_n": n}
        publish(self.path / STEP_NAME, json.dumps(body | {"crc32": _crc_of(body)}, indent=1).encode())
        self.finished_n = n

    def counts(self, n: int, shard: int) -> Path:
        """The run of one shard's counts."""
        return self.path / f"count-{n:02d}-{shard:05d}.run"

    def frequent(self, n: int) -> Path:
        """The run of the frequent n-grams."""
        return self.path / f"frequent-{n:02d}.run"

    def ids(self, n: int, shard: int) -> Path:
        """The numbers of the frequent n-grams by position."""
        return self.path / f"ids-{n:02d}-{shard:05d}.u32"

    def remove(self) -> None:
        """Delete the directory and all in it."""
        remove(self.path)

    def _resume(self, step: Path) -> None:
        hint = "use the same options, or start over with restart=True (`ngramstore mine --restart`)"
        try:
            body = json.loads(step.read_bytes())
            crc = body.pop("crc32")
            is_good = crc == _crc_of(body)
        except (ValueError, KeyError, AttributeError, TypeError):
            is_good = False
        if not is_good:
            raise DamagedStore(f"{step} is damaged", hint="start over with restart=True (`ngramstore mine --restart`)")
        for name, value in self._options.items():
            there = body["options"].get(name)
            if there != value:
                raise UsageError(f"{self.path} was begun with {name} = {there!r}, now it is {value!r}", hint=hint)
        self.finished_n = body["finished_n"]


def _crc_of(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
