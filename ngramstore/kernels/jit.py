"""How our kernels are compiled: numba, without the GIL, cached on disk where that is possible.

A container without a writable home has no place for numba's cache: `cache=True` then raises at decoration. We say so
once in the log and compile in memory, which costs some seconds in each process (`ngramstore warmup` shows how many).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba

_log = logging.getLogger("ngramstore")
_F = TypeVar("_F", bound=Callable[..., Any])
_warned: list[str] = []


def kernel(function: _F) -> Any:
    """Compile `function` on first call: nogil, cached when a cache folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:  # numba: "cannot cache function: no locator available"
        _warn(error)
        return numba.njit(nogil=True, error_model="numpy")(function)


def callback(signature: Any, function: _F) -> Any:
    """Compile `function` now for one signature, so that kernels can call it by its `address`; cached like a kernel."""
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        _warn(error)
        return numba.cfunc(signature, error_model="numpy")(function)


def inline(function: _F) -> Any:
    """A helper that only other kernels call; LLVM inlines it there."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def _warn(error: RuntimeError) -> None:
    if not _warned:
        _warned.append(str(error))
        _log.warning("kernels are compiled anew in each process (%s); set NUMBA_CACHE_DIR to a writable folder", error)


def cache_is_on_disk() -> bool:
    """False where kernels had to be compiled in memory (reported by `stats`)."""
    return not _warned
