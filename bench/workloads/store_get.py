"""Exact look-ups by batch: warm with everything cached, warm under a small cache, and cold from disk. Worker functions."""

from __future__ import annotations

import time
import zlib

import numpy as np

from bench import check, data, pages, peers, spread
from bench.peers.base import Peer
from bench.timed import nanoseconds

CHECKED_BATCHES = 4
"""Batches of each size whose answers are compared with the source before anything is timed; one where it is a large one."""


def warm(
    *,
    subject: str,
    source: str,
    batch_sizes: list[int],
    lookups: int,
    max_calls: int,
    warmup_s: float,
    seed: int,
    cache_bytes: int | None = None,
    settling: int = 0,
    budget_s: float = 4.0,
) -> dict:
    """Zipf look-ups with the page cache warm: `us_per_key@B` and `p99_us_per_call@B` for each batch size B.

    cache_bytes None: the budget holds every row, and every row is asked for once before the timing. Otherwise the cache
    settles on `settling` look-ups of the same distribution, none of them asked for again: as it would in service, and
    the same for a slow subject as for a fast one. Each batch size is timed on draws of its own. budget_s: a slow
    subject's calls of one size are as many as take so long, 20 at least.
    """
    origin = data.load(source)
    peer = peers.opened(subject, origin, cache_bytes)
    files = peer.files(peers.files_folder(peer, origin.folder))
    pages.warm(files)
    checked = sum(check_answers(peer, origin, size, seed) for size in batch_sizes)
    if cache_bytes is None and peer.has_cache:
        ask_for_every_row(peer, origin, max(batch_sizes))
    size = max(64, batch_sizes[0])
    others = data.queries(origin, max(100 * size, 20_000), seed + 700_000)
    run_for(warmup_s, peer, data.split(others, size), origin.dim)
    if settling:  # last: the look-ups above came over and over
        size = max(batch_sizes)
        look_all_up(peer, data.split(data.queries(origin, settling, seed + 800_000), size), origin.dim)
    pages.warm(files)  # again: a kernel that reclaims idle pages may have taken some meanwhile

    metrics: dict[str, float] = {}
    for number, size in enumerate(batch_sizes):
        out_BD = np.zeros((size, origin.dim), np.float32)
        pool = data.queries(origin, lookups, seed + 10_000 * number)
        before = row_requests(peer)
        times = time_calls(peer, affordable(peer, data.split(pool, size, max_calls), out_BD, budget_s), out_BD)
        metrics |= {f"{name}@{size}": value for name, value in spread.of_calls(times, size).items()}
        hits, misses = (after - earlier for after, earlier in zip(row_requests(peer), before, strict=True))
        if hits + misses:
            metrics[f"hit_rate@{size}"] = hits / (hits + misses)
    resident = pages.resident_share(files)
    return {
        "metrics": metrics,
        "facts": {
            "settings": peer.settings,
            "rows_checked": checked,
            "page_cache_share": resident,
            "warnings": []
            if resident > 0.999
            else [f"only {resident:.1%} of the files were in the page cache at the end"],
            "cache_bytes": cache_bytes or peers.everything(origin),
            **peer.facts(),
        },
    }


def cold(*, subject: str, source: str, case: str, batch: int, drops: int, drop_index: bool, seed: int) -> dict:
    """Random present rows after their pages were dropped: `us_per_row`, one batch for each of `drops` drops.

    Files are closed before the drop (mapped pages stay) and the drop is checked with mincore. drop_index False: only the
    row files are dropped and the index is warmed by absent keys, for subjects that keep the two apart; True: everything.
    Each case asks for rows of its own, after one reading of all files: what a host caches is the same for every subject.
    """
    origin = data.load(source)
    peer = peers.create(subject)
    folder = peers.files_folder(peer, origin.folder)
    files = peer.files(folder)
    dropped = files if drop_index or not peer.index_apart else peer.row_files(folder)
    out_BD = np.zeros((batch, origin.dim), np.float32)
    times, residents, answers = [], [], []
    pages.warm(files)
    for turn in range(drops + 1):  # the first turn compiles and is not counted
        wanted = data.split(
            data.queries(origin, batch, zlib.crc32(case.encode()) + seed * 100 + turn, absent=0.0, zipf=None), batch
        )[0]
        wanted.expected(origin)  # the source's own pages, not the subject's
        pages.warm(path for path in files if path not in dropped)
        pages.drop(dropped)
        residents.append(pages.resident_share(dropped))
        peer.open(folder, origin, 64 << 20)
        if not drop_index and peer.index_apart:
            _warm_index(peer, origin, seed)
        start = time.perf_counter_ns()
        found_B = peer.get(wanted, out_BD)
        times.append(time.perf_counter_ns() - start)
        answers.append(check.must_match(subject, out_BD, found_B, *wanted.expected(origin)))
        peer.close()
    micros = np.array(times[1:]) / 1e3 / batch
    return {
        "metrics": {"us_per_row": float(np.median(micros)), "slowest_us_per_row": float(micros.max())},
        "facts": {
            "settings": peer.settings,
            "rows_checked": sum(answers),
            "page_cache_share_after_drop": max(residents),
            "warnings": []
            if max(residents) == 0
            else [f"not cold: {max(residents):.1%} of the pages could not be dropped"],
            "index": _index_state(peer, drop_index),
            "us_per_row_by_drop": [round(float(value), 2) for value in micros],
        },
    }


def affordable(peer: Peer, batches: list[data.Batch], out_BD: np.ndarray, budget_s: float) -> list[data.Batch]:
    """As many of the batches as fit into the time by the pace of the first two, at least 20."""
    start = time.perf_counter()
    for batch in batches[:2]:
        peer.get(batch, out_BD)
    pace_s = (time.perf_counter() - start) / 2
    return batches[: max(20, int(budget_s / pace_s))]


def time_calls(peer: Peer, batches: list[data.Batch], out_BD: np.ndarray) -> np.ndarray:
    """Nanoseconds of each `get`, garbage collection held back."""
    if hasattr(peer, "know"):
        peer.know(batches)
    return nanoseconds(peer.get, batches, out_BD)


def check_answers(peer: Peer, origin: data.Dataset, size: int, seed: int) -> int:
    """Compare some batches with the source; the array starts as NaN, so a row that is not written is noticed."""
    checked = 0
    pool = data.queries(origin, (CHECKED_BATCHES if size <= 1024 else 1) * size, seed + 500_000)
    for batch in data.split(pool, size):
        out_BD = np.full((size, origin.dim), np.nan, np.float32)
        found_B = peer.get(batch, out_BD)
        checked += check.must_match(peer.name, out_BD, found_B, *batch.expected(origin))
    return checked


def ask_for_every_row(peer: Peer, origin: data.Dataset, size: int) -> None:
    out_BD = np.empty((size, origin.dim), np.float32)
    for start in range(0, origin.num_keys, size):
        part = slice(start, min(start + size, origin.num_keys))
        numbers_B = np.arange(part.start, part.stop)
        batch = data.Batch(origin.ngrams_NK[part], origin.lengths_N[part], origin.ids_N[part], numbers_B)
        found_B = peer.get(batch, out_BD[: len(batch)])
        if not found_B.all():
            raise check.WrongAnswer(f"{peer.name}: {int((~found_B).sum())} of its own keys were not found")


def look_all_up(peer: Peer, batches: list[data.Batch], dim: int) -> None:
    """Every batch once; all of one size."""
    out_BD = np.empty((len(batches[0]) if batches else 0, dim), np.float32)
    for batch in batches:
        peer.get(batch, out_BD)


def row_requests(peer: Peer) -> tuple[int, int]:
    """Hits and misses of the subject's row cache so far; zeros where it does not count them."""
    stats = peer.facts().get("stats", {})
    return stats.get("cache_hits", 0), stats.get("cache_misses", 0)


def run_for(seconds: float, peer: Peer, batches: list[data.Batch], dim: int) -> None:
    """Look-ups of batches over and over, so that caches and clocks settle."""
    out_BD = np.empty((len(batches[0]), dim), np.float32)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for batch in batches:
            peer.get(batch, out_BD)
            if time.perf_counter() >= end:
                break


def _warm_index(peer: Peer, origin: data.Dataset, seed: int) -> None:
    """Absent keys touch the index and no row."""
    from ngramstore.hashing import ngram_ids

    count = min(1 << 17, 4 * origin.num_keys)
    strangers = data.absent_ngrams(origin, count, np.random.default_rng(seed + 900_000))
    lengths = np.full(len(strangers), data.ORDER, np.uint8)
    nobody = data.Batch(strangers, lengths, ngram_ids(strangers), np.full(len(strangers), -1, np.int64))
    size = min(1024, len(strangers))
    out_BD = np.empty((size, origin.dim), np.float32)
    for batch in data.split(nobody, size):
        peer.get(batch, out_BD)


def _index_state(peer: Peer, drop_index: bool) -> str:
    if not peer.index_apart:
        return "in the same files as the rows: cold, but for what opening reads"
    return "dropped; what opening reads is warm" if drop_index else "warm"
