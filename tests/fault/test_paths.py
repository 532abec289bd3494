"""Where a store may lie: names in any script, relative paths and a change of directory, links, paths that cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, build_ngrams, published, rows_of

import ngramstore as ngs
from ngramstore.errors import NgramStoreError, UsageError, WriterLocked, WrongProcess
from ngramstore.store.repair.repair import repair


def test_a_name_may_be_any_text(quick_path):
    path = quick_path / "ünï ☃ \u202e" / "a b'\"$"
    build_ngrams(path, {(1,): 1})
    with ngs.open(path, mode="rw") as store:
        store.put([(2,)], rows_of([2], 4))
        store.compact()
        store.put([(3,)], rows_of([3], 4))
        store.backup(path.with_name("copy ☃"))
    assert published(path) == published(path.with_name("copy ☃")) == {(1,): 1, (2,): 2, (3,): 3}


def test_a_name_that_is_no_text_is_refused_for_the_journal_alone(quick_path):
    path = quick_path / os.fsdecode(b"bad\xff")
    build_ngrams(path, {(1,): 1})
    before = sorted(os.listdir(path))
    with ngs.open(path, mode="rw") as store:
        with pytest.raises(UsageError, match="UTF-8") as caught:
            store.put([(2,)], rows_of([2], 4))
        assert "rename" in caught.value.hint
        assert store.get([(1,)])[1].all()
    assert sorted(os.listdir(path)) == before
    (quick_path / "link").symlink_to(path)
    with ngs.open(quick_path / "link", mode="rw") as store:  # what the hint says
        store.put([(2,)], rows_of([2], 4))
    assert published(path) == {(1,): 1, (2,): 2}


def test_a_change_of_directory_moves_nothing(quick_path, monkeypatch):
    monkeypatch.chdir(quick_path)
    builder = ngs.build("store", dim=4, max_n=1, codec="f32")
    builder.add([(1,)], rows_of([1], 4))
    monkeypatch.chdir("/")
    builder.finish()
    monkeypatch.chdir(quick_path)
    with ngs.open("store", mode="rw") as store:
        monkeypatch.chdir("/")
        store.put([(2,)], rows_of([2], 4))
        store.compact()
    assert published(quick_path / "store") == {(1,): 1, (2,): 2}


def test_a_link_to_a_store_is_the_store(quick_path):
    build_ngrams(quick_path / "store", {(1,): 1})
    link = quick_path / "link"
    link.symlink_to("store")
    with ngs.open(link, mode="rw") as store:
        with pytest.raises(WriterLocked):
            ngs.open(quick_path / "store", mode="rw")
        store.put([(2,)], rows_of([2], 4))
    assert published(link) == published(quick_path / "store") == {(1,): 1, (2,): 2}


@pytest.mark.parametrize("where", ["link to nothing", "link to itself", "file/inside", "x" * 300])
def test_a_path_that_cannot_be_is_one_clear_error(quick_path, where):
    store, path = quick_path / "store", quick_path / where
    build_ngrams(store, {(1,): 1})
    (quick_path / "file").touch()
    (quick_path / "link to nothing").symlink_to("nowhere")
    (quick_path / "link to itself").symlink_to("link to itself")
    before = sorted(quick_path.rglob("*"))
    with ngs.open(store) as reader:
        acts = [lambda: ngs.open(path), lambda: build_ngrams(path, {(1,): 1}), lambda: reader.backup(path)]
        file = store / "base-000001.rows"
        file.write_bytes(file.read_bytes()[:-1])
        for act in [*acts, lambda: repair(store, path)]:
            with pytest.raises(NgramStoreError) as caught:
                act()
            assert caught.value.hint
    assert sorted(quick_path.rglob("*")) == before


def test_a_build_belongs_to_the_process_that_began_it(quick_path):
    """A fork that ends it, in anger or not, leaves it alone."""
    builder = ngs.build(quick_path / "store", dim=4, max_n=1, codec="f32")
    builder.add([(1,)], rows_of([1], 4))
    child = os.fork()
    if child == 0:
        code = 0
        for act in (lambda: builder.add([(2,)], rows_of([2], 4)), builder.finish):
            try:
                act()
                code = 1
            except WrongProcess:
                pass
            except BaseException:
                code = 2
        builder.abort()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    builder.add([(3,)], rows_of([3], 4))
    builder.finish()
    assert published(quick_path / "store") == {(1,): 1, (3,): 3}


NAMED = """
import os, signal, sys
import ngramstore as ngs
path = os.path.join(sys.argv[1], os.fsdecode("\\u00fcn\\u00ef \\u2603".encode()))
with ngs.build(path, dim=4, max_n=1, codec="f32") as builder:
    builder.add([(1,)], [[1.0] * 4])
store = ngs.open(path, mode="rw")
store.put([(2,)], [[2.0] * 4])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_journal_lies_in_its_store_whatever_the_locale_says_of_names(quick_path):
    """Names are bytes: RocksDB must be given those that Python was given."""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NAMED, str(quick_path)]
    child = subprocess.run(command, check=False, env=os.environ | environment)
    assert child.returncode == -signal.SIGKILL
    assert os.listdir(quick_path) == ["ünï ☃"]
    with ngs.open(quick_path / "ünï ☃", mode="rw") as store:
        assert store.get([(2,)])[1].all()
