"""What index, rows and tokens files have in common: a checked header page, and opening by what the manifest says.

Format: docs/format.md, section Files. A header page is its fields, zeros, and the CRC-32 of all that in its last 4 bytes.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import uuid
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ngramstore.errors import DamagedStore, FormatError, UnsupportedVersion
from ngramstore.files import OwnsFd, our_errors, read_exactly, read_into
from ngramstore.layout import CONTENT_BYTES, FORMAT_VERSION, KIND_ROWS, MAGIC, PAGE_BYTES, ROWS_HEADER, Layout
from ngramstore.store.layers.in_use import lock_shared

_CRC = struct.Struct("<I")
_BARE_NAME = re.compile(r"[a-z]+-[0-9]{6,20}\.[a-z]+")
_CONTENT = re.compile(rf"[0-9a-f]{{{2 * CONTENT_BYTES}}}")
_MAX_FILE_BYTES = 1 << 62
NO_CONTENT = bytes(CONTENT_BYTES)
"""The digest of a file whose writer made none."""


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest names it. `content` tells files of one name and size from two histories of a store apart."""

    name: str
    file_bytes: int
    header_crc: int
    content: bytes = NO_CONTENT

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        content = {} if self.content == NO_CONTENT else {"content": self.content.hex()}
        return {"name": self.name, "bytes": self.file_bytes, "header_crc": self.header_crc, **content}

    @classmethod
    def from_json(cls, value: Any) -> FileEntry:
        """Parse and check; FormatError if it is not a bare name, a size and a checksum."""
        if not (
            isinstance(value, dict)
            and isinstance(value.get("name"), str)
            and _BARE_NAME.fullmatch(value["name"])
            and isinstance(value.get("bytes"), int)
            and isinstance(value.get("header_crc"), int)
            and PAGE_BYTES <= value["bytes"] < _MAX_FILE_BYTES
            and 0 <= value["header_crc"] < 1 << 32
            and _CONTENT.fullmatch(value.get("content", NO_CONTENT.hex()))
        ):
            raise FormatError(f"the manifest names a file in a way this release does not understand: {value!r:.200}")
        content = bytes.fromhex(value.get("content", NO_CONTENT.hex()))
        return cls(value["name"], value["bytes"], value["header_crc"], content)


@dataclass(frozen=True)
class FileStamp:
    """What every file of one generation carries in its header."""

    identity: bytes
    generation: int

    @classmethod
    def of(cls, identity: str, generation: int) -> FileStamp:
        """Of a store with this UUID."""
        return cls(uuid.UUID(identity).bytes, generation)


def content_digest() -> Any:
    """A hash to feed the checksums behind a header to, in file order: it stands for all that they cover."""
    return blake2b(digest_size=CONTENT_BYTES)


class Ending(Protocol):
    """What the end of a file needs of its writer: where it is, and how to write the header and make all of it durable."""

    @property
    def path(self) -> Path: ...
    @property
    def position(self) -> int: ...
    def rewrite(self, position: int, data: bytes) -> None: ...
    def finish(self) -> int: ...


def finish_file(
    writer: Ending, layout: Layout, stamp: FileStamp, kind: int, content: bytes, **fields: int
) -> FileEntry:
    """Write the header page of a file whose other pages are written, make it durable, and say how to name it."""
    page = header_page(layout, stamp, kind, writer.position, content, **fields)
    writer.rewrite(0, page)
    file_bytes = writer.finish()
    return FileEntry(writer.path.name, file_bytes, header_crc(page), content)


def finish_rows(
    writer: Ending,
    stamp: FileStamp,
    content: bytes,
    *,
    num_rows: int,
    row_bytes: int,
    data_at: int,
    dictionary: bytes | None,
) -> FileEntry:
    """`finish_file` of a rows file; without a dictionary its rows are not compressed. It lies behind the header, before
    the rows."""
    return finish_file(
        writer,
        ROWS_HEADER,
        stamp,
        KIND_ROWS,
        content,
        num_rows=num_rows,
        row_bytes=row_bytes,
        compression=0 if dictionary is None else 1,
        data_at=data_at,
        dictionary_at=PAGE_BYTES if dictionary else 0,
        dictionary_bytes=len(dictionary or b""),
        dictionary_crc=zlib.crc32(dictionary or b""),
    )


def header_page(layout: Layout, stamp: FileStamp, kind: int, file_bytes: int, content: bytes, **fields: int) -> bytes:
    """The header page of a file: its fields, zeros, and their CRC-32."""
    body = layout.pack(
        magic=MAGIC,
        version=FORMAT_VERSION,
        kind=kind,
        reserved=0,
        identity=stamp.identity,
        generation=stamp.generation,
        file_bytes=file_bytes,
        content=content,
        **fields,
    ).ljust(PAGE_BYTES - _CRC.size, b"\0")
    return body + _CRC.pack(zlib.crc32(body))


def header_crc(page: bytes) -> int:
    """The checksum in a header page, which the manifest repeats."""
    return _CRC.unpack(page[-_CRC.size :])[0]


def _open_unfollowed(path: Path) -> int:
    """A descriptor for reading. A link in the place of a data file is damage, whatever it leads to."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedStore(f"cannot open {path}: it is a link") from error
        raise


class DataFile(OwnsFd):
    """An open, checked file: `fd`, `path`, `header` fields. Closed when the last user lets go of it."""

    def __init__(self, directory: Path, entry: FileEntry, layout: Layout, kind: int, stamp: FileStamp) -> None:
        self.path = directory / entry.name
        try:
            with our_errors(self.path):
                self.fd = _open_unfollowed(self.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedStore(f"cannot open {self.path}: {error.strerror}") from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedStore(f"{self.path} is not a regular file")
        if status.st_size != entry.file_bytes:
            raise DamagedStore(f"{self.path} has {status.st_size:,} bytes, the manifest says {entry.file_bytes:,}")
        lock_shared(self.fd)
        page = read_exactly(self.fd, PAGE_BYTES, 0, self.path)
        self.header = check_header(page, layout, kind, self.path)
        for what, got, wanted in (
            ("header checksum", header_crc(page), entry.header_crc),
            ("store identity", self.header["identity"], stamp.identity),
            ("generation", self.header["generation"], stamp.generation),
            ("file size", self.header["file_bytes"], entry.file_bytes),
            ("content", self.header["content"], entry.content),
        ):
            if got != wanted:
                raise DamagedStore(f"{self.path} is not the file the manifest names: {what} {got!r}, wanted {wanted!r}")

    def number(self, field: str) -> int:
        """An integer field of the header."""
        value = self.header[field]
        assert isinstance(value, int)
        return value

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes at `position`; DamagedStore if the file has been cut since it was opened."""
        return read_exactly(self.fd, size, position, self.path)

    def array(self, position: int, size: int) -> np.ndarray:
        """The same as an array of its own, (size,) u8, read in pieces: as much memory as it is long."""
        out_B = np.empty(size, np.uint8)
        read_into(self.fd, out_B, position, self.path)
        return out_B


def check_header(page: bytes, layout: Layout, kind: int, path: Path) -> dict[str, int | bytes]:
    """Fields of a header page, or a FormatError that says which check failed."""
    fields = layout.unpack(page[: layout.size])
    if fields["magic"] != MAGIC:
        raise DamagedStore(f"{path} does not begin like a file of a store: {page[:8]!r}")
    if fields["version"] != FORMAT_VERSION:
        raise UnsupportedVersion(
            f"{path} has format version {fields['version']!r}, this release reads {FORMAT_VERSION}"
        )
    if zlib.crc32(page[: -_CRC.size]) != header_crc(page):
        raise DamagedStore(f"{path}: the header page (bytes 0 to {PAGE_BYTES - 1}) fails its checksum")
    if fields["kind"] != kind:
        raise DamagedStore(f"{path} is a file of kind {fields['kind']!r}, wanted {kind}")
    return fields
