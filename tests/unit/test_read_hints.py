"""Reading a batch: rows in memory cost no hint; from the first read that would wait on, every page is asked for before
one is waited for.

The kernel runs as plain Python; its system calls go to a file of which some pages are "in memory".

Shapes: U rows to read.
"""

from __future__ import annotations

import ctypes
import os
from itertools import chain, pairwise

import numpy as np
import pytest

from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as columns
from ngramstore.kernels.native import rows as native
from ngramstore.kernels.reference.hashing import xxh64
from ngramstore.kernels.reference.index import row_place

pytestmark = pytest.mark.skipif(
    not (native.HAS_READ_AT_ONCE and native.HAS_READ_HINT), reason="this system has no such reads and hints"
)
NUM_ROWS, ROW_BYTES, FIRST = 900, 708, 700
SLOT = ROW_BYTES + 4
PAGE = 4096
Pages = set[tuple[int, int]]


class System:
    """The three calls, answered from real files: what was asked for, in order, as (call, file, first byte, byte behind)."""

    def __init__(self, in_memory: Pages | None = None) -> None:
        self.in_memory = in_memory
        self.calls: list[tuple[str, int, int, int]] = []

    def preadv2(self, fd, pairs, count, place, flags):
        target, size = np.frombuffer(ctypes.string_at(int(pairs), 16), np.int64).tolist()
        assert (int(count), int(flags)) == (1, native.NOWAIT)
        self._note("at once", fd, place, size)
        if self.in_memory is not None and not pages_of([self.calls[-1]]) <= self.in_memory:
            return -1
        return self._copy(fd, target, size, place)

    def pread(self, fd, target, size, place):
        self._note("wait", fd, place, size)
        return self._copy(fd, target, size, place)

    def posix_fadvise(self, fd, place, size, advice):
        assert int(advice) == native.WILLNEED
        self._note("hint", fd, place, size)
        return 0

    def of(self, *kinds: str) -> list[tuple[str, int, int, int]]:
        return [call for call in self.calls if call[0] in kinds]

    def _note(self, kind, fd, place, size) -> None:
        self.calls.append((kind, int(fd), int(place), int(place) + int(size)))

    def _copy(self, fd, target, size, place) -> int:
        data = os.pread(int(fd), int(size), int(place))
        ctypes.memmove(int(target), data, len(data))
        return len(data)


class Files:
    """900 rows, in place (codes and scales in one file, checksums in another) or packed, and the table that says where."""

    def __init__(self, folder, *, is_packed: bool) -> None:
        rng = np.random.default_rng(6)
        self.rows = rng.integers(0, 256, (NUM_ROWS, ROW_BYTES), np.uint8)
        ids = np.arange(NUM_ROWS, dtype=np.uint64)
        sums = checksums(self.rows.reshape(-1), np.arange(NUM_ROWS) * ROW_BYTES, np.full(NUM_ROWS, ROW_BYTES), ids)
        self.stored = np.concatenate([self.rows, sums.astype("<u4").view(np.uint8).reshape(-1, 4)], axis=1)
        parts = {
            "rows": self.stored.tobytes()
            if is_packed
            else self.rows[:, :FIRST].tobytes() + self.rows[:, FIRST:].tobytes(),
            "sums": sums.astype("<u4").tobytes(),
        }
        self.fds = []
        for name, data in parts.items():
            (folder / name).write_bytes(bytes(9) + data)
            self.fds.append(os.open(folder / name, os.O_RDONLY))
        rows, sums_fd = self.fds
        facts = {columns.SERIAL: 5, columns.NUM_ROWS: NUM_ROWS, columns.ROW_BYTES: ROW_BYTES, columns.ROWS_FD: rows}
        facts |= {columns.ROWS_DATA_AT: 9, columns.SUMS_FD: sums_fd, columns.SUMS_AT: 9}
        if not is_packed:
            facts |= {columns.FIRST_BYTES: FIRST, columns.SECOND_FD: rows, columns.SECOND_AT: 9 + NUM_ROWS * FIRST}
        self.table = np.zeros((1, columns.NUM_COLUMNS), np.int64)
        for column, value in facts.items():
            self.table[0, column] = value
        self.is_packed = is_packed

    def pieces(self, ranks) -> list[list[tuple[str, int, int, int]]]:
        """Where the bytes of rows lie: first pieces, second pieces, checksums."""
        rows, sums = self.fds
        if self.is_packed:
            return [[("", rows, 9 + SLOT * rank, 9 + SLOT * (rank + 1)) for rank in ranks]]
        second, rest = 9 + NUM_ROWS * FIRST, ROW_BYTES - FIRST
        return [
            [("", rows, 9 + FIRST * rank, 9 + FIRST * (rank + 1)) for rank in ranks],
            [("", rows, second + rest * rank, second + rest * (rank + 1)) for rank in ranks],
            [("", sums, 9 + 4 * rank, 9 + 4 * (rank + 1)) for rank in ranks],
        ]

    def pages(self, ranks) -> Pages:
        """All pages that hold a byte of rows."""
        return pages_of(chain(*self.pieces(ranks)))

    def read(self, ranks) -> None:
        staging = np.zeros(len(ranks) * SLOT, np.uint8)
        lengths, status = np.zeros(len(ranks), np.int64), np.full(len(ranks), 9, np.uint8)
        keys = np.array(ranks) | (5 << columns.RANK_BITS)
        seeds = np.array(ranks, np.uint64)
        assert native.read_rows.py_func(self.table, keys, seeds, SLOT, staging, lengths, status)[0] == 0
        assert (staging.reshape(-1, SLOT) == self.stored[ranks]).all()

    def __del__(self) -> None:
        for fd in self.fds:
            os.close(fd)


def pages_of(calls) -> Pages:
    return {(fd, page) for _, fd, begin, end in calls for page in range(begin // PAGE, (end - 1) // PAGE + 1)}


@pytest.fixture(params=[False, True], ids=["in place", "packed"])
def rows_files(tmp_path, request):
    return Files(tmp_path, is_packed=request.param)


@pytest.fixture
def use(monkeypatch):
    """Run the kernel as plain Python on a system of ours."""
    for name in (
        "_read",
        "read_at_once",
        "_line_from",
        "_piece",
        "_run_end",
        "_hint_from",
        "_place_rows",
        "_read_pieces",
        "_check_rows",
    ):
        monkeypatch.setattr(native, name, getattr(native, name).py_func)

    def store_i64(address, value) -> None:
        ctypes.memmove(int(address), int(value).to_bytes(8, "little"), 8)

    def checksum32(address, size, seed) -> int:
        data = np.frombuffer(ctypes.string_at(int(address), int(size)), np.uint8)
        return xxh64(data, 0, int(size), int(seed)) & 0xFFFFFFFF

    monkeypatch.setattr(native, "store_i64", store_i64)
    monkeypatch.setattr(native, "copy_bytes", lambda to, at, size: ctypes.memmove(int(to), int(at), int(size)))
    monkeypatch.setattr(native, "load_u32", lambda at: int.from_bytes(ctypes.string_at(int(at), 4), "little"))
    monkeypatch.setattr(native, "checksum32", checksum32)
    monkeypatch.setattr(native, "row_place", row_place)

    def start(in_memory: Pages | None = None) -> System:
        system = System(in_memory)
        for name in ("preadv2", "pread", "posix_fadvise"):
            monkeypatch.setattr(native, name, getattr(system, name))
        return system

    return start


BATCHES = {
    "one row": [77],
    "near": list(range(100, 130)),
    "far": list(range(0, NUM_ROWS, 60)),
    "near and far, in no order": np.random.default_rng(1).permutation(np.arange(0, NUM_ROWS, 7)).tolist(),
    "repeated": [5, 800, 5, 6, 6],
}
every_batch = pytest.mark.parametrize("ranks", list(BATCHES.values()), ids=list(BATCHES))


@every_batch
def test_rows_in_memory_are_read_at_once_without_a_hint(rows_files, use, ranks):
    system = use()
    rows_files.read(ranks)
    assert system.of("hint", "wait") == []
    assert pages_of(system.calls) >= rows_files.pages(ranks)


@every_batch
def test_where_the_first_row_has_to_be_waited_for_all_pages_are_asked_for_before_any_is(rows_files, use, ranks):
    system = use(in_memory=set())
    rows_files.read(ranks)
    kinds = [call[0] for call in system.calls]
    num_hints = kinds.count("hint")
    assert kinds[0] == "at once"
    assert kinds[1 : 1 + num_hints] == ["hint"] * num_hints
    assert set(kinds[1 + num_hints :]) == {"wait"}
    wanted = rows_files.pages(ranks)
    assert pages_of(system.of("hint")) == wanted, "every page of the batch, and no other"


@every_batch
def test_pages_side_by_side_are_asked_for_as_one(rows_files, use, ranks):
    system = use(in_memory=set())
    rows_files.read(ranks)
    gaps = 0
    for pieces in rows_files.pieces(ranks):
        pages = sorted(pages_of(pieces))
        gaps += 1 + sum(page > before + 1 for (_, before), (_, page) in pairwise(pages))
    assert len(system.of("hint")) == gaps


@pytest.mark.parametrize("num_warm", [1, 7, 14])
def test_where_a_later_row_has_to_be_waited_for_the_pages_from_there_on_are_asked_for(rows_files, use, num_warm):
    """The first rows of the batch are in memory, with the page that the scales and checksums of the first lie in."""
    ranks = BATCHES["far"]
    warm = pages_of(rows_files.pieces(ranks[:num_warm])[0])
    system = use(in_memory=warm)
    rows_files.read(ranks[::-1])
    first_hint = [call[0] for call in system.calls].index("hint")
    assert [call[0] for call in system.calls[:first_hint]] == ["at once"] * (num_warm + 1)
    first_wait = [call[0] for call in system.calls].index("wait")
    assert "hint" not in [call[0] for call in system.calls[first_wait:]]
    first, *others = rows_files.pieces(ranks)
    assert pages_of(system.of("hint")) == pages_of([*first[num_warm:], *chain(*others)])
    assert pages_of(system.of("wait")) == pages_of(system.of("hint"))


def test_where_only_the_last_pieces_have_to_be_waited_for_only_they_are_asked_for(tmp_path, use):
    files = Files(tmp_path, is_packed=False)
    ranks = BATCHES["far"]
    codes, scales, sums = files.pieces(ranks)
    system = use(in_memory=pages_of(codes + scales))
    files.read(ranks)
    assert pages_of(system.of("hint")) == pages_of(sums)


def test_a_row_whose_place_is_unknown_is_not_asked_for(tmp_path, use, monkeypatch):
    files = Files(tmp_path, is_packed=True)
    system = use(in_memory=set())
    monkeypatch.setattr(native, "row_place", lambda *args: (*row_place(*args)[:2], 0 if args[2] == 300 else -1))
    staging, lengths, status = np.zeros(3 * SLOT, np.uint8), np.zeros(3, np.int64), np.zeros(3, np.uint8)
    keys = np.array([0, 300, 600]) | (5 << columns.RANK_BITS)
    seeds = np.array([0, 300, 600], np.uint64)
    assert native.read_rows.py_func(files.table, keys, seeds, SLOT, staging, lengths, status)[0] == 1
    assert status.tolist() == [0, native.BAD_INDEX_PAGE, 0]
    assert pages_of(system.of("hint")) == files.pages([0, 600])


def test_without_a_system_that_can_tell_the_hints_come_first(rows_files, use, monkeypatch):
    system = use(in_memory=set())
    monkeypatch.setattr(native, "HAS_READ_AT_ONCE", False)
    ranks = BATCHES["far"]
    rows_files.read(ranks)
    assert system.calls[0][0] == "hint" and system.of("at once") == []
    assert pages_of(system.of("hint")) == rows_files.pages(ranks)
