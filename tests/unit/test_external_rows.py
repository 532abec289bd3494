"""Rows read in place: the kernel and its plain twin give the same bytes and faults for segments in files of others."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ngramstore.errors import FormatError
from ngramstore.hashing import checksums
from ngramstore.kernels.native import index as columns
from ngramstore.kernels.native import rows as native
from ngramstore.kernels.reference import rows as reference
from ngramstore.store.layers.external_entry import ExternalEntry, Piece, Segment, SourceEntry

SLOT = 15 + 4
"""A row of 12 + 3 bytes, and its checksum."""


class Case:
    """Two segments, 20 and 30 rows; codes in one file, scales in another at an odd place, checksums in a third."""

    def __init__(self, folder, *, has_sums):
        rng = np.random.default_rng(3)
        self.codes, self.scales = rng.integers(0, 256, (50, 12), np.uint8), rng.integers(0, 256, (50, 3), np.uint8)
        self.rows = np.concatenate([self.codes, self.scales], axis=1)
        flat = self.rows.reshape(-1)
        sums = checksums(flat, np.arange(50) * 15, np.full(50, 15), np.arange(50, dtype=np.uint64))
        self.paths = {}
        for name, head, data in (("codes", 7, self.codes), ("scales", 100, self.scales), ("sums", 8, sums)):
            self.paths[name] = folder / name
            self.paths[name].write_bytes(bytes(head) + data.tobytes())
        self.fds = {name: os.open(path, os.O_RDONLY) for name, path in self.paths.items()}
        self.table = np.zeros((4, columns.NUM_COLUMNS), np.int64)
        self.table[[0, 3], columns.SERIAL] = 77
        for line, first, count in ((1, 0, 20), (2, 20, 30)):
            for column, value in (
                (columns.SERIAL, 5),
                (columns.NUM_ROWS, count),
                (columns.FIRST_RANK, first),
                (columns.ROW_BYTES, 15),
                (columns.FIRST_BYTES, 12),
                (columns.ROWS_FD, self.fds["codes"]),
                (columns.ROWS_DATA_AT, 7 + 12 * first),
                (columns.SECOND_FD, self.fds["scales"]),
                (columns.SECOND_AT, 100 + 3 * first),
                (columns.SUMS_FD, self.fds["sums"] if has_sums else -1),
                (columns.SUMS_AT, 8 + 4 * first),
            ):
                self.table[line, column] = value

    def read(self, ranks):
        results = []
        for module in (native, reference):
            staging, lengths = np.zeros(len(ranks) * SLOT, np.uint8), np.full(len(ranks), -5)
            status = np.full(len(ranks), 99, np.uint8)
            keys = (5 << columns.RANK_BITS) | np.array(ranks, np.int64)
            seeds = np.array(ranks, np.uint64)
            told = module.read_rows(self.table, keys, seeds, SLOT, staging, lengths, status)
            checked = (self.table[:, columns.SUMS_FD] >= 0)[self.table[:, columns.FIRST_BYTES] > 0].all()
            assert told == (np.count_nonzero(status), 0, len(ranks) * (19 if checked else 15))
            assert (lengths == 15).all()
            good = staging.reshape(-1, SLOT)[status == 0]
            results.append((status.tolist(), good.tolist()))
        assert results[0] == results[1]
        status, good = results[0]
        wanted = self.rows[[rank for rank, fault in zip(ranks, status, strict=True) if not fault]]
        if native.BAD_CHECKSUM not in status:
            assert [row[:15] for row in good] == wanted.tolist()
        return status


@pytest.fixture(params=[False, True], ids=["unchecked", "checked"])
def case(tmp_path, request):
    made = Case(tmp_path, has_sums=request.param)
    made.has_sums = request.param
    yield made
    for fd in made.fds.values():
        os.close(fd)


def test_rows_of_both_segments_are_read_alike(case):
    ranks = [0, 19, 20, 49, 21, 0]
    assert case.read(ranks) == [0] * 6


@pytest.mark.parametrize("name", ["codes", "scales", "sums"])
def test_a_file_cut_while_it_is_open_is_a_fault_of_the_rows_behind_the_cut(case, name):
    width, head = {"codes": (12, 7), "scales": (3, 100), "sums": (4, 8)}[name]
    os.truncate(case.paths[name], head + width * 30 + width - 1)
    cut = native.CUT_SHORT if name != "sums" or case.has_sums else 0
    assert case.read([0, 29, 30, 49]) == [0, 0, cut, cut]


def test_a_changed_byte_is_a_fault_where_there_are_checksums(case):
    for name, at in (("codes", 7 + 12 * 25), ("scales", 100 + 3 * 40 + 2)):
        data = bytearray(case.paths[name].read_bytes())
        data[at] ^= 1
        case.paths[name].write_bytes(data)
    if case.has_sums:
        assert case.read([24, 25, 40]) == [0, native.BAD_CHECKSUM, native.BAD_CHECKSUM]


def test_rows_are_read_in_any_order_and_as_often_as_they_are_asked_for(case):
    rng = np.random.default_rng(5)
    assert case.read(rng.permutation(50).tolist()) == [0] * 50
    assert case.read(rng.integers(0, 50, 200).tolist()) == [0] * 200
    os.truncate(case.paths["codes"], 7 + 12 * 40)  # the run that spans the cut is read row by row
    ranks = rng.permutation(50).tolist()
    assert case.read(ranks) == [native.CUT_SHORT if rank >= 40 else 0 for rank in ranks]


def test_runs_longer_than_one_read_and_gaps_of_all_sizes(tmp_path):
    """900 rows of 700 + 8 bytes: runs end at 64 KiB, pieces straddle pages, wanted rows lie near and far."""
    rng = np.random.default_rng(6)
    codes, scales = rng.integers(0, 256, (900, 700), np.uint8), rng.integers(0, 256, (900, 8), np.uint8)
    path = tmp_path / "rows"
    path.write_bytes(bytes(9) + codes.tobytes() + scales.tobytes())
    fd = os.open(path, os.O_RDONLY)
    table = np.zeros((1, columns.NUM_COLUMNS), np.int64)
    for column, value in (
        (columns.SERIAL, 5),
        (columns.NUM_ROWS, 900),
        (columns.ROW_BYTES, 708),
        (columns.FIRST_BYTES, 700),
        (columns.ROWS_FD, fd),
        (columns.ROWS_DATA_AT, 9),
        (columns.SECOND_FD, fd),
        (columns.SECOND_AT, 9 + 900 * 700),
        (columns.SUMS_FD, -1),
    ):
        table[0, column] = value
    wanted = np.concatenate([codes, scales], axis=1)
    for step in (1, 2, 5, 6, 7, 12, 100, 899):
        ranks = rng.permutation(np.arange(0, 900, step))
        for module in (native, reference):
            staging, lengths = np.zeros(len(ranks) * 712, np.uint8), np.zeros(len(ranks), np.int64)
            status = np.full(len(ranks), 9, np.uint8)
            keys = ranks | (5 << columns.RANK_BITS)
            assert module.read_rows(table, keys, ranks.astype(np.uint64), 712, staging, lengths, status)[0] == 0
            assert (staging.reshape(-1, 712)[:, :708] == wanted[ranks]).all(), (module.__name__, step)
    os.close(fd)


def test_rows_in_place_are_fewer_than_keys_can_number():
    """Segments may lie over each other, so that a small file could give as many rows as a manifest likes."""
    source = SourceEntry("/model.safetensors", 1 << 30, "", "", 1, 1)
    whole = Segment(1 << 28, (Piece(0, 0, 2),))
    ExternalEntry((source,), (whole,) * 4095).check()
    with pytest.raises(FormatError, match=r"fewer than 2\*\*40"):
        ExternalEntry((source,), (whole,) * 4096).check()
