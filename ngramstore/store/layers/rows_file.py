"""Packed rows: the file that holds every encoded row, each under its own checksum, readable alone.

Format: docs/format.md, section Rows. Rows lie in ID order (or by number). A stored row is its bytes, or one zstd frame of
them where that is smaller, and behind it the checksum of what is stored, seeded with the row's ID (or number): a row that
lies in the wrong place fails like a damaged one.

Shapes: M rows of a chunk, B bytes of an encoded row.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from ngramstore.codec.compress import RowDecompressor
from ngramstore.errors import DamagedStore
from ngramstore.layout import CHECKSUM_BYTES, KIND_ROWS, MAX_ROW_BYTES, PAGE_BYTES, ROWS_HEADER
from ngramstore.store.layers.datafile import DataFile, FileEntry, FileStamp


class RowsFile:
    """An open rows file: what the read kernels need to know of it, and the decompressor of its frames."""

    def __init__(
        self, directory: Path, entry: FileEntry, stamp: FileStamp, *, row_bytes: int, is_compressed: bool
    ) -> None:
        self.file = file = DataFile(directory, entry, ROWS_HEADER, KIND_ROWS, stamp)
        self.path = file.path
        self.num_rows = file.number("num_rows")
        self.row_bytes = file.number("row_bytes")
        self.data_at = file.number("data_at")
        self.is_compressed = is_compressed
        dictionary_bytes = file.number("dictionary_bytes")
        wanted_at = PAGE_BYTES + -(-dictionary_bytes // PAGE_BYTES) * PAGE_BYTES
        if (
            self.row_bytes != row_bytes
            or not 0 < row_bytes <= MAX_ROW_BYTES
            or file.number("compression") != int(is_compressed)
            or file.number("dictionary_at") != (PAGE_BYTES if dictionary_bytes else 0)
            or self.data_at != wanted_at
            or wanted_at > entry.file_bytes
            or (not is_compressed and entry.file_bytes != self.data_at + self.num_rows * (row_bytes + CHECKSUM_BYTES))
        ):
            raise DamagedStore(f"{file.path}: impossible sizes in the header: {file.header}")
        dictionary = file.read(PAGE_BYTES, dictionary_bytes)
        if zlib.crc32(dictionary) != file.number("dictionary_crc"):
            raise DamagedStore(f"{file.path}: the zstd dictionary at byte {PAGE_BYTES:,} fails its checksum")
        self.dictionary = dictionary if is_compressed else None
        self.decompressor = RowDecompressor(dictionary, row_bytes) if is_compressed else None
