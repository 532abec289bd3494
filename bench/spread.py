"""What a round's numbers become: a median with its spread, and the ratio to a baseline of the same round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and range of at least one number."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("a summary needs at least one value")
    q1, median, q3 = np.percentile(array, [25, 50, 75])
    return {
        "median": float(median),
        "q1": float(q1),
        "q3": float(q3),
        "min": float(array.min()),
        "max": float(array.max()),
        "rounds": int(array.size),
    }


def ratios(values: Sequence[float | None], baseline: Sequence[float | None]) -> dict[str, float] | None:
    """Summary of value / baseline, round by round; None where no round has both.

    Rounds are compared with themselves, since a shared machine drifts more between rounds than within one.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} rounds against {len(baseline)} of the baseline")
    pairs = [(v, b) for v, b in zip(values, baseline, strict=True) if v is not None and b]
    return summary([v / b for v, b in pairs]) if pairs else None


def of_calls(nanoseconds: Sequence[int] | np.ndarray, keys_per_call: int) -> dict[str, float]:
    """One process's calls: median time per key (µs), and median, p99 and slowest time per call (µs)."""
    micros = np.asarray(nanoseconds, np.float64) / 1e3
    if micros.size == 0:
        raise ValueError("no call was timed")
    return {
        "us_per_key": float(np.median(micros) / keys_per_call),
        "mean_us_per_key": float(micros.mean() / keys_per_call),
        "p99_us_per_call": float(np.percentile(micros, 99)),
        "max_us_per_call": float(micros.max()),
        "calls": int(micros.size),
    }
