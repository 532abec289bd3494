"""The manifest: the one small file that says what a store is and which files it is made of; replaced atomically.

Format: docs/format.md, section Manifest. One line `ngramstore manifest VERSION CRC32 BYTES`, then JSON of that many bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import uuid
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ngramstore
from ngramstore.codec.registry import Codec, codec_from_spec
from ngramstore.errors import DamagedStore, FormatError, IncompleteStore, NotAStore, UnsupportedVersion, UsageError
from ngramstore.files import our_errors, publish, read_around_holes
from ngramstore.hashing import HASH_NAME, MAX_N
from ngramstore.layout import FORMAT_VERSION
from ngramstore.store.layers.datafile import FileEntry, FileStamp
from ngramstore.store.layers.external_entry import ExternalEntry
from ngramstore.store.layers.json_values import as_count, as_flag
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.names import JOURNAL, numbered

MANIFEST_NAME = "MANIFEST"
BUILDING_NAME = "BUILDING"
LOCK_NAME = "LOCK"
MAX_BYTES = 1 << 20
MAX_METADATA_BYTES = 1 << 19
"""Of the metadata as JSON; a manifest is read whole into memory, so it has a limit."""
_FIRST_LINE = re.compile(rb"ngramstore manifest ([0-9]{1,9}) ([0-9a-f]{8}) ([0-9]{1,9})\n")
_AGAIN = "delete the directory and give the command again"
_HINT_BY_WORK = {
    "import": "run the same command again: `ngramstore import --pack` resumes; otherwise add --restart (restart=True)",
    "backup": _AGAIN,
    "repair": _AGAIN,
}
ADDRESSINGS = ("ngram", "row")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What never changes in the life of a store."""

    addressing: str
    dim: int
    max_n: int
    codec: Codec
    seed: int = 0
    has_tokens: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ngram(self) -> bool:
        """Rows are found by n-gram; else by number."""
        return self.addressing == "ngram"

    @property
    def journal_width(self) -> int:
        """Tokens that a value of the journal has room for; a row number takes two."""
        return self.max_n if self.is_ngram else 2


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One published state of a store."""

    spec: Spec
    identity: str
    generation: int
    release: str
    base: LayerEntry | ExternalEntry
    base_generation: int
    overlay: LayerEntry | None = None
    tombstones: FileEntry | None = None
    overlay_generation: int = 0
    num_rows: int
    length_counts: tuple[int, ...]
    suffix_closed: bool
    journal: str

    @property
    def files(self) -> list[FileEntry]:
        """Every data file the manifest names."""
        overlay = self.overlay.files if self.overlay else []
        return [*self.base.files, *overlay, *([self.tombstones] if self.tombstones else [])]

    @property
    def sources(self) -> dict[str, int]:
        """Files of others that rows are read from in place, and their bytes."""
        base = self.base
        return {source.path: source.file_bytes for source in base.sources} if isinstance(base, ExternalEntry) else {}

    @property
    def state_digest(self) -> bytes:
        """16 bytes that stand for this published state: unpublished changes belong to one state alone."""
        files = [[entry.name, entry.file_bytes, entry.header_crc, entry.content.hex()] for entry in self.files]
        said = [self.identity, self.generation, self.journal, files, sorted(self.sources.items())]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).digest()

    def stamp(self, generation: int) -> FileStamp:
        """What the headers of a generation's files carry."""
        return FileStamp.of(self.identity, generation)

    def write(self, directory: Path) -> None:
        """Publish this manifest: readers see the old one or this one.

        What could not be read again is not published: DamagedStore (the state it follows was wrong), UsageError (too long).
        """
        path, data = directory / MANIFEST_NAME, self.encode()
        if len(data) > MAX_BYTES:
            raise UsageError(
                f"{path} would take {len(data):,} bytes, at most {MAX_BYTES:,} are possible",
                hint="keep less metadata in it; of a checkpoint in very many pieces, pack the rows",
            )
        try:
            decode_manifest(data, path)
        except FormatError as error:
            raise DamagedStore(
                f"{path} stays as it is: nobody could read what was to follow it: {error.message}"
            ) from error
        publish(path, data)

    def encode(self) -> bytes:
        """The file's bytes."""
        body = (json.dumps(_to_json(self), indent=1, sort_keys=True) + "\n").encode()
        return b"ngramstore manifest %d %08x %d\n" % (FORMAT_VERSION, zlib.crc32(body), len(body)) + body

    def next(self, **changes: Any) -> Manifest:
        """The manifest of the next generation, of this release."""
        return replace(self, generation=self.generation + 1, release=ngramstore.__version__, **changes)

    def with_base(self, base: LayerEntry, **changes: Any) -> Manifest:
        """The manifest of the next generation, whose base holds what was in an overlay and a journal."""
        generation = self.generation + 1
        return self.next(
            base=base,
            base_generation=generation,
            overlay=None,
            tombstones=None,
            overlay_generation=generation,
            journal=numbered("journal", generation),
            **changes,
        )


def read_manifest(directory: Path) -> Manifest:
    """The current manifest of the store in `directory`.

    Raises NotAStore, IncompleteStore, UnsupportedVersion, DamagedStore, UsageError (no permission, too many open files).
    """
    path = directory / MANIFEST_NAME
    try:
        with our_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe would wait for a writer
    except FileNotFoundError:
        if (directory / BUILDING_NAME).exists():
            raise unfinished(directory) from None
        if not directory.exists():
            raise NotAStore(f"{directory} does not exist") from None
        raise NotAStore(f"{directory} holds no store: there is no file {MANIFEST_NAME} in it") from None
    except NotADirectoryError:
        raise NotAStore(f"{directory} is a file, not a directory") from None
    except OSError as error:
        raise NotAStore(f"cannot read {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotAStore(f"{path} is not a regular file")
        data, holes = read_around_holes(fd, MAX_BYTES + 1, 0)
    finally:
        os.close(fd)
    if holes:
        raise DamagedStore(f"{path}: byte {holes[0][0]:,} cannot be read")
    return decode_manifest(bytes(data), path)


def unfinished(directory: Path) -> IncompleteStore:
    """The error for a directory with a file BUILDING: what was at work there, as its first word says, and how it goes on."""
    try:
        with open(directory / BUILDING_NAME, "rb") as file:
            words = file.read(16).split()
    except OSError:
        words = []
    work = words[0].decode("ascii", "replace") if words else ""
    hint = _HINT_BY_WORK.get(work)
    return IncompleteStore(f"{directory}: its {work if hint else 'build'} never finished", hint=hint)


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """Parse the bytes of a manifest; any bytes at all give a Manifest or a FormatError."""
    first = _FIRST_LINE.match(data)
    if not first:
        raise NotAStore(f"{path} does not begin like a manifest: {data[:32]!r}")
    version, crc, size = int(first[1]), int(first[2], 16), int(first[3])
    if version != FORMAT_VERSION:
        raise UnsupportedVersion(f"{path} has format version {version}, this release reads {FORMAT_VERSION}")
    body = data[first.end() :]
    if len(body) != size or zlib.crc32(body) != crc:
        raise DamagedStore(f"{path} fails its checksum")
    try:
        return _from_json(json.loads(body))
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path} does not say what a manifest of version {version} must: {error!r}") from error


def _to_json(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.spec
    return {
        "release": manifest.release,
        "identity": manifest.identity,
        "generation": manifest.generation,
        "addressing": spec.addressing,
        "dim": spec.dim,
        "max_n": spec.max_n,
        "codec": spec.codec.spec(),
        "hash": {"name": HASH_NAME, "seed": str(spec.seed)},  # a string: JSON readers round large integers
        "has_tokens": spec.has_tokens,
        "metadata": spec.metadata,
        "num_rows": manifest.num_rows,
        "length_counts": list(manifest.length_counts),
        "suffix_closed": manifest.suffix_closed,
        "base": {"generation": manifest.base_generation, **manifest.base.to_json()},
        "overlay": {
            "generation": manifest.overlay_generation,
            "puts": manifest.overlay.to_json() if manifest.overlay else None,
            "tombstones": manifest.tombstones.to_json() if manifest.tombstones else None,
        },
        "journal": manifest.journal,
    }


def _from_json(value: dict[str, Any]) -> Manifest:
    if value["hash"]["name"] != HASH_NAME:
        raise UnsupportedVersion(
            f"the store's IDs are made by {value['hash']['name']!r}, this release knows {HASH_NAME!r}"
        )
    dim, max_n = as_count(value["dim"]), as_count(value["max_n"])
    if value["addressing"] not in ADDRESSINGS or not 1 <= max_n <= MAX_N or dim < 1:
        raise ValueError(f"addressing {value['addressing']!r}, dim {dim}, max_n {max_n}")
    seed = int(value["hash"]["seed"])
    if not 0 <= seed < 1 << 64 or not JOURNAL.fullmatch(value["journal"]):
        raise ValueError(f"seed {seed}, journal {value['journal']!r}")
    overlay = value["overlay"]
    length_counts = tuple(as_count(count) for count in value["length_counts"])
    if len(length_counts) != (max_n + 1 if value["addressing"] == "ngram" else 0):
        raise ValueError(f"{len(length_counts)} length_counts for n-grams of up to {max_n} tokens")
    for layer in (value["base"], overlay["puts"]):
        if layer and bool(layer.get("tokens")) != as_flag(value["has_tokens"]):
            raise ValueError(f"has_tokens is {value['has_tokens']}, a layer's tokens are {layer['tokens']!r:.100}")
    return Manifest(
        spec=Spec(
            addressing=value["addressing"],
            dim=dim,
            max_n=max_n,
            codec=codec_from_spec(value["codec"], dim),
            seed=seed,
            has_tokens=as_flag(value["has_tokens"]),
            metadata=dict(value["metadata"]),
        ),
        identity=str(uuid.UUID(value["identity"])),
        generation=as_count(value["generation"]),
        release=str(value["release"]),
        base=_base_from_json(value["base"]),
        base_generation=as_count(value["base"]["generation"]),
        overlay=LayerEntry.from_json(overlay["puts"]) if overlay["puts"] else None,
        tombstones=FileEntry.from_json(overlay["tombstones"]) if overlay["tombstones"] else None,
        overlay_generation=as_count(overlay["generation"]),
        num_rows=as_count(value["num_rows"]),
        length_counts=length_counts,
        suffix_closed=as_flag(value["suffix_closed"]),
        journal=value["journal"],
    )


def _base_from_json(value: dict[str, Any]) -> LayerEntry | ExternalEntry:
    return ExternalEntry.from_json(value) if "external" in value else LayerEntry.from_json(value)
