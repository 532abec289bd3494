"""Workload `journal`: what the writer's journal costs by itself: appends, opening, scanning, getting. Nothing to compare with.

Shapes: M changes.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.harness import Case
from bench.setup import PREFIX, Offer, Setup
from ngramstore.hashing import ngram_ids
from ngramstore.store.journal.journal import Journal
from ngramstore.store.journal.values import Changes

WIDTH = 5
ROW_BYTES = 1024
APPENDS = (1, 64, 1024)


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for."""
    return setup.cases({"append": Offer(_append), "read": Offer(_read)})


def clean(setup: Setup) -> None:
    """Workers remove what they wrote."""


def _append(setup: Setup) -> Case:
    arguments = {"root": str(setup.root), "total": setup.pick(20_480, 2048)}
    return Case(
        name="append",
        title=f"append changes of {ROW_BYTES:,} bytes: safe from a kill on return, not synced",
        function="bench.workloads.journal:append",
        subjects={f"{size:,} an append": {"size": size, **arguments} for size in APPENDS},
        baseline="64 an append",
        headline=("us_per_change", "fastest_us_per_change", "p99_us_per_append"),
    )


def _read(setup: Setup) -> Case:
    return Case(
        name="read",
        title=f"open, scan and get, changes of {ROW_BYTES:,} bytes, files in the page cache",
        function="bench.workloads.journal:read",
        subjects={
            f"{count:,} changes": {"count": count, "root": str(setup.root)}
            for count in setup.pick((0, 10_000, 60_000), (0, 2000))
        },
        baseline="0 changes",
        headline=("open_ms", "open_after_kill_ms", "scan_us_per_change", "get_us_per_row"),
        notes=("get: 1,024 random changes in one call; open_after_kill also writes the log's content to a table",),
    )


def append(*, size: int, root: str, total: int, seed: int) -> dict:
    """Median and fastest time of appends of `size` changes, until `total` changes are in."""
    changes = _changes(total, seed)
    path = _empty(Path(root) / f"{PREFIX}journal-append-{size}")
    times = []
    with _open(path) as journal:
        pieces = [_sorted(changes, start, start + size) for start in range(0, total, size)][:2000]
        for piece in pieces:
            start = time.perf_counter()
            journal.append(piece)
            times.append(1e6 * (time.perf_counter() - start))
        kept = len(journal)
    if kept != sum(len(piece) for piece in pieces):
        raise RuntimeError(f"the journal holds {kept} changes")
    shutil.rmtree(path)
    micros = np.array(times)
    return {
        "metrics": {
            "us_per_change": float(np.median(micros) / size),
            "fastest_us_per_change": float(micros.min() / size),
            "p99_us_per_append": float(np.percentile(micros, 99)),
        },
        "facts": {"appends": len(times), "row_bytes": ROW_BYTES, "width": WIDTH},
    }


def read(*, count: int, root: str, seed: int, repeats: int = 5) -> dict:
    """Medians of opening, scanning and getting; the journal was closed properly, and once more killed."""
    changes = _changes(count, seed)
    path = _empty(Path(root) / f"{PREFIX}journal-read-{count}")
    child = multiprocessing.get_context("spawn").Process(target=_fill_and_die, args=(str(path), count, seed))
    child.start()
    child.join()
    start = time.perf_counter()
    _open(path).close()
    metrics = {"open_after_kill_ms": 1e3 * (time.perf_counter() - start)}
    opens = []
    for _ in range(repeats):
        start = time.perf_counter()
        journal = _open(path)
        opens.append(1e3 * (time.perf_counter() - start))
        journal.close()
    metrics["open_ms"] = float(np.median(opens))
    with _open(path) as journal:
        if len(journal) != count:
            raise RuntimeError(f"the journal holds {len(journal)} changes, {count} were appended")
        if count:
            wanted = np.random.default_rng(seed).choice(changes.ids, min(1024, count), replace=False)
            where = np.searchsorted(changes.ids, wanted)
            if not np.array_equal(journal.get(wanted).rows, changes.rows[where]):
                raise RuntimeError("the journal answers with other rows")
            metrics["get_us_per_row"] = _median_s(lambda: journal.get(wanted), repeats) * 1e6 / len(wanted)
            scan_s = _median_s(lambda: sum(len(part) for part in journal.scan()), repeats)
            metrics["scan_us_per_change"] = scan_s * 1e6 / count
    shutil.rmtree(path)
    return {"metrics": metrics, "facts": {"changes": count, "row_bytes": ROW_BYTES, "width": WIDTH}}


def _fill_and_die(path: str, count: int, seed: int) -> None:
    """Append everything, 1,000 changes at a time, and end without closing."""
    changes = _changes(count, seed)
    journal = _open(Path(path))
    for start in range(0, count, 1000):
        journal.append(changes.part(start, start + 1000))
    os._exit(0)


def _open(path: Path) -> Journal:
    return Journal.open(path, row_bytes=ROW_BYTES, width=WIDTH, store_state=bytes(16))


def _changes(count: int, seed: int) -> Changes:
    """Puts of `count` n-grams, ascending by ID."""
    rng = np.random.default_rng([seed, count])
    tokens_M = np.zeros((2 * count, WIDTH), np.uint32)
    tokens_M[:, :3] = rng.integers(0, 50_000, (2 * count, 3))
    ids_M, first_M = np.unique(ngram_ids(tokens_M[:, :3]), return_index=True)
    first_M = first_M[:count]
    rows_M = rng.integers(0, 256, (count, ROW_BYTES), np.uint8)
    return Changes(ids_M[:count], np.zeros(count, bool), tokens_M[first_M], np.full(count, 3, np.uint8), rows_M)


def _sorted(changes: Changes, start: int, stop: int) -> Changes:
    """Every stride-th change, so that an append's IDs lie among those before it; they stay ascending."""
    stride = max(1, len(changes) // (stop - start))
    which = np.arange(start // (stop - start), len(changes), stride)[: stop - start]
    columns = (changes.ids, changes.is_delete, changes.tokens, changes.lengths, changes.rows)
    return Changes(*(column[which] for column in columns))


def _empty(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _median_s(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
