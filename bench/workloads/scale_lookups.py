"""Look-ups in a store of many small rows, once its cache is as it stays. Worker function of workload `scale`.

Shapes: M keys, B batch, C calls, K order, D row width.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np

import ngramstore
from bench import pages, spread
from bench.rows import row_bytes
from bench.timed import nanoseconds
from bench.workloads import scale_keys as keys
from bench.workloads.scale_store import CALL_ROWS, check_answers
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES

_MOST_KEYS = 1 << 19
"""Of a batch size, looked up in all."""
_UNCOUNTED = 16
"""Calls of a batch size before those that are timed."""
_WINDOW = 1 << 18
"""Look-ups that a hit rate is taken over while the cache settles; its standard error is 0.001."""
_MOST_WINDOWS = 16
_STEADY = 0.01
"""Hit rates of two windows that differ by less are the same."""


def lookups(
    *,
    path: str,
    num_keys: int,
    dim: int,
    mix: str,
    batch_sizes: list[int],
    calls: int,
    warmup_s: float,
    seed: int,
    cache_share: float | None = None,
) -> dict:
    """Exact look-ups of one mix of keys through a row cache that holds what an endless run of the mix would leave in it.

    cache_share: of the rows that fits the cache; None: a cache of the default size.
    """
    files = sorted(Path(path).glob("base-*"))
    pages.warm(files)
    rng = np.random.default_rng(seed)
    metrics: dict[str, float] = {}
    num_cached = int((cache_share or 0) * num_keys)
    options = {"cache_bytes": num_cached * (row_bytes(dim) + SLOT_OVERHEAD_BYTES)} if cache_share else {}
    with ngramstore.open(path, **options) as store:
        checked = check_answers(store, mix, num_keys, dim, rng)
        expected = _fill(store, mix, num_keys, rng)
        settled = _settle(store, mix, num_keys, warmup_s, rng, expected)
        start = store.stats()
        for size in batch_sizes:
            count = max(1, min(calls, _MOST_KEYS // size))
            _times(
                store, _batches(mix, num_keys, size, _UNCOUNTED, rng)
            )  # the mean would have the loading of kernels in it
            batches = _batches(mix, num_keys, size, count, rng)
            before = store.stats()
            found = spread.of_calls(_times(store, batches), size)
            metrics |= {f"{name}@{size}": value for name, value in found.items()}
            if (rate := _hit_rate(before, store.stats())) is not None:
                metrics[f"hit_rate@{size}"] = rate
        after = store.stats()
    return {
        "metrics": metrics,
        "facts": {
            "rows_checked": checked,
            "hit_rate": _hit_rate(start, after),
            "cache_rows": after["cache_rows"],
            "cache_slots": after["cache_slots"],
            "page_cache_share": pages.resident_share(files),
            **settled,
        },
    }


def _fill(store, mix: str, num_keys: int, rng: np.random.Generator) -> float:
    """Read into the cache what an endless run of the mix would leave there, in the order of its use -> the hit rate
    that follows."""
    numbers_M = keys.recently_used(mix, num_keys, store.stats()["cache_slots"], rng)
    for first in range(0, len(numbers_M), CALL_ROWS):
        part_M = numbers_M[first : first + CALL_ROWS]
        store.warm(keys.ngrams(part_M[::-1]))  # of one call, the first key ends as the newest
    return keys.hit_rate(mix, num_keys, numbers_M)


def _settle(store, mix: str, num_keys: int, warmup_s: float, rng: np.random.Generator, expected: float) -> dict:
    """Look up until the cache misses nothing, or evicts at a hit rate that stays the same, for `warmup_s` at least -> facts.

    After a number of windows it gives up, with a warning. Another is given where the rate is not the one expected of
    what was filled in: a large cache filled with other rows would change too slowly to be seen.
    """
    out_BD = np.empty((1024, store.dim), np.float32)
    rates: list[float | None] = []
    end = time.perf_counter() + warmup_s
    is_steady = False
    while time.perf_counter() < end or not (is_steady or len(rates) >= _MOST_WINDOWS):
        before = store.stats()
        for _ in range(_WINDOW // len(out_BD)):
            store.get(keys.ngrams(keys.draw(mix, num_keys, len(out_BD), rng)), out=out_BD)
        rates.append(_hit_rate(before, after := store.stats()))
        is_steady = _is_steady(rates, after["cache_evicted"])
    warnings = [] if is_steady else [f"the hit rate was not steady yet: {rates[-2:]}"]
    if rates[-1] is not None and abs(rates[-1] - expected) > _STEADY:
        warnings.append(f"the hit rate is {rates[-1]:.3f}, of what was filled in {expected:.3f} was expected")
    return {"settled_by_lookups": len(rates) * _WINDOW, "expected_hit_rate": expected, "warnings": warnings}


def _is_steady(rates: list[float | None], evicted: int) -> bool:
    """Whether the last of these hit rates, window by window, is the one that stays; None: a window asked for no stored row."""
    last = rates[-1]
    if last is None or last == 1:
        return True
    before = rates[-2] if len(rates) > 1 else None
    return before is not None and evicted > 0 and abs(last - before) < _STEADY


def _hit_rate(before: dict, after: dict) -> float | None:
    """Of the row requests between two `stats`; None: there were none."""
    hits, misses = (after[name] - before[name] for name in ("cache_hits", "cache_misses"))
    return hits / (hits + misses) if hits + misses else None


def _batches(mix: str, num_keys: int, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(C, B, K) u32 n-grams of a mix."""
    return keys.ngrams(keys.draw(mix, num_keys, size * count, rng)).reshape(count, size, keys.ORDER)


def _times(store, batches: np.ndarray) -> np.ndarray:
    """Nanoseconds of each `get`: n-grams (C, B, K) -> (C,)."""
    out_BD = np.empty((batches.shape[1], store.dim), np.float32)
    return nanoseconds(partial(store.get, out=out_BD), batches)
