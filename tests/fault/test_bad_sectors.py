"""A disk that cannot read some of its sectors: what lies on them is lost, and nothing beside it."""

from __future__ import annotations

import errno
import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_longcat
from helpers import build_ngrams, rows_of, stamps_of
from store_cases import build_rows, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import DamagedStore
from ngramstore.layout import PAGE_BYTES
from ngramstore.store.imports import job
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.repair.check import verify
from ngramstore.store.repair.repair import repair
from ngramstore.store.view import View

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

COUNT = 2000


@pytest.fixture
def bad_sectors(monkeypatch):
    """Makes pages of a file unreadable: pread gives what lies before the first of them, then EIO, and all behind it."""
    bad: dict[int, set[int]] = {}
    real_pread = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        pages = [page for page in bad.get(os.fstat(fd).st_ino, ()) if at < (page + 1) * PAGE_BYTES]
        first = min(pages, default=None)
        if first is None:
            return real_pread(fd, size, at)
        if at >= first * PAGE_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_pread(fd, min(size, first * PAGE_BYTES - at), at)

    class Mapped(mmap.mmap):
        def __new__(cls, fd: int, *args, **kwargs):
            assert fd < 0 or os.fstat(fd).st_ino not in bad, "a page that cannot be read is a SIGBUS to who maps it"
            return super().__new__(cls, fd, *args, **kwargs)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(mmap, "mmap", Mapped)

    def damage(path: Path, *pages: int) -> None:
        bad.setdefault(path.stat().st_ino, set()).update(pages)

    return damage


def places_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each row of the base begins and ends in its file, checksum included: (N,) i64 each."""
    base = View.open(path).base
    starts, sizes = zip(*(base.places(row, 1) for row in range(base.num_rows)), strict=True)
    starts = np.concatenate(starts)
    return starts, starts + np.concatenate(sizes) + 4


def rows_on(path: Path, page: int) -> list[int]:
    begins, ends = places_of(path)
    return np.flatnonzero((begins < (page + 1) * PAGE_BYTES) & (ends > page * PAGE_BYTES)).tolist()


@pytest.mark.parametrize("options", [{"codec": "int8", "dim": 16}, {"codec": "f32", "dim": 64, "compression": "zstd"}])
@pytest.mark.parametrize("page", [1, 5])
def test_an_unreadable_page_of_rows_loses_the_rows_that_touch_it(quick_path, bad_sectors, options, page):
    path = quick_path / "store"
    ngrams = some_ngrams(COUNT)
    build_ngrams(path, dict(zip(ngrams, range(COUNT), strict=True)), **options)
    page += 16 * ("compression" in options)  # behind the dictionary
    lost = rows_on(path, page)
    with ngs.open(path) as store:
        wanted = dict(store.items())
    bad_sectors(path / "base-000001.rows", page)
    report = repair(path, quick_path / "out")
    assert 0 < len(lost) == report.num_lost < COUNT // 4
    with ngs.open(quick_path / "out") as store:
        saved = dict(store.items())
    assert len(saved) == COUNT - len(lost)
    assert all((wanted[ngram] == row).all() for ngram, row in saved.items())


def test_unreadable_pages_of_a_row_addressed_store_make_zeros_of_the_rows_that_touch_them(quick_path, bad_sectors):
    path = build_rows(quick_path / "store", some_rows(COUNT))
    runs = [sorted({*rows_on(path, 2), *rows_on(path, 3)}), rows_on(path, 9)]
    lost = [*runs[0], *runs[1]]
    bad_sectors(path / "base-000001.rows", 2, 3, 9)
    assert [fault.offset for fault in verify(path) if "cannot be read" in fault.what] == [
        2 * PAGE_BYTES,
        9 * PAGE_BYTES,
    ]
    assert repair(path).lost == [f"rows {run[0]} to {run[-1]}: now zeros" for run in runs]
    wanted = some_rows(COUNT)
    wanted[lost] = 0
    with ngs.open(path) as store:
        np.testing.assert_array_equal(store.rows(np.arange(COUNT)), wanted)


def test_an_unreadable_page_of_tokens_loses_the_ngrams_on_it(quick_path, bad_sectors):
    path = quick_path / "store"
    build_ngrams(path, {(1000 + i, 2000 + i, 3000 + i): i for i in range(COUNT)})
    bad_sectors(path / "base-000001.tokens", 2)
    report = repair(path, quick_path / "out")
    each = 7 + 4 / 64  # bytes of an n-gram, its part of a checksum among them
    assert PAGE_BYTES // each <= report.num_lost <= PAGE_BYTES // each + 2
    with ngs.open(quick_path / "out") as store:
        assert len(store) == COUNT - report.num_lost


@pytest.mark.parametrize("page", range(1, 6))
def test_an_unreadable_page_of_an_index_is_a_fault_and_loses_nothing_where_tokens_are_kept(
    quick_path, bad_sectors, page
):
    path = quick_path / "store"
    ngrams = some_ngrams(COUNT)
    build_ngrams(path, dict(zip(ngrams, range(COUNT), strict=True)))
    bad_sectors(path / "base-000001.index", page)
    assert "base-000001.index" in {fault.file for fault in verify(path)}
    assert repair(path).lost == []
    with ngs.open(path) as store:
        rows, found = store.get(ngrams)
        assert found.all()
        assert stamps_of(rows) == list(range(COUNT))


def test_an_unreadable_page_of_tombstones_is_a_fault(quick_path, bad_sectors):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(COUNT)})
    with ngs.open(path, mode="rw") as store:
        store.delete([(i,) for i in range(COUNT // 2)])
        store.put([(COUNT,)], rows_of([COUNT], 4))
    bad_sectors(path / "tombstones-000002.index", 3)
    assert {fault.file for fault in verify(path)} == {"tombstones-000002.index"}
    assert "deletions" in repair(path, quick_path / "out").lost[0]


@pytest.mark.parametrize("options", [{}, {"dim": 64, "compression": "zstd"}])
def test_an_unreadable_page_is_damage_that_names_it_and_costs_the_rows_on_it(quick_path, bad_sectors, options):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(COUNT)}, **options)
    lost = rows_on(path, 20 if options else 3)
    bad_sectors(path / "base-000001.rows", 20 if options else 3)
    with ngs.open(path) as store:
        with pytest.raises(DamagedStore, match=r"base-000001\.rows: byte [0-9,]+ cannot be read"):
            list(store.items())
        bad: list[int] = []
        rows = store._view.base.read_encoded(0, COUNT, bad=bad)
    assert bad == lost != []
    assert not rows[lost].any() and rows[np.setdiff1d(np.arange(COUNT), lost)].any(axis=1).all()


@pytest.mark.parametrize("has_checksums", [False, True])
def test_unreadable_rows_in_a_checkpoint_are_named_and_no_others(quick_path, bad_sectors, has_checksums):
    wanted = write_longcat(quick_path / "checkpoint")
    path = quick_path / "store"
    import_checkpoint(quick_path / "checkpoint", path, checksums=has_checksums)
    (source,) = (quick_path / "checkpoint").glob("*.safetensors")
    with ngs.open(path, trust_external=True) as store:
        base = store._view.base
        starts = base.places(0, len(wanted))[0]
        page = int(starts[len(wanted) // 2]) // PAGE_BYTES
        bad_sectors(source, page)
        bad: list[int] = []
        rows = base.read_encoded(0, len(wanted), bad=bad)
        with pytest.raises(DamagedStore):
            base.read_encoded(0, len(wanted))
    is_lost = (starts < (page + 1) * PAGE_BYTES) & (starts + wanted.shape[1] > page * PAGE_BYTES)
    assert bad == np.flatnonzero(is_lost).tolist() != []
    assert (rows[~is_lost] == wanted[~is_lost]).all()


def test_an_unreadable_page_of_an_unfinished_pack_is_written_anew(quick_path, bad_sectors, monkeypatch):
    monkeypatch.setattr(job, "_CHUNK_BYTES", 100 * 512)
    write_longcat(quick_path / "checkpoint")
    given = {"pack": True, "compression": "none"}
    import_checkpoint(quick_path / "checkpoint", quick_path / "clean", **given)
    writes = iter(range(100))

    def fail(operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".rows" and next(writes) == 6:
            raise OSError(errno.EIO, "injected", str(path))

    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        with pytest.raises(OSError, match="injected"):
            import_checkpoint(quick_path / "checkpoint", quick_path / "out", **given)
    bad_sectors(quick_path / "out" / "base-000001.rows", 20)
    report = import_checkpoint(quick_path / "checkpoint", quick_path / "out", **given)
    assert 100 < report.resumed_rows < 500
    assert (quick_path / "out" / "base-000001.rows").read_bytes() == (
        quick_path / "clean" / "base-000001.rows"
    ).read_bytes()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_pack_that_cannot_begin_lets_go_of_its_files(quick_path, monkeypatch):
    write_longcat(quick_path / "checkpoint")

    def fail(operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".rows":
            raise OSError(errno.EIO, "injected", str(path))

    def attempt() -> None:
        with pytest.raises(OSError, match="injected"):
            import_checkpoint(quick_path / "checkpoint", quick_path / "out", pack=True, compression="none")

    monkeypatch.setattr(files, "observe", fail)
    attempt()
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    attempt()
    assert len(os.listdir("/proc/self/fd")) == descriptors
