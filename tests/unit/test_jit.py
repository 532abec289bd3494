"""How kernels are compiled: kept on disk while they are fresh, compiled again where that fails, and no lock is taken
into a fork."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from ngramstore.kernels import jit


@pytest.fixture
def cache_hits(tmp_path):
    """Call it: a process with a copy of the package loads a kernel; 1 where it came from the cache."""
    package = tmp_path / "ngramstore"
    shutil.copytree(Path(jit.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import numpy as np; from ngramstore.kernels.native.index import pack_low_bits as kernel;"
    code += "kernel(np.zeros(1, np.uint64), 8, np.zeros(1, np.uint8)); print(sum(kernel.stats.cache_hits.values()))"

    def run() -> int:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    return run


def test_cached_kernels_are_stale_when_a_file_they_inline_has_changed(tmp_path, cache_hits):
    """numba asks only for the file that a kernel is written in."""
    assert [cache_hits(), cache_hits()] == [0, 1]
    with open(tmp_path / "ngramstore" / "kernels" / "native" / "memory.py", "a") as file:
        file.write("# changed\n")
    assert [cache_hits(), cache_hits()] == [0, 1]


@pytest.mark.parametrize("kind", ["nbc", "nbi"])
@pytest.mark.parametrize("left", [b"", b"garbled"])
def test_a_cached_kernel_that_cannot_be_read_is_compiled_again(tmp_path, cache_hits, kind, left):
    """A power cut may leave its file empty: numba does not sync it."""
    assert cache_hits() == 0
    found = list((tmp_path / "cache").rglob(f"*.{kind}"))
    assert found
    for file in found:
        file.write_bytes(left)
    assert [cache_hits(), cache_hits()] == [0, 1]


def test_a_full_disk_under_the_cache_of_kernels_costs_time_alone(monkeypatch):
    def refuse(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jit, "_warned", [])
    monkeypatch.setattr(IndexDataCacheFile, "save", refuse)

    def doubled(x):
        return 2 * x

    assert jit.kernel(doubled)(4) == 8
    assert jit.callback(numba.int64(numba.int64), doubled).ctypes(4) == 8
    assert not jit.cache_is_on_disk()


FORKED_WHILE_COMPILING = """
import os, signal, threading, time
import ngramstore.kernels.jit
from numba.core.compiler_lock import global_compiler_lock

held = threading.Event()

def compile_for_a_while():
    with global_compiler_lock:
        held.set()
        time.sleep(0.5)

threading.Thread(target=compile_for_a_while).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    with global_compiler_lock:
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
another = threading.Thread(target=compile_for_a_while, daemon=True)
another.start()
another.join(30)
print(another.is_alive())
"""


def test_a_fork_while_another_thread_compiles_leaves_a_child_and_a_parent_that_can():
    code = [sys.executable, "-W", "ignore", "-c", FORKED_WHILE_COMPILING]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
