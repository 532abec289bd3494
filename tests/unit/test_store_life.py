"""Long histories of one store: what each step holds, keeps and says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import assert_verifies, build_ngrams, published, rows_of, stamps_of

import ngramstore as ngs
from ngramstore.cli.main import cli
from ngramstore.file_writer import FileWriter
from ngramstore.store.changes import compaction


@pytest.fixture
def path(quick_path) -> Path:
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(50)})
    return path


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_handle_goes_on_while_it_is_backed_up(path, monkeypatch, mode):
    copy = path.with_name("copy")
    is_copying, may_go_on = threading.Event(), threading.Event()
    real = FileWriter.write

    def slow(writer: FileWriter, data) -> None:
        if writer.path.parent == copy:
            is_copying.set()
            assert may_go_on.wait(60)
        real(writer, data)

    monkeypatch.setattr(FileWriter, "write", slow)
    with ngs.open(path, mode=mode) as store:
        thread = threading.Thread(target=store.backup, args=(copy,))
        thread.start()
        assert is_copying.wait(60)
        done = threading.Event()

        def use() -> None:
            assert stamps_of(store.get([(7,)])[0]) == [7]
            assert len(store) == 50 and store.stats()["rows"] == 50
            if mode == "rw":
                store.put([(50,)], rows_of([50], 4))
                store.flush()
                store.compact()
            done.set()

        threading.Thread(target=use, daemon=True).start()
        is_done = done.wait(60)
        may_go_on.set()
        thread.join(60)
        assert is_done
    assert published(copy) == {(i,): i for i in range(50)}
    assert_verifies(copy)


def test_a_compaction_lets_go_of_the_overlay_that_its_own_flush_replaced(path, monkeypatch):
    seen = []
    real = compaction.require_space

    def look(directory: Path, needed: int, what: str) -> None:
        seen.append((directory / "overlay-000002.rows").exists())
        real(directory, needed, what)

    with ngs.open(path, mode="rw", cache_bytes=0) as store:
        store.put([(60,)], rows_of([60], 4))
        store.flush()
        assert (path / "overlay-000002.rows").exists()
        store.put([(61,)], rows_of([61], 4))
        monkeypatch.setattr(compaction, "require_space", look)
        store.compact()
    assert seen == [False]


def test_a_writer_remembers_no_journal_that_is_gone(path):
    with ngs.open(path, mode="rw") as store:
        for i in range(20):
            store.put([(i,)], rows_of([i + 100], 4))
            store.flush()
        assert store._writer._published_journals == set()


def test_compact_says_how_many_rows_and_deletions_it_merged(path):
    def change(put: list[int], delete: list[int]) -> None:
        """Left in the journal."""
        store = ngs.open(path, mode="rw")
        if put:
            store.put([(i,) for i in put], rows_of(put, 4))
        if delete:
            store.delete([(i,) for i in delete])
        store.__exit__(KeyError, KeyError(), None)

    change([], [1, 2, 3])
    said = CliRunner().invoke(cli, ["compact", str(path)])
    assert "merged 0 changed rows and 3 deletions into 47 rows" in said.stdout, said.output
    with ngs.open(path, mode="rw") as store:
        store.put([(5,), (6,)], rows_of([5, 6], 4))
    change([6, 70], [])
    said = CliRunner().invoke(cli, ["compact", str(path)])
    assert "merged 3 changed rows and 0 deletions into 48 rows" in said.stdout, said.output
