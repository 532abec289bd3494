"""What a manifest says of rows that lie in files of others: which files, how to know them again, where each row begins.

Format: docs/tables.md, section "What the manifest says". Nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ngramstore.errors import FormatError
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.layout import MAX_ROW_BYTES
from ngramstore.store.layers.datafile import FileEntry
from ngramstore.store.layers.json_values import as_count, as_decimal

MAX_SEGMENTS = 4096
MAX_PIECES = 2
"""A row is at most its codes and its scales."""
_MAX_INODE = (1 << 64) - 1
_MAX_TIME_NS = 1 << 94  # either way from 1970: a system counts seconds in 64 bits, signed


@dataclass(frozen=True)
class SourceEntry:
    """One file of others, absolute path, and what tells it from any other file: see `external.Source`."""

    path: str
    file_bytes: int
    header_digest: str
    sample_digest: str
    inode: int
    mtime_ns: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest; integers that may pass 2**53 are strings."""
        return {
            "path": self.path,
            "bytes": self.file_bytes,
            "header_digest": self.header_digest,
            "sample_digest": self.sample_digest,
            "inode": str(self.inode),
            "mtime_ns": str(self.mtime_ns),
        }


@dataclass(frozen=True)
class Piece:
    """A part of every row of a segment: row i is `row_bytes` at `offset + i * row_bytes` of a source."""

    source: int
    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Segment:
    """Consecutive rows that lie in the same tensors."""

    num_rows: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class ExternalEntry:
    """A base layer read in place; in a manifest where a `LayerEntry` could stand. `sums`: the sidecar of checksums."""

    sources: tuple[SourceEntry, ...]
    segments: tuple[Segment, ...]
    sums: FileEntry | None = None

    is_compressed = False
    tokens = None

    @property
    def num_rows(self) -> int:
        """Rows of all segments."""
        return sum(segment.num_rows for segment in self.segments)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, the same in every segment."""
        return sum(piece.row_bytes for piece in self.segments[0].pieces)

    @property
    def files(self) -> list[FileEntry]:
        """Files of the store itself."""
        return [self.sums] if self.sums else []

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "num_rows": self.num_rows,
            "external": {
                "sources": [source.to_json() for source in self.sources],
                "segments": [
                    [segment.num_rows, [[piece.source, piece.offset, piece.row_bytes] for piece in segment.pieces]]
                    for segment in self.segments
                ],
                "sums": self.sums.to_json() if self.sums else None,
            },
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ExternalEntry:
        """Parse and check every number against every other; FormatError, KeyError, TypeError or ValueError if it is wrong."""
        external = value["external"]
        entry = cls(
            sources=tuple(_source(item) for item in external["sources"]),
            segments=tuple(
                Segment(as_count(rows), tuple(Piece(*map(as_count, piece)) for piece in pieces))
                for rows, pieces in external["segments"][: MAX_SEGMENTS + 1]
            ),
            sums=FileEntry.from_json(external["sums"]) if external["sums"] else None,
        )
        entry.check()
        if entry.num_rows != value["num_rows"]:
            raise FormatError(f"the segments hold {entry.num_rows:,} rows, the manifest says {value['num_rows']!r}")
        return entry

    def check(self) -> None:
        """FormatError unless every row lies inside its files and all rows have one shape."""
        if not 1 <= len(self.segments) <= MAX_SEGMENTS or not self.sources:
            raise FormatError(f"{len(self.segments)} segments in {len(self.sources)} sources")
        if self.num_rows >= 1 << RANK_BITS:
            raise FormatError(f"{self.num_rows:,} rows in place; a layer holds fewer than 2**{RANK_BITS}")
        widths = {tuple(piece.row_bytes for piece in segment.pieces) for segment in self.segments}
        width = next(iter(widths))
        if len(widths) != 1 or not 1 <= len(width) <= MAX_PIECES or min(width) < 1 or sum(width) > MAX_ROW_BYTES:
            raise FormatError(f"rows in place have pieces of {sorted(widths)} bytes")
        for number, segment in enumerate(self.segments):
            if segment.num_rows < 1:
                raise FormatError(f"segment {number} has {segment.num_rows} rows")
            for piece in segment.pieces:
                if piece.source >= len(self.sources):
                    raise FormatError(f"segment {number} names source {piece.source} of {len(self.sources)}")
                end = piece.offset + segment.num_rows * piece.row_bytes
                if end > self.sources[piece.source].file_bytes:
                    raise FormatError(f"segment {number} ends at byte {end:,}, past its source")

    def ranges(self, source: int) -> list[tuple[int, int]]:
        """(begin, end) of the bytes that rows take in a source, in file order."""
        return sorted(
            (piece.offset, piece.offset + segment.num_rows * piece.row_bytes)
            for segment in self.segments
            for piece in segment.pieces
            if piece.source == source
        )


def _source(value: dict[str, Any]) -> SourceEntry:
    path, header, sample = value["path"], value["header_digest"], value["sample_digest"]
    if not all(isinstance(text, str) for text in (path, header, sample)) or "\0" in path or not path.startswith("/"):
        raise FormatError(f"the manifest names a source in a way this release does not understand: {value!r:.200}")
    inode = as_decimal(value["inode"], 0, _MAX_INODE)
    mtime_ns = as_decimal(value["mtime_ns"], -_MAX_TIME_NS, _MAX_TIME_NS)
    return SourceEntry(path, as_count(value["bytes"]), header, sample, inode, mtime_ns)
