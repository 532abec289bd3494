"""A layer read whatever state it is in: which rows are good for certain, under which ID, with which tokens.

What is stored twice repairs itself: an ID in the index is also the hash of the tokens and the seed of the row's checksum;
offsets follow from lengths, and lengths from checksums. Only what no copy vouches for is lost.

Shapes: N rows of the layer, M rows of a chunk, B bytes of an encoded row, K longest n-gram.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import DICTIONARY_BYTES, RowDecompressor
from ngramstore.errors import FormatError
from ngramstore.hashing import checksums
from ngramstore.layout import (
    BLOCK_ROWS,
    CHECKSUM_BYTES,
    KIND_ROWS,
    PAGE_BYTES,
    ROWS_HEADER,
)
from ngramstore.store.layers.datafile import NO_CONTENT, FileStamp, content_digest
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.repair.mending import mended_crc
from ngramstore.store.repair.raw_file import RawFile, find_length
from ngramstore.store.repair.row_faults import RowFaults
from ngramstore.store.repair.worn_index import WornIndex
from ngramstore.store.repair.worn_tokens import WornTokens

_CHUNK_BYTES = 16 << 20


@dataclass
class Chunk:
    """M consecutive rows. `is_good`: the bytes are certain. `has_id`: the ID is. `has_tokens`: tokens are, and hash to it."""

    first: int
    ids: np.ndarray
    has_id: np.ndarray
    rows: np.ndarray
    is_good: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    has_tokens: np.ndarray


class WornLayer:
    """A layer in any state. `chunks` reads all of it; what is wrong goes to `faults` on the way."""

    def __init__(self, directory: Path, entry: LayerEntry, stamp: FileStamp, spec: Spec, *, is_keyed: bool) -> None:
        self.num_rows = entry.num_rows
        self.row_bytes = spec.codec.row_bytes
        self.is_compressed = entry.is_compressed
        self._is_keyed = is_keyed
        self.index = WornIndex(
            directory, entry.index, stamp, entry.num_rows, is_keyed=is_keyed, is_sized=entry.is_compressed
        )
        self.faults = self.index.faults
        self._file = RawFile(directory, entry.rows, self.faults)
        self._fits = self._is_possible(entry)
        self.dictionary: bytes | None = b""
        self.data_at = self._open_rows(stamp)
        self._decompressor = (
            RowDecompressor(self.dictionary, self.row_bytes)
            if self.is_compressed and self.dictionary is not None
            else None
        )
        self.tokens = (
            WornTokens(directory, entry.tokens, stamp, spec, entry.num_rows, self.faults) if entry.tokens else None
        )
        self.num_told = self._num_told()
        if self.num_told < self.num_rows:
            self._file.fault(None, f"rows {self.num_told} to {self.num_rows - 1} are in none of the layer's files")
        self._is_told = self.num_told == self.num_rows
        if not self._fits:
            self.num_rows = self.num_told
        self._end: int | None = self.data_at
        self._content, self._is_whole = content_digest(), self._is_told

    def _open_rows(self, stamp: FileStamp) -> int:
        """Check the header and the dictionary; returns where the first row is."""
        file = self._file
        fields, _ = file.header(ROWS_HEADER, KIND_ROWS, stamp, self._header_choices())
        size, data_at = fields["dictionary_bytes"], fields["data_at"]
        if size:
            dictionary = file.read(PAGE_BYTES, size)
            if zlib.crc32(dictionary) != fields["dictionary_crc"]:
                self.dictionary = mended_crc(dictionary, fields["dictionary_crc"])
                what = "beyond mending: compressed rows are lost" if self.dictionary is None else "in one bit"
                file.fault(PAGE_BYTES, f"the zstd dictionary is damaged {what}")
            else:
                self.dictionary = dictionary
            file.check_zeros(PAGE_BYTES + size, data_at)
        if not self.is_compressed:
            wanted = data_at + self.num_rows * (self.row_bytes + CHECKSUM_BYTES)
            if wanted != file.entry.file_bytes:
                file.fault(None, f"the manifest says {file.entry.file_bytes} bytes, its rows take {wanted}")
        return data_at

    def _header_choices(self) -> Iterator[dict[str, int]]:
        """Headers there may be: the size of the dictionary is what the manifest does not tell."""
        yield self._header_fields(0, 0)
        if not self.is_compressed or not self._fits:
            return
        crc = 0
        sample = self._file.read(PAGE_BYTES, DICTIONARY_BYTES)
        page = self._file.read(0, PAGE_BYTES)
        claimed = ROWS_HEADER.unpack(page[: ROWS_HEADER.size])
        size, claimed_crc = int(claimed["dictionary_bytes"]), int(claimed["dictionary_crc"])
        if size <= DICTIONARY_BYTES:
            yield self._header_fields(size, claimed_crc)
        for size in range(1, DICTIONARY_BYTES + 1):
            crc = zlib.crc32(sample[size - 1 : size], crc)
            yield self._header_fields(size, crc)

    def _header_fields(self, dictionary_bytes: int, dictionary_crc: int) -> dict[str, int]:
        return {
            "num_rows": self.num_rows,
            "row_bytes": self.row_bytes,
            "compression": int(self.is_compressed),
            "data_at": PAGE_BYTES + -(-dictionary_bytes // PAGE_BYTES) * PAGE_BYTES,
            "dictionary_at": PAGE_BYTES if dictionary_bytes else 0,
            "dictionary_bytes": dictionary_bytes,
            "dictionary_crc": dictionary_crc,
        }

    @property
    def _least_bytes(self) -> int:
        """What a row takes in the rows file, at least."""
        return CHECKSUM_BYTES + (1 if self.is_compressed else self.row_bytes)

    def _num_told(self) -> int:
        """Rows of which some file, as large as it really is, may tell something: no number is taken on the manifest's word."""
        if self.index.is_usable and (self._is_keyed or self.is_compressed):
            return self.num_rows
        in_rows = -(-max(0, self._file.size - self.data_at) // self._least_bytes)
        return min(self.num_rows, max(in_rows, 0 if self.tokens is None else self.tokens.most_rows))

    def _is_possible(self, entry: LayerEntry) -> bool:
        """Whether the files could hold so many rows, if they were as large as the manifest says."""
        needed = PAGE_BYTES + self.num_rows * self._least_bytes
        return needed <= entry.rows.file_bytes and self.index.plan.file_bytes == entry.index.file_bytes

    def close(self) -> None:
        """Let go of all files, so that they can be removed."""
        self.index.close()
        self._file.close()
        if self.tokens is not None:
            self.tokens.close()

    def chunks(self, *, all_rows: bool = False) -> Iterator[Chunk]:
        """All rows in order, some megabytes at a time; those of which no file tells anything only with `all_rows`."""
        self._end = self.data_at
        self._content, self._is_whole = content_digest(), self._is_told
        self._row_faults = RowFaults(self._file.entry.name, self.faults, is_keyed=self._is_keyed)
        step = max(BLOCK_ROWS, _CHUNK_BYTES // self.row_bytes // BLOCK_ROWS * BLOCK_ROWS)
        num_rows = self.num_rows if all_rows else self.num_told
        for first in range(0, num_rows, step):
            yield self._chunk(first, min(step, num_rows - first))
        if self.is_compressed and self._end is not None and self._end != self._file.entry.file_bytes:
            self._file.fault(self._end, "there is more behind the last row")
        if self._is_whole and self._file.entry.content not in (NO_CONTENT, self._content.digest()):
            self._file.fault(self.data_at, "these are not the rows that the manifest names")

    def _chunk(self, first: int, count: int) -> Chunk:
        ids, has_id = self.index.ids(first, count)
        tokens, lengths = np.zeros((count, 0), np.uint32), np.zeros(count, np.uint8)
        has_tokens = np.zeros(count, bool)
        if self.tokens is not None:
            tokens, lengths, has_tokens, token_ids = self.tokens.read(first, ids, has_id)
            ids = np.where(has_tokens, token_ids, ids)
            has_id = has_id | has_tokens
        starts, sizes, is_placed = self._places(first, ids)
        rows, is_good = self._read(first, ids, has_id, starts, sizes, is_placed)
        return Chunk(first, ids, has_id | is_good, rows, is_good, tokens, lengths, has_tokens)

    def _places(self, first: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where rows are stored, their stored bytes, and whether that is known."""
        count, gap = len(ids), CHECKSUM_BYTES
        if not self.is_compressed:
            starts = self.data_at + np.arange(first, first + count) * (self.row_bytes + gap)
            return starts, np.full(count, self.row_bytes), np.ones(count, bool)
        sizes, has_size, offsets, has_offset = self.index.sizes(first, count)
        sizes = np.where(sizes <= self.row_bytes, sizes, 0)
        has_size &= sizes > 0
        if has_size.all() and has_offset.all():
            ends = offsets[0] + np.cumsum(sizes + gap)
            starts = np.append(offsets[0], ends[:-1])
            if offsets[0] == self._end and (starts[::BLOCK_ROWS] == offsets).all():
                self._end = int(ends[-1])
                return starts, sizes, np.ones(count, bool)
        starts, is_placed = np.zeros(count, np.int64), np.zeros(count, bool)
        for block in range(len(offsets)):
            part = slice(block * BLOCK_ROWS, min(count, (block + 1) * BLOCK_ROWS))
            at = int(offsets[block]) if has_offset[block] else self._end
            if has_offset[block] and not self._may_begin_at(at):
                number, instead = first // BLOCK_ROWS + block, "" if self._end is None else f", not {self._end}"
                self.index.file.fault(None, f"block {number} is said to begin at byte {at} of the rows{instead}")
                at = self._end
            for row in range(part.start, part.stop) if not has_size[part].all() else ():
                if at is None:
                    break
                found = (
                    int(sizes[row])
                    if has_size[row]
                    else find_length(self._file.array(at, self.row_bytes + gap), int(ids[row]))
                )
                if found is None:
                    at = None
                    break
                sizes[row], starts[row], is_placed[row] = found, at, True
                at += found + gap
            if has_size[part].all() and at is not None:
                ends = np.cumsum(sizes[part] + gap)
                starts[part] = at + np.append(0, ends[:-1])
                is_placed[part] = True
                at += int(ends[-1])
            self._end = at
        return starts, sizes, is_placed

    def _may_begin_at(self, place: int | None) -> bool:
        """Whether the index may be right that a block begins there: where the last row ended, where that is known."""
        if self._end is not None:
            return place == self._end
        return place is not None and self.data_at <= place <= self._file.entry.file_bytes

    def _read(
        self,
        first: int,
        ids: np.ndarray,
        has_id: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        is_placed: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        count = len(ids)
        rows, is_good = np.zeros((count, self.row_bytes), np.uint8), np.zeros(count, bool)
        is_as_written = is_good.copy()
        inside = is_placed & (starts >= self.data_at) & (starts + sizes + CHECKSUM_BYTES <= self._file.size)
        at = np.flatnonzero(inside)
        if len(at):
            begin, end = int(starts[at].min()), int((starts[at] + sizes[at]).max()) + CHECKSUM_BYTES
            if end - begin > 2 * _CHUNK_BYTES + count * (self.row_bytes + CHECKSUM_BYTES):
                self._file.fault(begin, f"rows {first} and on lie impossibly far apart")
                self._is_whole = False
                return rows, is_good
            data = self._file.array(begin, end - begin)
            inner = starts[at] - begin
            sums = data[(inner + sizes[at])[:, None] + np.arange(CHECKSUM_BYTES)].reshape(-1).view("<u4")
            is_good[at] = sums == checksums(data, inner, sizes[at], ids[at])
            self._content.update(sums.data)
            is_as_written = is_good.copy()
            self._unpack(first, data, starts - begin, sizes, rows, is_good)
        self._is_whole &= bool(is_good.all())
        is_wrong = ~is_as_written & has_id  # what passes its checksum and is no frame has a line of its own
        self._row_faults.add(first, ids, starts, is_wrong=is_wrong, is_placed=is_placed, is_inside=inside)
        return rows, is_good

    def _unpack(
        self,
        first: int,
        data: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        rows: np.ndarray,
        is_good: np.ndarray,
    ) -> None:
        """Good stored rows -> rows; one that is no frame is not good after all."""
        raw = np.flatnonzero(is_good & (sizes == self.row_bytes))
        if len(raw):
            rows[raw] = np.lib.stride_tricks.sliding_window_view(data, self.row_bytes)[starts[raw]]
        packed = np.flatnonzero(is_good & (sizes < self.row_bytes))
        if not len(packed):
            return
        if self._decompressor is None:
            is_good[packed] = False
            return
        try:
            rows[packed] = self._decompressor.decompress(data, starts[packed], sizes[packed])
            return
        except FormatError:
            pass
        for row in packed.tolist():
            one = slice(row, row + 1)
            try:
                rows[one] = self._decompressor.decompress(data, starts[one], sizes[one])
            except FormatError as error:
                is_good[row] = False
                self._file.fault(
                    None, f"row {first + row} passes its checksum and does not decompress: {error.message}"
                )
