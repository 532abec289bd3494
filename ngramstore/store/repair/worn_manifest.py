"""The manifest in any state: one flipped bit is mended, of more there is no reading it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ngramstore.errors import FormatError, NgramStoreError, UnsupportedVersion
from ngramstore.files import read_around_holes
from ngramstore.store.layers.manifest import MANIFEST_NAME, MAX_BYTES, Manifest, decode_manifest, read_manifest
from ngramstore.store.repair.mending import mended_crc
from ngramstore.store.repair.raw_file import Fault, damage_of

_FIRST_LINE_BYTES = 64  # at most


def open_manifest(directory: Path, faults: list[Fault]) -> Manifest | None:
    """The manifest, also one with a flipped bit; faults are written down. None: it is beyond reading.

    Raises NotAStore, IncompleteStore, UsageError where there is none, UnsupportedVersion for one of a later release.
    """
    path = directory / MANIFEST_NAME
    try:
        return read_manifest(directory)
    except NgramStoreError as error:
        if not isinstance(error, FormatError) or not path.is_file():
            raise
        problem = error
    if isinstance(problem, UnsupportedVersion):
        raise problem  # not damage: somebody else can read it
    data = _read(path, faults)
    if data is None:
        return None
    right = _mended(data)
    if right is None:
        faults.append(Fault(MANIFEST_NAME, 0, problem.message))
        return None
    at = next(i for i, (got, wanted) in enumerate(zip(data, right, strict=True)) if got != wanted)
    faults.append(Fault(MANIFEST_NAME, at, "one bit is flipped"))
    return decode_manifest(right, path)


def _read(path: Path, faults: list[Fault]) -> bytes | None:
    """All of it, or None and a fault."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data, holes = read_around_holes(fd, MAX_BYTES + 1, 0)
        finally:
            os.close(fd)
    except OSError as error:
        faults.append(Fault(MANIFEST_NAME, None, damage_of(path, error)))
        return None
    if holes:
        faults.append(Fault(MANIFEST_NAME, holes[0][0], f"cannot be read: {os.strerror(errno.EIO)}"))
        return None
    return bytes(data)


def _mended(data: bytes) -> bytes | None:
    """The manifest with a bit flipped back, in its first line or behind that; None if it takes more."""
    trial = bytearray(data)
    for bit in range(8 * min(len(data), _FIRST_LINE_BYTES)):
        trial[bit >> 3] ^= 1 << (bit & 7)
        if _is_manifest(bytes(trial)):
            return bytes(trial)
        trial[bit >> 3] ^= 1 << (bit & 7)
    line, end, body = data.partition(b"\n")
    try:
        crc = int(line.split()[-2], 16)
    except (IndexError, ValueError):
        return None
    right = mended_crc(body, crc)
    return None if right is None or not _is_manifest(line + end + right) else line + end + right


def _is_manifest(data: bytes) -> bool:
    try:
        decode_manifest(data, Path(MANIFEST_NAME))
    except NgramStoreError:
        return False
    return True
