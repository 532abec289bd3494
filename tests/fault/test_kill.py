"""kill -9 of a writer at random moments, again and again on one store: what was acknowledged is there, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import assert_verifies, build_ngrams, contents, published, rows_of, start_python, temporary_directory

import ngramstore as ngs

KEYS = [(i, i % 5) for i in range(40)]
VICTIM = [(1000, i) for i in range(8)]
ZYGOTE = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_kill import serve
serve()
"""


def write_for_ever(path: Path, stamp: int) -> None:
    """Puts of all keys under one stamp, deletes and re-puts, flushes, compactions; says what was acknowledged."""
    print(f"start {os.getpid()}", flush=True)
    with ngs.open(path, mode="rw") as store:
        while True:
            stamp += 1
            store.put(KEYS, rows_of([stamp] * len(KEYS), 4))
            print(f"put {stamp}", flush=True)
            if stamp % 3 == 0:
                store.delete(VICTIM)
                store.put(VICTIM, rows_of([stamp] * len(VICTIM), 4))
            if stamp % 2 == 0:
                store.flush()
                print(f"flush {stamp}", flush=True)
            if stamp % 5 == 0:
                store.compact()
                print(f"flush {stamp}", flush=True)


def cycle(mode: str) -> None:
    """Use a store once."""
    with temporary_directory() as room:
        build_ngrams(Path(room, "s"), {(1,): 1, (2, 3): 2})
        with ngs.open(Path(room, "s"), mode=mode) as store:
            store.get([(1,), (9,)])
            if mode == "rw":
                store.put([(1,), (4,)], rows_of([5, 6], 4))
                store.delete([(2, 3)])
                store.get([(1,), (9,)])
                store.flush()
                store.compact()
            list(store.items())


def serve() -> None:
    """A process that forks a writer for each line "path stamp": it is warm, and holds no RocksDB when it forks."""
    if os.fork() == 0:  # compiles what is not compiled yet, RocksDB and all
        cycle("rw")
        os._exit(0)
    os.wait()
    cycle("r")
    for line in sys.stdin:
        path, stamp = line.split()
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(Path(path), int(stamp))
            finally:
                print("raised", flush=True)
                os._exit(1)
        os.waitpid(child, 0)
        print("\ndead", flush=True)


@pytest.fixture(scope="module")
def zygote() -> Iterator[subprocess.Popen[bytes]]:
    process = start_python(ZYGOTE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def run_and_kill(
    zygote: subprocess.Popen[bytes], path: Path, stamp: int, delay: float, *, after_put: bool
) -> tuple[int, int]:
    """The last stamps whose put and whose flush were acknowledged before the kill (0: none)."""
    zygote.stdin.write(f"{path} {stamp}\n".encode())
    zygote.stdin.flush()
    word, pid = zygote.stdout.readline().split()
    assert word == b"start"
    last = {b"put": 0, b"flush": 0}
    if after_put:
        word, number = zygote.stdout.readline().split()
        last[word] = int(number)
    time.sleep(delay)
    os.kill(int(pid), signal.SIGKILL)
    while (line := zygote.stdout.readline()) != b"dead\n":
        assert line and line != b"raised\n"
        if line.endswith(b"\n") and len(line.split()) == 2:
            word, number = line.split()
            last[word] = int(number)
    return last[b"put"], last[b"flush"]


def stamp_of_all(found: dict) -> int:
    """The one stamp of all keys: a put is seen whole or not at all."""
    stamps = {found[key] for key in KEYS}
    assert len(stamps) == 1, stamps
    assert len({found[key] for key in VICTIM if key in found}) <= 1
    assert sum(key in found for key in VICTIM) in (0, len(VICTIM))
    return stamps.pop()


def attack(zygote: subprocess.Popen[bytes], path: Path, kills: int, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    build_ngrams(path, dict.fromkeys([*KEYS, *VICTIM], 0), codec="f32")
    stamp = 0
    for number in range(kills):
        after_put = number == 0 or rng.random() < 0.7
        delay = rng.choice([0.02, 0.1, 0.3]) * rng.random()
        put, flush = run_and_kill(zygote, path, stamp, delay, after_put=after_put)
        assert put > 0 or not after_put
        public = stamp_of_all(published(path))
        assert public >= flush, "a flush that returned is lost"
        assert_verifies(path)
        with ngs.open(path, mode="rw") as store:
            listed = store.get(KEYS)[0]
            known, stamp = stamp, int(listed[0, 0] // 8)
            assert stamp >= max(put, public, known), "a put that returned is lost"
            assert (listed == rows_of([stamp] * len(KEYS), 4)).all()
            if rng.random() < 0.5:  # else the next writer finds the journal as it is
                assert stamp_of_all(contents(store)) == stamp
                left = {file.name for file in path.iterdir()}
                named = {"LOCK", "MANIFEST", *(file.name for file in store.files)}
                assert named <= left <= {*named, store._view.manifest.journal}
            else:
                store._shut()
    with ngs.open(path, mode="rw") as store:
        store.compact()
        assert stamp_of_all(contents(store)) == stamp
    assert_verifies(path)


def test_a_killed_writer_loses_nothing_acknowledged(quick_path, zygote):
    attack(zygote, quick_path / "store", 12, seed=random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_killed_hundreds_of_times_loses_nothing_acknowledged(tmp_path, zygote):
    attack(zygote, tmp_path / "store", 250, seed=random.randrange(1 << 30))


def test_a_killed_build_is_recognised_and_restarted(quick_path):
    path = quick_path / "store"
    code = """
import sys, os, signal
from helpers import rows_of
import ngramstore as ngs
b = ngs.build(sys.argv[1], dim=4, max_n=1, codec="f32", memory_bytes=1)
for i in range(5):
    b.add([(100 * i + j,) for j in range(100)], rows_of(range(100), 4))
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = start_python(code, path)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(ngs.errors.IncompleteStore, match="restart=True"):
        ngs.open(path)
    with pytest.raises(ngs.errors.IncompleteStore):
        ngs.build(path, dim=4, max_n=1)
    build_ngrams(path, {(1,): 1}, restart=True)
    assert published(path) == {(1,): 1}
    assert {file.suffix for file in path.iterdir()} == {"", ".index", ".rows", ".tokens"}
