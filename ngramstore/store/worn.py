"""A layer read whatever state it is in: which rows are good for certain, under which ID, with which tokens.

What is stored twice repairs itself: an ID in the index is also the hash of the tokens and the seed of the row's checksum;
offsets follow from lengths, and lengths from checksums. Only what no copy vouches for is lost.

Shapes: N rows of the layer, M rows of a chunk, B bytes of an encoded row, K longest n-gram.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.codec.compress import DICTIONARY_BYTES, RowDecompressor
from ngramstore.errors import FormatError
from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as native
from ngramstore.layout import (
    BLOCK_ROWS,
    CHECKSUM_BYTES,
    INDEX_HEADER,
    KIND_INDEX,
    KIND_ROWS,
    PAGE_BYTES,
    ROWS_HEADER,
)
from ngramstore.store.datafile import NO_CONTENT, FileEntry, FileStamp, content_digest
from ngramstore.store.index import GROUP_BITS, Index, IndexPlan, index_content, page_checksums
from ngramstore.store.manifest import LayerEntry, Spec
from ngramstore.store.salvage import Fault, RawFile, find_length, mended_crc, mended_piece
from ngramstore.store.worn_tokens import WornTokens

_CHUNK_BYTES = 16 << 20
_MOST_MENDED = 16  # pages: trying each of 32,768 bits takes about a tenth of a second


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


class WornIndex:
    """An index file in any state: IDs and places, and which of them lie on good pages."""

    def __init__(
        self,
        directory: Path,
        entry: FileEntry,
        stamp: FileStamp,
        num_rows: int | None,
        *,
        is_keyed: bool,
        is_sized: bool,
    ) -> None:
        """num_rows None: as many as the header says (of tombstones the manifest does not tell)."""
        self.faults: list[Fault] = []
        self.file = file = RawFile(directory, entry, self.faults)
        counts = _counts_of_size(file) if num_rows is None else [num_rows]
        choices = (IndexPlan(count, is_keyed, is_sized, GROUP_BITS).header_fields() for count in counts)
        num_rows = file.header(INDEX_HEADER, KIND_INDEX, stamp, choices)[0]["num_rows"]
        self.plan = plan = IndexPlan(num_rows, is_keyed, is_sized, GROUP_BITS)
        self._sections = plan.sections()
        self._data = self._bytes()
        self.index = Index(plan, self._data, is_verified=True, name=entry.name)
        if plan.file_bytes != entry.file_bytes:
            file.fault(
                None, f"the manifest says {entry.file_bytes} bytes, an index of {num_rows} rows has {plan.file_bytes}"
            )
        self._num_mended = 0
        self._is_bad = self._check_pages()
        if not self._is_bad.any():
            self._check_padding()

    def _bytes(self) -> np.ndarray:
        size = self.plan.file_bytes
        if self.file.size == size and size:
            return np.frombuffer(mmap.mmap(self.file.fd, size, access=mmap.ACCESS_COPY), np.uint8)
        return self.file.array(0, size).copy()

    def _check_pages(self) -> np.ndarray:
        """Which pages are bad: (pages of the sections + 1,) bool, page 0 is the header."""
        position, size = self._sections["checksums"]
        got = page_checksums(self._data[PAGE_BYTES:position], 1)
        table = self._data[position : position + size - CHECKSUM_BYTES].view("<u4")
        is_bad = np.concatenate([[False], got != table])
        crc = int.from_bytes(self._data[position + size - CHECKSUM_BYTES : position + size].tobytes(), "little")
        content = self.file.entry.content
        right = got.astype("<u4").tobytes()
        if zlib.crc32(table.tobytes()) != crc:
            if zlib.crc32(right) == crc or index_content(right) == content:  # the pages are what the table once said
                is_bad[:] = False
            self.file.fault(position, "the table of page checksums fails its own")
        elif content not in (NO_CONTENT, index_content(table.tobytes())):
            self.file.fault(position, "these are not the pages that the manifest names")
        for page in np.flatnonzero(is_bad).tolist():
            at = page * PAGE_BYTES
            self.file.fault(at, f"page {page} fails its checksum")
            if self._num_mended < _MOST_MENDED and self.file.size == self.plan.file_bytes:
                self._num_mended += 1
                right = mended_piece(self._data[at : at + PAGE_BYTES], page, int(table[page - 1]))
                if right is not None:
                    self._data[at : at + PAGE_BYTES] = right
                    is_bad[page] = False
        return is_bad

    def _check_padding(self) -> None:
        for name, (position, size) in self._sections.items():
            used = size - (8 if name == "low_bits" and size else 0)
            if name != "checksums":
                self.file.check_zeros(position + used, position + -(-size // PAGE_BYTES) * PAGE_BYTES)

    def _is_on_good_pages(self, section: str, first_M: np.ndarray, last_M: np.ndarray) -> np.ndarray:
        """Whether bytes first to last of a section lie on good pages; a value touches two pages at most."""
        at = self._sections[section][0]
        return ~(self._is_bad[(at + first_M) // PAGE_BYTES] | self._is_bad[(at + last_M) // PAGE_BYTES])

    def ids(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What the planes say, and whether all pages that say it are good: (M,) u64 and (M,) bool."""
        ranks = np.arange(first, first + count)
        if not self.plan.is_keyed:
            return ranks.astype(np.uint64), np.ones(count, bool)
        begin, end = (self._sections[name][0] // PAGE_BYTES for name in ("groups", "remainders"))
        if self._is_bad[begin:end].any():
            sure = np.zeros(count, bool)
        else:
            bits = ranks * self.plan.low_bits
            sure = self._is_on_good_pages("remainders", 4 * ranks, 4 * ranks + 3)
            sure &= self._is_on_good_pages("low_bits", bits >> 3, (bits + self.plan.low_bits) >> 3)
        return self.index.ids(first, count), sure

    def sizes(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lengths of M rows and offsets of their blocks, each with whether its page is good."""
        ranks = np.arange(first, first + count)
        blocks = np.arange(first // BLOCK_ROWS, (first + count - 1) // BLOCK_ROWS + 1)
        at, size = self._sections["lengths"]
        lengths = self._data[at : at + size].view("<u2")[first : first + count].astype(np.int64)
        at, size = self._sections["offsets"]
        offsets = self._data[at : at + size].view("<u8")[blocks[0] : blocks[-1] + 1].astype(np.int64)
        return (
            lengths,
            self._is_on_good_pages("lengths", 2 * ranks, 2 * ranks + 1),
            offsets,
            self._is_on_good_pages("offsets", 8 * blocks, 8 * blocks + 7),
        )

    def close(self) -> None:
        """Let go of the file."""
        self._data = self.index = None  # type: ignore[assignment]
        self.file.close()

    def check_order(self) -> None:
        """Fault where the IDs do not ascend, or are not found where they are. Only of use when no page is bad."""
        if not self.plan.is_keyed or self._is_bad.any():
            return
        last, step = -1, 1 << 20
        for first in range(0, self.plan.num_rows, step):
            ids = self.index.ids(first, min(step, self.plan.num_rows - first))
            wrong = np.flatnonzero(ids[1:] <= ids[:-1]) + 1
            if len(wrong) or int(ids[0]) <= last:
                rank = first + (int(wrong[0]) if len(wrong) else 0)
                self.file.fault(
                    self._sections["remainders"][0] + 4 * rank, f"the ID of rank {rank} is not above the one before"
                )
                return
            keys = np.empty(len(ids), np.int64)
            done = native.find(self.index.layer[None], ids, keys)
            if done < len(ids) or (keys != np.arange(first, first + len(ids))).any():
                self.file.fault(
                    self._sections["directory"][0], f"IDs from rank {first} on are not found by the directory"
                )
                return
            last = int(ids[-1])


def _counts_of_size(file: RawFile) -> Iterator[int]:
    """How many IDs a tombstone file of this size may hold: what its header claims, then all others."""

    def size(count: int) -> int:
        return IndexPlan(count, is_keyed=True, is_sized=False).file_bytes

    claimed = int(INDEX_HEADER.unpack(file.read(0, INDEX_HEADER.size))["num_rows"])
    if claimed < file.entry.file_bytes and size(claimed) == file.entry.file_bytes:
        yield claimed
    low, high = 0, file.entry.file_bytes
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= file.entry.file_bytes else (low, middle)
    yield low
    near = range(
        max(0, low - 2 * PAGE_BYTES), low + 2 * PAGE_BYTES
    )  # sizes rise with counts but for a page here and there
    yield from (count for count in near if size(count) == file.entry.file_bytes)


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
        self._end: int | None = self.data_at
        self._content, self._is_whole = content_digest(), True

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
        if not self.is_compressed:
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

    def close(self) -> None:
        """Let go of all files, so that they can be removed."""
        self.index.close()
        self._file.close()
        if self.tokens is not None:
            self.tokens.close()

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, some megabytes at a time."""
        self._end = self.data_at
        self._content, self._is_whole = content_digest(), True
        step = max(BLOCK_ROWS, _CHUNK_BYTES // self.row_bytes // BLOCK_ROWS * BLOCK_ROWS)
        for first in range(0, self.num_rows, step):
            yield self._chunk(first, min(step, self.num_rows - first))
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
            if has_offset[block] and self._end not in (None, at):
                self.index.file.fault(
                    None,
                    f"block {first // BLOCK_ROWS + block} is said to begin at byte {at} of the rows, not {self._end}",
                )
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
        inside = is_placed & (starts >= self.data_at) & (starts + sizes + CHECKSUM_BYTES <= self._file.size)
        at = np.flatnonzero(inside)
        if len(at):
            begin, end = int(starts[at].min()), int((starts[at] + sizes[at]).max()) + CHECKSUM_BYTES
            if end - begin > 2 * _CHUNK_BYTES + count * (self.row_bytes + CHECKSUM_BYTES):
                self._file.fault(begin, f"rows {first} and on lie impossibly far apart")
                return rows, is_good
            data = self._file.array(begin, end - begin)
            inner = starts[at] - begin
            sums = data[(inner + sizes[at])[:, None] + np.arange(CHECKSUM_BYTES)].reshape(-1).view("<u4")
            is_good[at] = sums == checksums(data, inner, sizes[at], ids[at])
            self._content.update(sums.data)
            self._unpack(first, data, starts - begin, sizes, rows, is_good)
        self._is_whole &= bool(is_good.all())
        for row in np.flatnonzero(~is_good & has_id).tolist():
            where = int(starts[row]) if is_placed[row] else None
            key = f" (ID 0x{int(ids[row]):016x})" if self._is_keyed else ""
            if where is None:
                what = "cannot be found"
            elif not inside[row]:
                what = "is cut off"
            else:
                what = "fails its checksum"
            self._file.fault(where, f"row {first + row}{key} {what}")
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
        unpacked = np.empty((len(packed), self.row_bytes), np.uint8)
        try:
            self._decompressor.decompress(data, starts[packed], sizes[packed], unpacked)
            rows[packed] = unpacked
            return
        except FormatError:
            pass
        for row in packed.tolist():
            one = slice(row, row + 1)
            try:
                self._decompressor.decompress(data, starts[one], sizes[one], rows[one])
            except FormatError as error:
                is_good[row] = False
                self._file.fault(
                    None, f"row {first + row} passes its checksum and does not decompress: {error.message}"
                )
