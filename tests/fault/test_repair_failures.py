"""The repair of a store of numbered rows, where each write, fsync, rename and unlink fails in turn; its scratch file too."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest
from failures import Failing, each_failure
from helpers import assert_verifies, rows_of, stamps_of
from store_cases import build_rows

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import DiskFull
from ngramstore.store.repair.repair import repair
from ngramstore.store.repair.replaced import Replaced

LOST = 17


@pytest.fixture
def damaged(quick_path):
    """Makes copies of a store with an overlay, an unpublished change and a row that is lost; and what is left of its rows."""
    template = build_rows(quick_path / "template", rows_of(range(1, 61), 4))
    with ngs.open(template, mode="rw") as store:
        store.put([3, 40], rows_of([900, 901], 4))
    store = ngs.open(template, mode="rw")
    store.put([40, 50], rows_of([902, 903], 4))
    store._shut()
    rows = next(template.glob("base-*.rows"))
    data = bytearray(rows.read_bytes())
    data[4096 + LOST * 20] ^= 1
    rows.write_bytes(data)
    wanted = {number: number + 1 for number in range(60)} | {3: 900, 40: 902, 50: 903, LOST: 0}
    return lambda path: shutil.copytree(template, path), list(wanted.values())


def stored(path) -> list[int]:
    with ngs.open(path) as store:
        found = store.rows(np.arange(60))
    found[LOST] = rows_of([0], 4)[0] if not found[LOST].any() else found[LOST]
    return stamps_of(found)


def test_a_repair_of_numbered_rows_that_fails_anywhere_can_be_tried_again(quick_path, monkeypatch, damaged):
    make, wanted = damaged

    def check(_, path, error):
        if error is not None:
            repair(path)
        assert stored(path) == wanted
        assert_verifies(path)

    num = each_failure(monkeypatch, make, lambda _, path: repair(path), check, quick_path)
    assert num > 20


def test_what_replaces_rows_is_written_where_a_test_can_let_it_fail(tmp_path, monkeypatch):
    failing = Failing(1, errno.ENOSPC, for_good=True)
    monkeypatch.setattr(files, "observe", failing)
    replaced = Replaced(tmp_path, 8)
    ids, rows = np.arange(3, dtype=np.uint64), np.ones((3, 8), np.uint8)
    replaced.add(ids, rows)
    with pytest.raises(DiskFull, match=tmp_path.name):
        replaced.add(ids, rows)
    assert failing.log == [("write", tmp_path.name)] * 2
    monkeypatch.undo()
    found = np.zeros((4, 8), np.uint8)
    replaced.into(np.arange(1, 5, dtype=np.uint64), found)
    assert found[:, 0].tolist() == [1, 1, 0, 0]  # what came before the failure


def test_what_replaces_rows_is_not_used_before_the_disk_has_it(tmp_path, monkeypatch):
    """Only a sync tells of writes that failed."""
    replaced = Replaced(tmp_path, 8)
    ids, rows = np.arange(3, dtype=np.uint64), np.ones((3, 8), np.uint8)
    replaced.add(ids, rows)
    failing = Failing(0, errno.EIO, for_good=True)
    monkeypatch.setattr(files, "observe", failing)
    found = np.zeros((3, 8), np.uint8)
    for _ in range(2):
        with pytest.raises(OSError, match="injected"):
            replaced.into(ids, found)
    assert failing.log == [("fsync", tmp_path.name)] * 2 and not found.any()
    monkeypatch.undo()
    replaced.into(ids, found)
    assert (found == rows).all()


def test_rows_by_id_are_found_in_whatever_order_they_came(tmp_path):
    """The IDs of an index that lies do not ascend."""
    replaced = Replaced(tmp_path, 8)
    replaced.add(np.array([7, 2, 5], np.uint64), np.repeat(np.array([[7], [2], [5]], np.uint8), 8, axis=1))
    found = np.zeros((4, 8), np.uint8)
    replaced.into(np.array([2, 3, 5, 7], np.uint64), found)
    assert found[:, 0].tolist() == [2, 0, 5, 7]
