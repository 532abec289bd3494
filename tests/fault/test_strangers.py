"""Files of others in a store's directory: opening, building anew and giving up remove what is ours and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from checkpoints import write_engram
from helpers import build_ngrams, contents, start_python

import ngramstore as ngs
from ngramstore.errors import UsageError
from ngramstore.store.imports.importing import import_checkpoint

STRANGERS = ("runs/exp1/notes", "runs/lengths/notes", "journal-2024/notes", "journal-000099/notes")
STORED = {(1,): 1, (2, 3): 2}


def strangers(but: str) -> list[str]:
    return [name for name in STRANGERS if not name.startswith(but or "/")]


def put_strangers(path: Path, *, but: str = "") -> None:
    for name in strangers(but):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)


def assert_strangers_are_there(path: Path, *, but: str = "") -> None:
    wanted = strangers(but)
    assert {name: (path / name).read_text() for name in wanted if (path / name).exists()} == {n: n for n in wanted}


def test_a_writer_removes_no_directory_of_others(tmp_path):
    path = tmp_path / "store"
    build_ngrams(path, STORED, dim=4, max_n=2)
    put_strangers(path)
    for name in ("runs/run-00000.ids", "runs/run-00000.lengths", "journal-000007/ACK.tmp", "journal-000008/000004.log"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    (path / "journal-000009").mkdir()
    with ngs.open(path, mode="rw") as store:
        assert contents(store) == STORED
    assert_strangers_are_there(path)
    assert sorted(file.name for file in (path / "runs").iterdir()) == ["exp1", "lengths"]
    assert sorted(file.name for file in path.glob("journal-*")) == ["journal-000099", "journal-2024"]


def test_a_pipe_with_a_name_of_ours_does_not_hold_up_a_writer(tmp_path):
    path = tmp_path / "store"
    build_ngrams(path, STORED, dim=4, max_n=2)
    os.mkfifo(path / "base-000099.rows")
    child = start_python("import sys, ngramstore; ngramstore.open(sys.argv[1], mode='rw').close()", path)
    try:
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
    assert not (path / "base-000099.rows").exists()


def test_runs_that_are_all_ours_go_with_their_directory(tmp_path):
    path = tmp_path / "store"
    build_ngrams(path, STORED, dim=4, max_n=2)
    (path / "runs").mkdir()
    for name in ("run-00000.rows", "state.json", "dictionary", "lengths"):
        (path / "runs" / name).touch()
    ngs.open(path, mode="rw").close()
    assert not (path / "runs").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_build_started_anew_removes_no_directory_of_others(tmp_path, is_finished):
    path = tmp_path / "store"
    path.mkdir()
    (path / "BUILDING").write_text("{}")
    put_strangers(path)
    (path / "runs" / "run-00000.ids").touch()
    builder = ngs.build(path, dim=4, max_n=1, restart=True)
    builder.add([(1,)], [[1.0, 2.0, 3.0, 4.0]])
    if is_finished:
        builder.finish()
    else:
        builder.abort()
    assert_strangers_are_there(path)
    assert not (path / "runs" / "run-00000.ids").exists()
    assert (path / "MANIFEST").exists() == is_finished


@pytest.mark.parametrize("how", [{}, {"checksums": True}, {"pack": True}], ids=["in place", "checksums", "packed"])
def test_an_import_started_anew_removes_no_directory_of_others(tmp_path, how):
    write_engram(tmp_path / "checkpoint")
    path = tmp_path / "store"
    path.mkdir()
    (path / "BUILDING").write_text("import\n")
    put_strangers(path, but="runs/lengths")  # a name that an import needs
    (path / "runs" / "state.json").write_text("{}")
    import_checkpoint(tmp_path / "checkpoint", path, restart=True, **how)
    assert_strangers_are_there(path, but="runs/lengths")
    assert not (path / "runs" / "state.json").exists()
    assert (path / "MANIFEST").exists()


def test_a_directory_in_the_place_of_a_file_that_an_import_needs_is_named(tmp_path):
    write_engram(tmp_path / "checkpoint")
    path = tmp_path / "store"
    (path / "runs" / "lengths").mkdir(parents=True)
    (path / "BUILDING").write_text("import\n")
    with pytest.raises(UsageError, match="runs/lengths: Is a directory"):
        import_checkpoint(tmp_path / "checkpoint", path, pack=True, restart=True)
    assert (path / "runs" / "lengths").is_dir()
