"""The loop that times calls one by one, the same for every subject."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def nanoseconds(call: Callable[..., object], wanted: Sequence[Any] | np.ndarray, *more: object) -> np.ndarray:
    """Of each `call(one, *more)`: (C,) i64. Garbage collection is held back."""
    clock = time.perf_counter_ns
    times = np.empty(len(wanted), np.int64)
    gc.collect()
    gc.disable()
    try:
        for i, one in enumerate(wanted):
            start = clock()
            call(one, *more)
            times[i] = clock() - start
    finally:
        gc.enable()
    return times
