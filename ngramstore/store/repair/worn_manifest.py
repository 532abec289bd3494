"""The manifest in any state: one flipped bit is mended, of more there is no reading it."""

from __future__ import annotations

from pathlib import Path

from ngramstore.errors import FormatError, NgramStoreError, UnsupportedVersion
from ngramstore.store.layers.manifest import MANIFEST_NAME, Manifest, decode_manifest, read_manifest
from ngramstore.store.repair.salvage import Fault, damage_of, mended


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
    try:
        data = path.read_bytes()
    except OSError as error:
        faults.append(Fault(MANIFEST_NAME, None, damage_of(path, error)))
        return None
    right = mended(data, _is_manifest)
    if right is None:
        faults.append(Fault(MANIFEST_NAME, 0, problem.message))
        return None
    at = next(i for i, (got, wanted) in enumerate(zip(data, right, strict=True)) if got != wanted)
    faults.append(Fault(MANIFEST_NAME, at, "one bit is flipped"))
    return decode_manifest(right, path)


def _is_manifest(data: bytes) -> bool:
    try:
        decode_manifest(data, Path(MANIFEST_NAME))
    except NgramStoreError:
        return False
    return True
