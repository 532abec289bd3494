"""Readers in other processes while one writes: always a published state, never an error; files stay while they are held."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from helpers import build_ngrams, published, rows_of, start_python

import ngramstore as ngs
from ngramstore import writer_lock
from ngramstore.errors import UsageError, WriterLocked

KEYS = [(i,) for i in range(300)]
READER = """
import json, sys
import numpy as np
import ngramstore as ngs
from helpers import rows_of

keys = [(i,) for i in range(300)]
options = json.loads(sys.argv[2])
store = ngs.open(sys.argv[1], **options)
print("ready", flush=True)
looks, last, last_generation = 0, 0, 0
while True:
    if options.get("resident") and looks % 7 == 0:
        store.close()
        store = ngs.open(sys.argv[1], **options)
    store.refresh()
    generation = store.generation
    assert generation >= last_generation, (generation, last_generation)
    last_generation = generation
    rows, found = store.get(keys)
    assert found.all()
    stamp = int(rows[0, 0] // 8)
    assert (rows == rows_of([stamp] * 300, 4)).all(), "rows of two states in one look-up"
    assert stamp >= last, (stamp, last)
    last = stamp
    hit = store.lookup(np.arange(300))
    assert (hit.rows == rows).all() and (hit.length == 1).all()
    assert len(store) == 300 + (2 if (stamp % 2) else 0), (len(store), stamp)
    if looks % 5 == 0:
        assert {int(row[0] // 8) for _, row in store.items()} == {stamp}
    looks += 1
    if stamp == 999:
        break
print(looks, flush=True)
"""


def publish_many_states(writer: ngs.Store) -> None:
    """For some seconds, each with one stamp for all keys; the last stamp is 999."""
    extra, stamp = [(5, 5), (6, 6)], 0
    end = time.monotonic() + 3
    while time.monotonic() < end or stamp < 20:
        stamp += 1
        writer.put(KEYS, rows_of([stamp] * len(KEYS), 4))
        if stamp % 2:
            writer.put(extra, rows_of([stamp] * 2, 4))
        else:
            writer.delete(extra)
        writer.flush()
        if stamp % 3 == 0:
            writer.compact()
    writer.put(KEYS, rows_of([999] * len(KEYS), 4))
    writer.put(extra, rows_of([999] * 2, 4))
    writer.flush()


def test_readers_always_see_a_published_state(quick_path):
    path = quick_path / "store"
    build_ngrams(path, dict.fromkeys(KEYS, 0), compression="none")
    readers = [
        start_python(READER, path, options, stdout=subprocess.PIPE)
        for options in ('{"cache_bytes": 400}', '{"resident": true}')
    ]
    try:
        for reader in readers:
            assert reader.stdout.readline() == b"ready\n"
        with ngs.open(path, mode="rw") as writer:
            publish_many_states(writer)
            for reader in readers:
                assert reader.wait(timeout=60) == 0
                assert int(reader.stdout.readline()) >= 5
            writer.put([(0,)], rows_of([999], 4))
            writer.flush()
            left = {file.name for file in path.iterdir() if file.suffix}
            assert left == {file.name for file in writer.files}, "superseded files go once no reader holds them"
    finally:
        for reader in readers:  # they look until they see the last stamp, which a failure above keeps from them
            reader.kill()
            reader.wait()
            reader.stdout.close()


def test_superseded_files_stay_while_a_reader_holds_them(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1, (2,): 2})
    code = """
import sys, ngramstore as ngs
store = ngs.open(sys.argv[1], cache_bytes=0)
print("ready", flush=True)
input()
print(store.get([(1,), (2,)])[0][:, 0].tolist(), flush=True)
"""
    reader = start_python(code, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout.readline() == b"ready\n"
    with ngs.open(path, mode="rw") as writer:
        old = {file.name for file in writer.files}
        writer.put([(1,)], rows_of([7], 4))
        writer.compact()
        assert old < {file.name for file in path.iterdir()}
        said, _ = reader.communicate(b"\n", timeout=60)
        assert said == b"[8.0, 16.0]\n"
        writer.put([(2,)], rows_of([8], 4))
        writer.flush()
        assert not old & {file.name for file in path.iterdir()}
    assert published(path) == {(1,): 7, (2,): 8}


def test_the_writer_itself_does_not_hold_what_it_superseded(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1, (2,): 2})
    with ngs.open(path, mode="rw") as writer:
        for stamp in range(3):
            writer.put([(1,)], rows_of([stamp], 4))
            writer.get([(1,), (2,)])
            len(writer)
            writer.compact()
            assert {file.name for file in path.iterdir() if file.suffix} == {file.name for file in writer.files}


def test_a_second_writer_is_refused_and_told_who_is_there(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1})
    with ngs.open(path, mode="rw"):
        with pytest.raises(WriterLocked, match=str(os.getpid())):
            ngs.open(path, mode="rw")
        code = """
import sys, ngramstore as ngs
try:
    ngs.open(sys.argv[1], mode="rw")
except ngs.errors.WriterLocked as error:
    print(error)
"""
        child = start_python(code, path, stdout=subprocess.PIPE)
        said, _ = child.communicate(timeout=60)
        assert str(os.getpid()).encode() in said
        assert b"hint" in said
        with pytest.raises(UsageError, match="already holds a store"):
            ngs.build(path, dim=4, max_n=1)
        ngs.open(path).close()
    ngs.open(path, mode="rw").close()


def test_a_lock_file_removed_between_open_and_lock_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    path = tmp_path / "LOCK"
    real = writer_lock.fcntl.flock

    def removed_first(fd, operation):
        if not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(writer_lock.fcntl, "flock", removed_first)
    lock = writer_lock.WriterLock(path)
    with pytest.raises(WriterLocked):
        writer_lock.WriterLock(path)
    lock.release()
    writer_lock.WriterLock(path).release()


def test_a_second_build_of_the_same_path_is_refused(quick_path):
    path = quick_path / "store"
    builder = ngs.build(path, dim=4, max_n=1)
    with pytest.raises(ngs.errors.IncompleteStore):
        ngs.build(path, dim=4, max_n=1)
    with pytest.raises(WriterLocked):
        ngs.build(path, dim=4, max_n=1, restart=True)
    builder.add([(1,)], rows_of([1], 4))
    builder.finish()
    assert len(ngs.open(path)) == 1
