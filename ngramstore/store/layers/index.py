"""The index: which row an n-gram ID has, and where compressed rows are stored. Sorted IDs cut in three planes.

Format: docs/format.md, section Index. A row's number is the rank of its ID. The top b bits of an ID are its bucket (8 to 15
IDs each); a directory says where buckets begin; the next 32 bits lie in a plane of their own, the last 32 - b bits in a
packed one. Pages are checksummed, and verified by the kernels on first touch.

Shapes: N rows of the index, M rows of a chunk.
"""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore
from ngramstore.file_writer import FileWriter
from ngramstore.files import clear_errors
from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, INDEX_HEADER, KIND_INDEX, PAGE_BYTES
from ngramstore.store.layers.datafile import NO_CONTENT, DataFile, FileEntry, FileStamp, content_digest, finish_file

GROUP_BITS = 16
_CHUNK_ROWS = 1 << 16
_CHUNK_BUCKETS = 1 << 16  # a whole number of pages in the directory
_WRITE_BYTES = 4 << 20
_LARGE_BYTES = 64 << 20
_MAX_PLACE = 1 << 62
_SPARE_BYTES = 8  # kernels load 8 bytes where the last low bits begin


@dataclass(frozen=True)
class IndexPlan:
    """Where each section of an index of N rows begins: computed, never read.

    `is_keyed`: rows are found by ID (else by number). `is_sized`: rows have sizes of their own (compressed).
    """

    num_rows: int
    is_keyed: bool
    is_sized: bool
    group_bits: int = GROUP_BITS

    @cached_property
    def bucket_bits(self) -> int:
        """8 to 15 IDs a bucket."""
        return min(32, max(1, self.num_rows.bit_length() - 4)) if self.is_keyed else 0

    @property
    def low_bits(self) -> int:
        """Bits of an ID in the packed plane."""
        return 32 - self.bucket_bits

    def sections(self) -> dict[str, tuple[int, int]]:
        """Name -> (position, bytes), in file order; positions are page-aligned."""
        return self._sections

    @cached_property
    def _sections(self) -> dict[str, tuple[int, int]]:
        buckets = 1 << self.bucket_bits
        blocks = -(-self.num_rows // BLOCK_ROWS)
        keyed, sized = int(self.is_keyed), int(self.is_sized)
        sizes = {
            "groups": keyed * 8 * ((buckets >> self.group_bits) + 1),
            "directory": keyed * 4 * (buckets + 1),
            "remainders": keyed * 4 * self.num_rows,
            "low_bits": keyed * (-(-self.num_rows * self.low_bits // 8) + _SPARE_BYTES),
            "offsets": sized * 8 * blocks,
            "lengths": sized * 2 * self.num_rows,
        }
        position = PAGE_BYTES
        result = {}
        for name, size in sizes.items():
            result[name] = (position, size)
            position += -(-size // PAGE_BYTES) * PAGE_BYTES
        pages = position // PAGE_BYTES - 1
        result["checksums"] = (position, 4 * pages + 4)
        return result

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        position, size = self.sections()["checksums"]
        return position + size

    def header_fields(self) -> dict[str, int]:
        """The fields of the header that describe the sections."""
        at = {name: position for name, (position, _) in self.sections().items()}
        return {
            "num_rows": self.num_rows,
            "bucket_bits": self.bucket_bits,
            "group_bits": self.group_bits,
            "groups_at": at["groups"],
            "directory_at": at["directory"],
            "remainders_at": at["remainders"],
            "low_bits_at": at["low_bits"],
            "offsets_at": at["offsets"] if self.is_sized else 0,
            "lengths_at": at["lengths"] if self.is_sized else 0,
            "checksums_at": at["checksums"],
        }


class IndexBuilder:
    """Turns sorted IDs (and stored sizes) into the sections of an index, a chunk at a time.

    Held until written: the sizes of the buckets (up to 0.5 B a row) and the planes (6 to 8 B a row), in memory or, when they
    are large and `scratch` is a directory, in unnamed files there.
    """

    def __init__(self, plan: IndexPlan, scratch: Path | None = None) -> None:
        self.plan = plan
        sections = plan.sections()
        self._remainders = _plane(np.uint32, sections["remainders"][1] // 4, scratch)
        self._low_bits = _plane(np.uint8, sections["low_bits"][1], scratch)
        self._counts = _plane(np.uint32, (1 << plan.bucket_bits) + 1 if plan.is_keyed else 0, scratch)
        self._lengths = _plane(np.uint16, sections["lengths"][1] // 2, scratch)
        self._pending: list[np.ndarray] = []
        self._done = 0
        self._last_id = -1

    def add(self, ids_M: np.ndarray) -> None:
        """The next M IDs, (M,) u64, ascending and above all before."""
        if len(ids_M) == 0:
            return
        if int(ids_M[0]) <= self._last_id or (ids_M[1:] <= ids_M[:-1]).any():
            raise AssertionError("IDs must ascend")
        self._last_id = int(ids_M[-1])
        self._pending.append(ids_M)
        if sum(map(len, self._pending)) >= _CHUNK_ROWS:
            self._take(full_bytes=True)

    def set_lengths(self, first: int, lengths_M: np.ndarray) -> None:
        """Stored bytes (without the checksum) of rows first, first + 1, ..."""
        self._lengths[first : first + len(lengths_M)] = lengths_M

    def _take(self, *, full_bytes: bool) -> None:
        ids = np.concatenate(self._pending) if self._pending else np.empty(0, np.uint64)
        count = len(ids) // 8 * 8 if full_bytes else len(ids)
        self._pending = [ids[count:]]
        ids = np.ascontiguousarray(ids[:count])
        if count == 0:
            return
        plan, low = self.plan, self.plan.low_bits
        buckets = (ids >> np.uint64(64 - plan.bucket_bits)).astype(np.int64)
        first = int(buckets[0])  # IDs ascend: counting from here costs what the chunk spans, not what the index has
        counts = np.bincount(buckets - first)
        self._counts[first : first + len(counts)] += counts.astype(np.uint32)
        self._remainders[self._done : self._done + count] = (ids >> np.uint64(low)).astype(np.uint32)
        if low:
            native.pack_low_bits(ids, low, self._low_bits[self._done * low // 8 :])
        self._done += count

    def pages(self, data_at: int) -> Iterator[np.ndarray]:
        """The sections in file order, padded, as whole pages some megabytes at a time; data_at: where the first row is."""
        plan = self.plan
        if plan.is_keyed:
            self._take(full_bytes=False)
            assert self._done == plan.num_rows, (self._done, plan.num_rows)
            step = 1 << plan.group_bits
            groups = np.concatenate([starts[-first % step :: step] for first, starts in self._starts()])
            yield from _pages(groups.astype("<u8"))
            for first, starts in self._starts():
                group = np.arange(first, first + len(starts)) >> plan.group_bits
                yield from _pages((starts - groups[group]).astype("<u4"))
            yield from _pages(self._remainders)
            yield from _pages(self._low_bits)
        if plan.is_sized:
            firsts = np.add.reduceat(self._lengths, np.arange(0, plan.num_rows, BLOCK_ROWS), dtype=np.int64)
            firsts = np.concatenate([[0], np.cumsum(firsts + CHECKSUM_BYTES * BLOCK_ROWS)[:-1]]) + data_at
            yield from _pages(firsts.astype("<u8")[: -(-plan.num_rows // BLOCK_ROWS)])
            yield from _pages(self._lengths)

    def _starts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first bucket, ranks at which it and the following begin (M,) i64), some thousand buckets at a time."""
        start = 0
        for first in range(0, len(self._counts), _CHUNK_BUCKETS):
            counts = self._counts[first : first + _CHUNK_BUCKETS].astype(np.int64)
            ends = np.cumsum(counts) + start
            yield first, ends - counts
            start = int(ends[-1])

    def write(self, path: Path, stamp: FileStamp, data_at: int = 0) -> FileEntry:
        """The whole index as a durable file."""
        with FileWriter(path) as writer:
            writer.write(bytes(PAGE_BYTES))
            sums = []
            page = 1
            for pages in self.pages(data_at):
                writer.write(pages)
                sums.append(page_checksums(pages, page))
                page += len(pages) // PAGE_BYTES
            table = np.concatenate([*sums, np.empty(0, np.uint32)]).astype("<u4").tobytes()
            assert writer.position == self.plan.sections()["checksums"][0]
            writer.write(table)
            writer.write(zlib.crc32(table).to_bytes(4, "little"))
            return finish_file(
                writer, INDEX_HEADER, stamp, KIND_INDEX, index_content(table), **self.plan.header_fields()
            )


def index_content(table: bytes) -> bytes:
    """What the header says of an index whose page checksums these are."""
    digest = content_digest()
    digest.update(table)
    return digest.digest()


def page_checksums(section: np.ndarray, first_page: int) -> np.ndarray:
    """Checksums of whole pages of a u8 array, seeded by page number: (bytes,) u8 -> (pages,) u32."""
    pages = np.arange(len(section) // PAGE_BYTES)
    return checksums(
        section, pages * PAGE_BYTES, np.full(len(pages), PAGE_BYTES), (pages + first_page).astype(np.uint64)
    )


def _pages(section: np.ndarray) -> Iterator[np.ndarray]:
    """A section as whole pages, the last one padded with zeros."""
    data = section.reshape(-1).view(np.uint8)
    whole = len(data) // PAGE_BYTES * PAGE_BYTES
    for at in range(0, whole, _WRITE_BYTES):
        yield data[at : min(whole, at + _WRITE_BYTES)]
    if whole < len(data):
        yield np.concatenate([data[whole:], np.zeros(-len(data) % PAGE_BYTES, np.uint8)])


def _plane(dtype: type, count: int, scratch: Path | None) -> np.ndarray:
    """A zeroed array, on disk if it is large and may be."""
    if scratch is None or count * np.dtype(dtype).itemsize < _LARGE_BYTES:
        return np.zeros(count, dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, dtype, "w+", shape=(count,))


class Index:
    """An index ready for probing: the bytes (mapped, or in memory), and the state of page verification.

    `layer` is its line of the kernels' LAYERS table. Threads: any number.
    """

    def __init__(self, plan: IndexPlan, data: np.ndarray, *, is_verified: bool, name: str) -> None:
        self.plan = plan
        self.name = name
        self._data = data
        self._page_ok = np.full(len(data) // PAGE_BYTES + 1, is_verified, np.uint8)
        self.layer = np.zeros(native.NUM_COLUMNS, np.int64)
        fields = plan.header_fields()
        self.layer[native.NUM_ROWS] = plan.num_rows
        self.layer[native.BUCKET_BITS] = plan.bucket_bits
        self.layer[native.GROUP_BITS] = plan.group_bits
        self.layer[native.FILE_ADDRESS] = data.ctypes.data
        self.layer[native.PAGE_OK_ADDRESS] = self._page_ok.ctypes.data
        for column, name_ in (
            (native.GROUPS_AT, "groups_at"),
            (native.DIRECTORY_AT, "directory_at"),
            (native.REMAINDERS_AT, "remainders_at"),
            (native.LOW_BITS_AT, "low_bits_at"),
            (native.CHECKSUMS_AT, "checksums_at"),
            (native.OFFSETS_AT, "offsets_at"),
            (native.LENGTHS_AT, "lengths_at"),
        ):
            self.layer[column] = fields[name_]

    @classmethod
    def from_ids(cls, ids_N: np.ndarray) -> Index:
        """An index in memory over sorted, distinct IDs (N,) u64."""
        builder = IndexBuilder(IndexPlan(len(ids_N), is_keyed=True, is_sized=False))
        builder.add(ids_N)
        data = np.concatenate([np.zeros(PAGE_BYTES, np.uint8), *builder.pages(0)])
        return cls(builder.plan, data, is_verified=True, name="memory")

    @classmethod
    def open(
        cls, directory: Path, entry: FileEntry, stamp: FileStamp, *, is_keyed: bool, is_sized: bool, lock: bool
    ) -> tuple[Index, DataFile]:
        """Map an index file; its pages are verified as they are touched, or all now if `lock` copies it into RAM.

        Raises DamagedStore, UnsupportedVersion, FileNotFoundError.
        """
        file = DataFile(directory, entry, INDEX_HEADER, KIND_INDEX, stamp)
        plan = IndexPlan(file.number("num_rows"), is_keyed, is_sized, file.number("group_bits"))
        if not 1 <= plan.group_bits <= 32 or plan.num_rows >= 1 << native.RANK_BITS:
            raise DamagedStore(f"{file.path}: impossible sizes in the header: {file.header}")
        fields = plan.header_fields()
        wrong = [name for name, value in fields.items() if file.header[name] != value]
        if wrong or plan.file_bytes != entry.file_bytes:
            raise DamagedStore(
                f"{file.path}: header fields disagree with the number of rows: {', '.join(wrong) or 'size'}"
            )
        position, size = plan.sections()["checksums"]
        table = file.read(position, size)
        if zlib.crc32(table[:-4]) != int.from_bytes(table[-4:], "little"):
            raise DamagedStore(f"{file.path}: the page checksums at byte {position:,} fail their own checksum")
        if entry.content not in (NO_CONTENT, index_content(table[:-4])):
            raise DamagedStore(f"{file.path}: the page checksums at byte {position:,} are not those of its header")
        if lock:
            data = np.frombuffer(file.read(0, entry.file_bytes), np.uint8)
        else:
            with clear_errors(file.path):
                data = np.frombuffer(mmap.mmap(file.fd, entry.file_bytes, prot=mmap.PROT_READ), np.uint8)
        index = cls(plan, data, is_verified=False, name=str(file.path))
        if lock:
            index.verify_all()
        return index, file

    def __len__(self) -> int:
        return self.plan.num_rows

    def bad_pages(self) -> list[int]:
        """Pages that fail their checksum, all of them read now."""
        position, _ = self.plan.sections()["checksums"]
        got = page_checksums(self._data[PAGE_BYTES:position], 1)
        wanted = self._data[position : position + 4 * len(got)].view("<u4")
        return [int(page) + 1 for page in np.flatnonzero(got != wanted)]

    def verify_all(self) -> None:
        """Check every page now; DamagedStore names the first bad one."""
        bad = self.bad_pages()
        if bad:
            raise self.damaged(bad[0])
        self._page_ok[:] = 1

    def damaged(self, page: int) -> DamagedStore:
        """The error for a page that fails its checksum."""
        return DamagedStore(f"{self.name}: page {page} (byte {page * PAGE_BYTES:,}) fails its checksum")

    def ids(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """IDs of ranks first, first + 1, ...: (count,) u64, read back from the planes."""
        ids_M = np.empty(len(self) - first if count is None else count, np.uint64)
        assert first >= 0 and first + len(ids_M) <= len(self)
        bad = native.ids_of_ranks(self.layer[None], 0, first, ids_M)
        if bad >= 0:
            raise self.damaged(int(bad))
        return ids_M

    def places(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """File offsets and stored bytes of consecutive compressed rows: (count,) i64 each."""
        block = first // BLOCK_ROWS
        lengths = self._slice("lengths", block * BLOCK_ROWS, first + count - block * BLOCK_ROWS, "<u2").astype(np.int64)
        start = int(self._slice("offsets", block, 1, "<u8")[0])
        if start > _MAX_PLACE:  # good checksums can still stand over impossible numbers
            raise DamagedStore(f"{self.name}: block {block} begins at byte {start:,} of the rows, which cannot be")
        starts = start + np.concatenate([[0], np.cumsum(lengths + CHECKSUM_BYTES)[:-1]])
        inside = first - block * BLOCK_ROWS
        return starts[inside:], lengths[inside:]

    def _slice(self, section: str, first: int, count: int, dtype: str) -> np.ndarray:
        """Part of a section as numbers, its pages verified."""
        width = np.dtype(dtype).itemsize
        begin = self.plan.sections()[section][0] + first * width
        end = begin + count * width
        pages = np.arange(begin // PAGE_BYTES, -(-end // PAGE_BYTES))
        unknown = pages[self._page_ok[pages] == 0]
        if len(unknown):
            position = self.plan.sections()["checksums"][0]
            sizes = np.full(len(unknown), PAGE_BYTES)
            got = checksums(self._data, unknown * PAGE_BYTES, sizes, unknown.astype(np.uint64))
            wanted = self._data[position:][: 4 * (position // PAGE_BYTES - 1)].view("<u4")[unknown - 1]
            if (got != wanted).any():
                raise self.damaged(int(unknown[np.flatnonzero(got != wanted)[0]]))
            self._page_ok[unknown] = 1
        return self._data[begin:end].view(dtype)
