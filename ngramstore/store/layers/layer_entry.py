"""What a manifest says of a layer of rows in files of the store. Format: docs/format.md, section Manifest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ngramstore.errors import UnsupportedVersion
from ngramstore.store.layers.datafile import FileEntry
from ngramstore.store.layers.json_values import as_count


@dataclass(frozen=True, kw_only=True)
class LayerEntry:
    """The files of one layer of rows."""

    num_rows: int
    is_compressed: bool
    index: FileEntry
    rows: FileEntry
    tokens: FileEntry | None

    @property
    def files(self) -> list[FileEntry]:
        """All of them."""
        return [entry for entry in (self.index, self.rows, self.tokens) if entry is not None]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "num_rows": self.num_rows,
            "compression": "zstd" if self.is_compressed else "none",
            "index": self.index.to_json(),
            "rows": self.rows.to_json(),
            "tokens": self.tokens.to_json() if self.tokens else None,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LayerEntry:
        """Parse and check; UnsupportedVersion, FormatError, KeyError, TypeError or ValueError if it is wrong."""
        if value["compression"] not in ("none", "zstd"):
            raise UnsupportedVersion(
                f"the store's rows are compressed with {value['compression']!r}; this release knows zstd"
            )
        return cls(
            num_rows=as_count(value["num_rows"]),
            is_compressed=value["compression"] == "zstd",
            index=FileEntry.from_json(value["index"]),
            rows=FileEntry.from_json(value["rows"]),
            tokens=FileEntry.from_json(value["tokens"]) if value["tokens"] else None,
        )
