"""An index file in any state: which IDs and places it gives are certain, because they lie on pages that are.

A page with one flipped bit is mended; of the others nothing is believed. Of a file that does not have the size which its number
of rows gives, or is cut before the checksums of its pages, nothing is read: no size is taken on anybody's word.

Shapes: N rows of the index, M rows of a chunk.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ngramstore.files import our_errors
from ngramstore.kernels.native import probe
from ngramstore.layout import (
    BLOCK_ROWS,
    CHECKSUM_BYTES,
    INDEX_HEADER,
    KIND_INDEX,
    PAGE_BYTES,
)
from ngramstore.store.layers.datafile import NO_CONTENT, FileEntry, FileStamp
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.index_plan import GROUP_BITS, SPARE_BYTES, IndexPlan, index_content, page_checksums
from ngramstore.store.repair.mending import mended_piece
from ngramstore.store.repair.raw_file import Fault, RawFile

_MOST_MENDED = 16  # pages: trying each of 32,768 bits takes about a tenth of a second


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
        plans = (IndexPlan(count, is_keyed, is_sized, GROUP_BITS) for count in counts)
        choices = (plan.header_fields() for plan in plans if plan.file_bytes <= entry.file_bytes)
        num_rows = file.header(INDEX_HEADER, KIND_INDEX, stamp, choices)[0].get("num_rows", num_rows or 0)
        self.plan = plan = IndexPlan(num_rows, is_keyed, is_sized, GROUP_BITS)
        self._sections = plan.sections()
        self._num_mended = 0
        if plan.file_bytes != entry.file_bytes:
            file.fault(
                None, f"the manifest says {entry.file_bytes} bytes, an index of {num_rows} rows has {plan.file_bytes}"
            )
        self.is_usable = plan.file_bytes == entry.file_bytes and file.size > self._sections["checksums"][0]
        """Whether the file is there, so far that its pages can be checked; else no ID and no place is certain."""
        if not self.is_usable:
            return
        self._data = self._bytes()
        self.index = Index(plan, self._data, is_verified=True, name=entry.name)
        self._is_bad = self._check_pages()
        if not self._is_bad.any():
            self._check_padding()

    def _bytes(self) -> np.ndarray:
        """Mapped where every byte can be read, so that the memory of an index of gigabytes can be given back; else a copy."""
        size = self.plan.file_bytes
        if self.file.size == size and self.file.is_readable():
            with our_errors(self.file.path):
                return np.frombuffer(mmap.mmap(self.file.fd, size, access=mmap.ACCESS_COPY), np.uint8)
        return self.file.array(0, size)

    def _check_pages(self) -> np.ndarray:
        """Which pages are bad: (pages of the sections + 1,) bool, page 0 is the header."""
        position, size = self._sections["checksums"]
        got = page_checksums(self._data[PAGE_BYTES:position], 1)
        table = self._data[position : position + size - CHECKSUM_BYTES].view("<u4")
        is_bad = np.concatenate([[False], got != table])
        crc = int.from_bytes(self._data[position + size - CHECKSUM_BYTES : position + size].tobytes(), "little")
        content = self.file.entry.content
        expected = got.astype("<u4").tobytes()
        if zlib.crc32(table.tobytes()) != crc:
            if (
                zlib.crc32(expected) == crc or index_content(expected) == content
            ):  # the pages are what the table once said
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
            used = size - (SPARE_BYTES if name == "low_bits" and size else 0)
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
        if not self.is_usable:
            return np.zeros(count, np.uint64), np.zeros(count, bool)
        begin, end = (self._sections[name][0] // PAGE_BYTES for name in ("groups", "remainders"))
        if self._is_bad[begin:end].any():
            sure = np.zeros(count, bool)
        else:
            bits = ranks * self.plan.low_bits
            sure = self._is_on_good_pages("remainders", 4 * ranks, 4 * ranks + 3)
            sure &= self._is_on_good_pages("low_bits", bits >> 3, (bits + self.plan.low_bits) >> 3)
        return self.index.ids(first, count), sure

    def all_ids(self) -> tuple[np.ndarray, int]:
        """All IDs that are certain, (M,) u64, and how many are not."""
        if not self.is_usable:
            return np.empty(0, np.uint64), self.plan.num_rows
        ids, is_sure = self.ids(0, self.plan.num_rows)
        return ids[is_sure], int((~is_sure).sum())

    def sizes(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lengths of M rows and offsets of their blocks, each with whether its page is good."""
        ranks = np.arange(first, first + count)
        blocks = np.arange(first // BLOCK_ROWS, (first + count - 1) // BLOCK_ROWS + 1)
        if not self.is_usable:
            nowhere = np.zeros(len(blocks), np.int64)
            return np.zeros(count, np.int64), np.zeros(count, bool), nowhere, nowhere.astype(bool)
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
        if not self.plan.is_keyed or not self.is_usable or self._is_bad.any():
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
            done = probe.find(self.index.line[None], ids, keys)
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
    if 2 * file.size < file.entry.file_bytes:
        return  # cut so far, it is not used whatever it held
    near = range(
        max(0, low - 2 * PAGE_BYTES), low + 2 * PAGE_BYTES
    )  # sizes rise with counts but for a page here and there
    yield from (count for count in near if size(count) == file.entry.file_bytes)
