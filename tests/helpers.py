"""What several store tests need: small stores of every kind, plain models of what they must answer, child processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import numpy as np

import ngramstore as ngs
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES
from ngramstore.serve.store import Store

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = (0, 1, 2, 3, 2**32 - 1)
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
NGram = tuple[int, ...]
Answer = TypeVar("Answer")


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """In memory where possible: these tests call fsync thousands of times."""
    return tempfile.TemporaryDirectory(dir=QUICK)


def copy_of_one_moment(source: Path, destination: Path) -> None:
    """All files as a kill would leave them, while their owner lives: copied again when they changed meanwhile.

    RocksDB merges its files on a thread of its own, and deletes the old ones.
    """

    def state() -> dict[str, tuple[int, int, int]]:
        facts = {}
        for folder, _, names in os.walk(source):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    continue
                facts[path] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return facts

    for _ in range(100):
        before = state()
        try:
            shutil.copytree(source, destination)
            if state() == before:
                return
        except shutil.Error:  # one of the files is gone
            pass
        shutil.rmtree(destination)
    raise AssertionError(f"{source} never stood still")


def cache_of(num_rows: int, row_bytes: int) -> int:
    """A budget that makes a row cache of exactly this many rows."""
    return num_rows * (row_bytes + SLOT_OVERHEAD_BYTES)


def rows_of(stamps, dim: int) -> np.ndarray:
    """A row for each number: (M, dim) f32 that tells it and every column apart, exact in f32, repetitive enough for zstd."""
    return (np.asarray(stamps, np.float32).reshape(-1, 1) * 8 + np.arange(dim, dtype=np.float32) % 8).astype(np.float32)


def stamps_of(rows: np.ndarray) -> list[int]:
    """The numbers behind rows; fails on a row that `rows_of` did not make."""
    stamps = (rows[:, 0] // 8).astype(np.int64)
    np.testing.assert_array_equal(rows, rows_of(stamps, rows.shape[1]))
    return stamps.tolist()


def all_ngrams(max_n: int, vocabulary: tuple[int, ...] = VOCABULARY) -> list[NGram]:
    """Every n-gram over a vocabulary."""
    result: list[NGram] = []
    level: list[NGram] = [()]
    for _ in range(max_n):
        level = [(*ngram, token) for ngram in level for token in vocabulary]
        result += level
    return result


def longest_match(stored, tokens, starts=None) -> np.ndarray:
    """The rule, spelled out: tokens (B, T) -> lengths (B, T) of the longest n-gram of `stored` ending at each position."""
    lengths = np.zeros(np.shape(tokens), np.uint8)
    longest = max(map(len, stored), default=0)
    for b, line in enumerate(tokens):
        for t in range(len(line)):
            for n in range(1, min(longest, t + 1) + 1):
                if tuple(int(token) for token in line[t + 1 - n : t + 1]) in stored:
                    lengths[b, t] = n
                if starts is not None and starts[b][t + 1 - n]:
                    break
    return lengths


def build_ngrams(path: Path, model: dict[NGram, int], *, dim: int = 4, max_n: int = 3, codec="f32", **options) -> None:
    """A store of n-gram -> stamp."""
    with ngs.build(path, dim=dim, max_n=max_n, codec=codec, **options) as builder:
        builder.add(list(model), rows_of(list(model.values()), dim))


def contents(store: Store) -> dict[NGram, int]:
    """All that `items` lists, as n-gram -> stamp."""
    pairs = list(store.items())
    result = {ngram: stamps_of(row[None])[0] for ngram, row in pairs}
    assert len(result) == len(pairs)
    return result


def published(path: Path) -> dict[NGram, int]:
    """What a new reader sees."""
    with ngs.open(path, cache_bytes=0) as store:
        found = contents(store)
        assert len(store) == len(found)
        if found:
            rows, there = store.get(list(found))
            assert there.all()
            assert stamps_of(rows) == list(found.values())
        return found


def assert_verifies(path: Path) -> None:
    """No fault anywhere."""
    with ngs.open(path) as store:
        assert store.verify() == []


def flip(path: Path, at: int, bit: int = 0) -> None:
    """One bit of a file changed in place, as a write to it is; at < 0: from the end. The times are left to the caller."""
    with open(path, "r+b") as file:
        at = file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def put_in_place(file: Path, directory: Path) -> None:
    """A file of another directory under its name in this one, as a restore does that leaves open files alone."""
    shutil.copyfile(file, directory / "arriving")
    os.replace(directory / "arriving", directory / file.name)


def reboot(monkeypatch) -> None:
    """From here on the machine seems to have been started anew."""
    for module in ("ack", "journal"):
        monkeypatch.setattr(f"ngramstore.store.journal.{module}.boot_id", lambda: b"another boot ...")


def open_files() -> set[tuple[str, str]]:
    """(descriptor, target) of every open file of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            pass  # the descriptor of this listing
    return found


def start_python(code: str, *args: object, **options) -> subprocess.Popen[bytes]:
    """A child process that runs code with this package and helpers.py on its path."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), env.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, **options)


def end_of_fork(act) -> int:
    """How a forked child ends that does this and no more: 0; killed where it hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def with_taken(lock: AbstractContextManager[object], act: Callable[[], Answer]) -> Answer:
    """What `act` answers while another thread has the lock."""
    is_taken, is_done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            is_taken.set()
            is_done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    is_taken.wait()
    try:
        return act()
    finally:
        is_done.set()
        holder.join()
