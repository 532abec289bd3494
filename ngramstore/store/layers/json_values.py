"""Values of a manifest's JSON, checked: anything may stand there, and a ValueError says what does."""

from __future__ import annotations

import re
from typing import Any

_MAX_COUNT = 1 << 62
_DECIMAL = re.compile(r"-?[0-9]{1,40}")


def as_count(value: Any) -> int:
    """A number of things or of bytes, a place, a generation: a whole number that fits 62 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_COUNT:
        raise ValueError(f"{value!r} is not a count")
    return value


def as_decimal(value: Any, lowest: int, highest: int) -> int:
    """A whole number from lowest to highest, written as a decimal string because it may pass 2**53."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or not lowest <= int(value) <= highest:
        raise ValueError(f"{value!r} is not a decimal string from {lowest} to {highest}")
    return int(value)


def as_flag(value: Any) -> bool:
    """true or false, and nothing else that Python takes for one."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value
