"""How our kernels are compiled: numba, without the GIL, cached on disk where that is possible.

A container without a writable home has no place for numba's cache: `cache=True` then raises at decoration. We say so
once in the log and compile in memory, which costs some seconds in each process (`ngramstore warmup` shows how many).

numba takes a cached kernel for fresh as long as the file it is written in is. Ours inline helpers and constants of each other's
files: their cache is fresh while none of the files of kernels/native has changed.

A fork waits while another thread compiles or loads a kernel: numba's lock, taken in the parent, would never be free in the child.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.core.sigutils import normalize_signature

_log = logging.getLogger("ngramstore")
_F = TypeVar("_F", bound=Callable[..., Any])
_warned: list[str] = []


def kernel(function: _F) -> Any:
    """Compile `function` on first call: nogil, cached when a cache folder is writable."""
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    _keep_on_disk(compiled)
    return compiled


def callback(signature: Any, function: _F) -> Any:
    """Compile `function` now for one signature, so that kernels can call it by its `address`; cached like a kernel."""
    compiled = CFunc(function, normalize_signature(signature), locals={}, options={"error_model": "numpy"})
    _keep_on_disk(compiled)
    compiled.compile()
    return compiled


def inline(function: _F) -> Any:
    """A helper that only other kernels call; LLVM inlines it there."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def _keep_on_disk(compiled: Any) -> None:
    """Cache a kernel, where a folder is writable, for as long as no file of kernels/native changes."""
    try:
        compiled.enable_caching()
    except RuntimeError as error:  # numba: "cannot cache function: no locator available"
        _warn(error)
        return
    file = compiled._cache._cache_file
    file._source_stamp = (file._source_stamp, _stamp())
    load, save = compiled._cache.load_overload, compiled._cache.save_overload

    def load_if_possible(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception as error:  # of any kind: a power cut may leave an empty file, and numba unpickles it
            _log.info("a cached kernel cannot be read (%r): it is compiled again", error)
        try:
            compiled._cache.flush()  # else what follows is saved into an index that nobody can read
        except OSError as error:
            _warn(error)
        return None

    def save_if_possible(*arguments: Any) -> None:
        try:
            save(*arguments)
        except Exception as error:  # a full disk, an index that cannot be read: what is compiled is of use all the same
            _warn(error)

    compiled._cache.load_overload, compiled._cache.save_overload = load_if_possible, save_if_possible


@cache
def _stamp() -> str:
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "native").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _warn(error: Exception) -> None:
    if not _warned:
        _warned.append(str(error))
        _log.warning("kernels are compiled anew in each process (%s); set NUMBA_CACHE_DIR to a writable folder", error)


def cache_is_on_disk() -> bool:
    """False where kernels had to be compiled in memory (reported by `stats`)."""
    return not _warned


if hasattr(os, "register_at_fork"):
    # No circle: who holds this lock waits for none of ours, but may log. Handlers before a fork run last one first,
    # this one before logging's.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
