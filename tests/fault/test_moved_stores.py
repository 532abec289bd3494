"""A directory that is moved or replaced under its writer: what lies at the path now is somebody else's, and stays as it is."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers import assert_verifies, build_ngrams, copy_of_one_moment, published, rows_of

import ngramstore as ngs
from ngramstore.errors import StaleStore
from ngramstore.store.changes import writer as writer_module

WORK = {
    "put": lambda store: store.put([(9,)], rows_of([9], 4)),
    "delete": lambda store: store.delete([(1,)]),
    "flush": lambda store: store.flush(),
    "compact": lambda store: store.compact(),
}


@pytest.fixture
def stores(quick_path) -> tuple[Path, Path]:
    """One of generation 1, one of generation 3 with other files."""
    first, second = quick_path / "first", quick_path / "second"
    build_ngrams(first, {(1,): 1, (2,): 2})
    build_ngrams(second, {(3,): 3})
    with ngs.open(second, mode="rw") as store:
        store.put([(4,)], rows_of([4], 4))
        store.compact()
    return first, second


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def replace(first: Path, second: Path) -> Path:
    """The second store in the place of the first, which lies elsewhere afterwards."""
    first.rename(first.with_name("elsewhere"))
    second.rename(first)
    return first.with_name("elsewhere")


def relink(link: Path, second: Path) -> None:
    (link.parent / "new").symlink_to(second)
    os.replace(link.parent / "new", link)


@pytest.mark.parametrize("has_pending", [False, True])
@pytest.mark.parametrize("work", WORK)
def test_a_writer_leaves_a_store_alone_that_was_put_in_the_place_of_its_own(stores, work, has_pending):
    first, second = stores
    store = ngs.open(first, mode="rw")
    if has_pending:
        WORK["put"](store)
    before = {file.name: file.read_bytes() for file in second.iterdir()}
    elsewhere = replace(first, second)
    if work != "flush" or has_pending:
        with pytest.raises(StaleStore, match="moved, removed or replaced") as caught:
            WORK[work](store)
        assert "open it again" in caught.value.hint
    with pytest.raises(StaleStore) if has_pending else nullcontext():
        store.close()
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert published(first) == {(3,): 3, (4,): 4}
    assert_verifies(first)
    with ngs.open(elsewhere, mode="rw"):  # nobody holds it any more
        pass
    assert published(elsewhere) == {(1,): 1, (2,): 2} | ({(9,): 9} if has_pending else {})


def test_a_writer_through_a_link_that_is_set_to_another_store_refuses_to_publish(stores, quick_path):
    first, second = stores
    (quick_path / "current").symlink_to(first)
    store = ngs.open(quick_path / "current", mode="rw")
    WORK["put"](store)
    relink(quick_path / "current", second)
    with pytest.raises(StaleStore):
        store.close()
    assert published(second) == {(3,): 3, (4,): 4}
    assert_verifies(second)


def test_a_store_that_is_replaced_during_a_compaction_keeps_its_manifest(stores, monkeypatch):
    first, second = stores
    real = writer_module.compacted

    def slow(*arguments, **options):
        manifest = real(*arguments, **options)
        replace(first, second)
        return manifest

    monkeypatch.setattr(writer_module, "compacted", slow)
    store = ngs.open(first, mode="rw")
    WORK["put"](store)
    with pytest.raises(StaleStore):
        store.compact()
    store.close()
    assert published(first) == {(3,): 3, (4,): 4}
    assert_verifies(first)


def test_a_writer_whose_directory_is_gone_closes_in_peace(stores):
    first, _ = stores
    store = ngs.open(first, mode="rw")
    shutil.rmtree(first)
    with pytest.raises(StaleStore):
        WORK["put"](store)
    store.close()


def test_a_journal_of_the_same_name_in_the_place_of_ours_is_not_written_to(stores):
    """Closing RocksDB writes by path."""
    first, second = stores
    shutil.rmtree(second)
    store = ngs.open(first, mode="rw")
    WORK["put"](store)
    copy_of_one_moment(first, second)
    before = content_of(second)
    elsewhere = replace(first, second)
    with pytest.raises(StaleStore):
        store.close()
    assert content_of(first) == before
    assert published(first) == {(1,): 1, (2,): 2}
    copy = first.rename(first.with_name("copy"))  # this process keeps the journal's lock, which goes by its name
    for path in (copy, elsewhere):
        with ngs.open(path, mode="rw"):
            pass
        assert published(path) == {(1,): 1, (2,): 2, (9,): 9}
