"""Options that several calls take, checked the same way everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from ngramstore.errors import UsageError


def checked_threads(threads: Any) -> int:
    """A number of threads, or UsageError."""
    if not is_whole(threads) or not 1 <= threads <= 256:
        raise UsageError(f"threads is {threads!r}", hint="give a number from 1 to 256")
    return int(threads)


def is_whole(value: Any) -> bool:
    """A Python or numpy integer, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def choose(name: str, value: str, known: tuple[str, ...]) -> None:
    """UsageError unless `value` is one of those known."""
    if value not in known:
        raise UsageError(f"{name} is {value!r}", hint=f"choose one of {', '.join(known)}")
