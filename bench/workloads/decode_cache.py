"""What a row cache is worth on real text, and what processes that share a store hold in memory. Worker functions."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np

import ngramstore
from bench import cache_policies, pages
from bench.process import disk_bytes
from bench.text import MAX_N

SHARES = (0.01, 0.03, 0.1, 0.3)


def hit_rates(*, trace: str, positions: int, seed: int) -> dict:
    """Held-out text one token after the other through caches of 1, 3, 10 and 30 % of the rows, LRU and Belady.

    Metrics: share of row requests that miss. Facts: hit rates by the length of the n-gram as well. The first fifth of the
    trace fills the cache and is not counted.
    """
    held_X = np.load(Path(trace) / "held_out.npy")[:positions]
    with ngramstore.open(Path(trace) / "store") as store:
        num_rows = len(store)
        lengths = store.match(held_X)
    ends = np.flatnonzero(lengths >= 2)
    windows = np.zeros((len(ends), MAX_N), np.uint32)
    for back in range(MAX_N):
        inside = lengths[ends] > back
        windows[inside, back] = held_X[ends[inside] - back]
    packed = np.column_stack((windows, lengths[ends].astype(np.uint32)))
    _, keys = np.unique(packed, axis=0, return_inverse=True)
    keys = keys.reshape(-1)
    counted = np.arange(len(keys)) >= len(keys) // 5
    metrics, by_length = {}, {}
    for share in SHARES:
        for policy in ("lru", "belady"):
            hits = cache_policies.replay(keys, max(1, int(share * num_rows)), policy)
            name = f"{policy}_{share:.0%}"
            metrics[f"miss_{name}"] = float(1 - hits[counted].mean())
            by_length[name] = {
                str(n): float(hits[counted & (lengths[ends] == n)].mean())
                for n in range(2, MAX_N + 1)
                if (counted & (lengths[ends] == n)).any()
            }
    return {
        "metrics": metrics,
        "facts": {
            "positions": len(held_X),
            "found_share": float(len(ends) / len(held_X)),
            "rows_of_the_store": num_rows,
            "different_rows_asked_for": int(keys.max()) + 1,
            "requests_by_length": {str(n): int((lengths == n).sum()) for n in range(2, MAX_N + 1)},
            "hit_rate_by_length": by_length,
        },
    }


def sharing(*, processes: int, threads: int, trace: str, positions: int, seed: int) -> dict:
    """Processes of so many threads that each look the same held-out text up in one store; the rows' pages are dropped first.

    Metrics, in MiB: rows in the page cache at the end, which holds them once for all (mincore); read from the disk by all
    processes together (/proc/self/io); the index's maps, proportionally (PSS); what each process holds to itself, row cache
    and buffers; and the sum of it all.
    """
    folder = Path(trace) / "store"
    with ngramstore.open(folder) as store:
        files = store.files
    row_files = [path for path in files if path.suffix == ".rows"]
    pages.drop(files)
    left = pages.resident_share(row_files)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.SimpleQueue()
    running = [
        context.Process(target=_reader, args=(trace, threads, positions, barrier, answers)) for _ in range(processes)
    ]
    for process in running:
        process.start()
    found = [answers.get() for _ in running]
    for process in running:
        process.join()
    mib = 1 << 20
    rows_cached = pages.resident_share(row_files) * sum(path.stat().st_size for path in row_files) / mib
    index = sum(f["pss_store"] for f in found) / mib
    private = float(np.mean([f["private_growth"] for f in found])) / mib
    facts: dict[str, Any] = {
        "store_mib": sum(path.stat().st_size for path in files) / mib,
        "rows_mib": sum(path.stat().st_size for path in row_files) / mib,
        "rows_pages_left_at_start": left,
        "rows_read_mib_a_process": float(np.mean([f["bytes_read"] for f in found])) / mib,
        "rows_in_a_row_cache": float(np.mean([f["cached"] for f in found])),
        "cache_bytes_a_process": _CACHE_BYTES,
        "warnings": ["the rows could not be dropped from the page cache first"] if left > 0.01 else [],
    }
    return {
        "metrics": {
            "rows_in_page_cache_mib": rows_cached,
            "disk_read_mib_all": sum(f["disk_read"] for f in found) / mib,
            "index_pss_mib_all": index,
            "private_growth_mib_a_process": private,
            "memory_mib_all": rows_cached + index + processes * private,
            "pss_mib_a_process": float(np.mean([f["pss"] for f in found])) / mib,
            "rss_mib_a_process": float(np.mean([f["rss"] for f in found])) / mib,
        },
        "facts": facts,
    }


_CACHE_BYTES = 8 << 20


def _reader(trace: str, threads: int, positions: int, barrier: Any, answers: Any) -> None:
    held_X = np.load(Path(trace) / "held_out.npy")[:positions]
    with ngramstore.open(Path(trace) / "store", cache_bytes=0) as store:
        store.match(held_X[:64])  # kernels are loaded; reads no rows
    before, disk = _smaps()["private"], disk_bytes()
    barrier.wait()
    with ngramstore.open(Path(trace) / "store", cache_bytes=_CACHE_BYTES) as store:

        def look_up() -> None:
            for at in range(0, len(held_X), 1024):
                store.lookup(held_X[at : at + 1024])

        running = [threading.Thread(target=look_up) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        barrier.wait()
        now = _smaps(str(Path(trace).resolve()))
        stats = store.stats()
        read = {"disk_read": disk_bytes() - disk, "bytes_read": stats["bytes_read"], "cached": stats["cache_rows"]}
        barrier.wait()
        answers.put({**now, **read, "private_growth": now["private"] - before})


def _smaps(under: str = "\0") -> dict[str, int]:
    """Bytes of /proc/self/smaps: rss, pss, private, and the pss of maps of files under a folder."""
    sums = {"rss": 0, "pss": 0, "private": 0, "pss_store": 0}
    is_store = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field, _, rest = line.partition(":")
        if "-" in line.split(" ", 1)[0] and not field.isalpha():
            is_store = under in line
            continue
        if field in ("Rss", "Pss", "Private_Clean", "Private_Dirty"):
            value = int(rest.split()[0]) << 10
            sums[{"Rss": "rss", "Pss": "pss"}.get(field, "private")] += value
            if field == "Pss" and is_store:
                sums["pss_store"] += value
    return sums
