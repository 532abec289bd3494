"""The index: which row an n-gram ID has, and where compressed rows are stored.

Format: docs/format.md, section Index. A row's number is the rank of its ID. Pages are checksummed, and verified by the kernels on
first touch.

Shapes: N rows of the index, M rows of a chunk.
"""

from __future__ import annotations

import mmap
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore
from ngramstore.files import our_errors
from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as native
from ngramstore.layout import BLOCK_ROWS, CHECKSUM_BYTES, INDEX_HEADER, KIND_INDEX, PAGE_BYTES
from ngramstore.store.layers.datafile import NO_CONTENT, DataFile, FileEntry, FileStamp
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan, index_content, page_checksums
from ngramstore.system_memory import limit_bytes

_MAX_PLACE = 1 << 62
_LEAST_SHARE = 4
"""An index is asked for in huge pages where the memory that we may use holds so many of it: a page of 2 MiB is read and
kept whole."""


class Index:
    """An index ready for probing: the bytes (mapped, or in memory), and the state of page verification.

    `line` is its line of the kernels' LAYERS table. Threads: any number.
    """

    def __init__(self, plan: IndexPlan, data: np.ndarray, *, is_verified: bool, name: str) -> None:
        self.plan = plan
        self.name = name
        self._data = data
        self._page_ok = np.full(len(data) // PAGE_BYTES + 1, is_verified, np.uint8)
        self.line = np.zeros(native.NUM_COLUMNS, np.int64)
        fields = plan.header_fields()
        self.line[native.NUM_ROWS] = plan.num_rows
        self.line[native.BUCKET_BITS] = plan.bucket_bits
        self.line[native.GROUP_BITS] = plan.group_bits
        self.line[native.FILE_ADDRESS] = data.ctypes.data
        self.line[native.PAGE_OK_ADDRESS] = self._page_ok.ctypes.data
        for column, name_ in (
            (native.GROUPS_AT, "groups_at"),
            (native.DIRECTORY_AT, "directory_at"),
            (native.REMAINDERS_AT, "remainders_at"),
            (native.LOW_BITS_AT, "low_bits_at"),
            (native.CHECKSUMS_AT, "checksums_at"),
            (native.OFFSETS_AT, "offsets_at"),
            (native.LENGTHS_AT, "lengths_at"),
        ):
            self.line[column] = fields[name_]

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
            data = file.array(0, entry.file_bytes)
        else:
            data = _mapped(file, entry.file_bytes)
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
        bad = native.ids_of_ranks(self.line[None], 0, first, ids_M)
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


def page_and_line(code: int) -> tuple[int, int]:
    """What a fault code of the index kernels says: the page that fails its checksum, and the line of the LAYERS table
    it is of."""
    return divmod(-2 - code, native.MAX_LINES)


def _mapped(file: DataFile, size: int) -> np.ndarray:
    """A file as read-only memory, in huge pages where the system has them for files: fewer reads while it is cold, fewer
    misses of the processor's page table once it is warm (docs/design.md, Decisions)."""
    with our_errors(file.path):
        mapped = mmap.mmap(file.fd, size, prot=mmap.PROT_READ)
    if hasattr(mmap, "MADV_HUGEPAGE") and _LEAST_SHARE * size <= limit_bytes():
        with suppress(OSError):  # a kernel built without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)
