"""JSON objects that carry a checksum of themselves, under "crc32", for small files that people may read."""

from __future__ import annotations

import json
import zlib
from typing import Any

CHANGED_HINT = 'put a copy back; if the change was meant, take "crc32" out of the file'
_NAME = "crc32"


def with_crc(body: dict[str, Any]) -> dict[str, Any]:
    """The object as JSON keeps it (names are strings, tuples lists), in its order, with a CRC-32 of the rest at the end."""
    plain = json.loads(json.dumps(body))
    return plain | {_NAME: _crc(plain)}


def crc_fits(found: dict[str, Any], *, may_lack: bool = False) -> bool:
    """Whether an object's CRC-32 is that of the rest of it, whatever the order of its names.

    may_lack: so is one without, of a file that had none in earlier releases.
    """
    if may_lack and _NAME not in found:
        return True
    return found.get(_NAME) == _crc({name: value for name, value in found.items() if name != _NAME})


def _crc(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
