"""Traces beside every peer: Zipf keys, uniform keys, all misses, all unique, and the n-grams of real text. Worker
function and cases.

A trace is a list of exact look-ups in an order; the batches of a trace go to a subject one after the other. Text asks for the
longest stored n-gram that ends at each position, or for the position's bigram where none does, so its keys repeat as words do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench import check, data, pages, peers, spread, text
from bench.harness import Case
from bench.peers.base import Peer
from bench.setup import Setup
from bench.workloads import store_get
from bench.workloads import store_source as shared

SUBJECTS = (
    "ngramstore", "ngramstore_resident", "floor", "memmap", "memmap_numba", "dict", "nn_embedding", "lmdb", "rocks_tuned",
    "rocks_default", "sqlite", "redis", "safetensors", "lance",
)  # fmt: skip
SMALL_SUBJECTS = ("ngramstore", "ngramstore_zstd", "memmap", "lmdb", "rocks_tuned", "rocks_tuned_rows", "rocks_zstd")
SYNTHETIC = ("zipf", "uniform", "misses", "unique")
SMALL_SHARE = 0.1
"""Of a source's rows: what fits the caches of traces_small."""
_PIECE = 256
"""Batches made at a time while a cache settles."""
_NOTES = (
    "peers get ready-made u64 keys; ngramstore hashes token ids inside the timed call; one thread; page cache warm",
    "zipf and uniform: 20 % absent; misses: every key absent; unique: present keys, none twice in the trace",
    "python, wikitext: the n-grams of held-out real text; FBGEMM holds f16 rows only: see warm_f16",
)


def traces_case(setup: Setup) -> Case:
    """All rows in the caches of the subjects that have one."""
    return _case(setup, "traces", SUBJECTS, None)


def traces_small_case(setup: Setup) -> Case:
    """Caches of 10 % of the rows of each source: what a trace without locality does to them."""
    return _case(setup, "traces_small", SMALL_SUBJECTS, SMALL_SHARE)


def _case(setup: Setup, name: str, subjects: tuple[str, ...], cache_share: float | None) -> Case:
    num, dim = shared.num_keys(setup), shared.dim(setup)
    sources = {"": shared.source(setup)}
    for origin in text.origins():
        sources[origin] = text.prepare(setup.root, num, dim, setup.seed, setup.pick(None, 60), origin)
    if "wikitext" not in sources:
        setup.warn("trace wikitext left out: NGRAMSTORE_DATA names no folder with wikitext2-valid.txt")
    usable = list(subjects)
    for source in sources.values():
        usable = [subject for subject in setup.build(usable, source) if subject in usable]
    arguments = {
        "sources": {origin: str(source) for origin, source in sources.items()},
        "batch": min(1024, num // 2),
        "calls": setup.pick(400, 20),
        "warmup_s": setup.warmup_s / 4,
        "budget_s": setup.pick(2.0, 0.05),
        "cache_share": cache_share,
    }
    room = "every row" if cache_share is None else f"{100 * cache_share:.0f} % of the rows of each source"
    settled = (
        "a cache has served twice as many look-ups of a trace as the source has rows before those that are timed; hit_rate: of these",
    )
    columns = [*SYNTHETIC, *(origin for origin in sources if origin)]
    return Case(
        name=name,
        title=f"exact look-ups, {arguments['batch']:,} a call, trace by trace; row caches of {room}",
        function="bench.workloads.store_traces:traces",
        subjects={subject: {"subject": subject, **arguments} for subject in usable},
        baseline="memmap",
        headline=tuple(f"us_per_key@{column}" for column in columns),
        notes=_NOTES if cache_share is None else _NOTES + settled,
    )


def traces(
    *,
    subject: str,
    sources: dict[str, str],
    batch: int,
    calls: int,
    warmup_s: float,
    budget_s: float,
    seed: int,
    cache_share: float | None = None,
) -> dict:
    """`us_per_key@TRACE` and `p99_us_per_call@TRACE` of each trace; answers are checked before anything is timed.

    sources: "" is the dataset of random keys, the others are named after their text. cache_share: of the bytes of a
    source's rows, for a cache that settles on other look-ups of the trace; None: the caches hold every row. A slow
    subject gets as many calls as fit into `budget_s`, at least 20.
    """
    metrics: dict[str, float] = {}
    checked, warnings, facts, budgets = 0, [], {}, {}
    for origin, folder in sources.items():
        source = data.load(folder)
        budgets[origin or "random keys"] = cache_bytes = _budget(source, cache_share)
        peer = peers.opened(subject, source, cache_bytes)
        files = peer.files(peers.files_folder(peer, source.folder))
        pages.warm(files)
        for name in SYNTHETIC if not origin else (origin,):
            checked += _check(peer, source, _batches(name, source, batch, 2, seed + 500_000))
            if cache_share is None and peer.has_cache and name != "misses":
                store_get.ask_for_every_row(peer, source, 1024)
            others = _batches(name, source, batch, max(1, calls // 4), seed + 700_000)
            store_get.run_for(warmup_s, peer, others, source.dim)
            if cache_share is not None and peer.has_cache and name != "misses":  # last: the others came over and over
                _settle(peer, name, source, batch, seed + 800_000)
            wanted = _batches(name, source, batch, calls, seed)
            pages.warm(files)  # again: a kernel that reclaims idle pages may have taken some meanwhile
            before = store_get.row_requests(peer)
            out_BD = np.zeros((batch, source.dim), np.float32)
            times = store_get.time_calls(peer, store_get.affordable(peer, wanted, out_BD, budget_s), out_BD)
            found = spread.of_calls(times, batch)
            metrics |= {f"{metric}@{name}": value for metric, value in found.items()}
            hits, misses = (after - b for after, b in zip(store_get.row_requests(peer), before, strict=True))
            if hits + misses:
                metrics[f"hit_rate@{name}"] = hits / (hits + misses)
        resident = pages.resident_share(files)
        if resident <= 0.999:
            warnings.append(
                f"{origin or 'random keys'}: only {resident:.1%} of the files were in the page cache at the end"
            )
        facts = peer.facts()
        peer.close()
    return {
        "metrics": metrics,
        "facts": {
            "settings": peer.settings, "rows_checked": checked, "warnings": warnings,
            "cache_bytes": budgets, **facts,
        },
    }  # fmt: skip


def _budget(source: data.Dataset, share: float | None) -> int | None:
    """Bytes of a cache for a share of the rows of this source, which may have fewer than were asked for."""
    return None if share is None else int(share * source.stored_NR.nbytes)


def _settle(peer: Peer, name: str, source: data.Dataset, batch: int, seed: int) -> None:
    """Twice as many look-ups of the trace as there are rows, other ones than those that are timed: by count, so that
    the cache of a slow subject has served as much as that of a fast one.
    """
    count = -(-2 * source.num_keys // batch)
    for first in range(0, count, _PIECE):
        piece = _batches(name, source, batch, min(_PIECE, count - first), seed + first)
        store_get.look_all_up(peer, piece, source.dim)


def _batches(name: str, source: data.Dataset, batch: int, count: int, seed: int) -> list[data.Batch]:
    """`count` batches of a trace; fewer of `unique`, which ends when every key was asked for."""
    make: dict[str, Callable[[], data.Batch]] = {
        "zipf": lambda: data.queries(source, batch * count, seed),
        "uniform": lambda: data.queries(source, batch * count, seed, zipf=None),
        "misses": lambda: data.queries(source, batch * count, seed, absent=1.0, zipf=None),
        "unique": lambda: _each_once(source, batch * count, seed),
    }
    if name in make:
        return data.split(make[name](), batch)
    return [stretch.exact for stretch in text.stretches(source, count, batch, seed)]


def _each_once(source: data.Dataset, count: int, seed: int) -> data.Batch:
    numbers_M = np.random.default_rng(seed).permutation(source.num_keys)[:count]
    return data.Batch(
        source.ngrams_NK[numbers_M], source.lengths_N[numbers_M], source.ids_N[numbers_M], numbers_M.astype(np.int64)
    )


def _check(peer: Peer, source: data.Dataset, batches: list[data.Batch]) -> int:
    checked = 0
    for wanted in batches:
        out_BD = np.full((len(wanted), source.dim), np.nan, np.float32)
        checked += check.must_match(peer.name, out_BD, peer.get(wanted, out_BD), *wanted.expected(source))
    return checked
