"""Workload `scale`: the same small rows at N/100, N/10 and N keys, N = 100 million; what grows and what does not.

Needs 20 GB of disk in --dir at the default size: the store, and while it is built or compacted about as much again.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from bench.harness import Case
from bench.setup import SIZES, Offer, Setup

DIM = 64
MEMORY_BYTES = 768 << 20
MIXES = {
    "zipf": "Zipf(1.0) over all keys, 20 % absent",
    "uniform": "uniform over all keys, 20 % absent",
    "hot": "uniform over 100,000 of the keys, 20 % absent",
    "absent": "absent keys only: index and nothing else",
}
QUARTER = "zipf_quarter"
"""The mix zipf with a row cache that grows with the store: a quarter of the rows fits. Of the mixes it has the default size."""
SHARE_CHANGED = 0.01


def cases(setup: Setup) -> list[Case]:
    """Build first; the cases behind it need its stores, which stay in --dir for a later run."""
    makers = {"build": _build, "open": _open} | dict.fromkeys((*MIXES, QUARTER), _lookups)
    makers |= {"changes": _changes, "verify": _verify}
    return setup.cases({name: Offer(partial(make, name=name), takes=SIZES) for name, make in makers.items()})


def clean(setup: Setup) -> None:
    """Remove the stores if `changes` ran: they are not what `build` wrote any more."""
    if not setup.only_cases or "changes" in setup.only_cases:
        for num in _sizes(setup):
            shutil.rmtree(_path(setup, num), ignore_errors=True)


def _sizes(setup: Setup) -> tuple[int, ...]:
    largest = setup.num_keys or setup.pick(100_000_000, 1_000_000)
    return tuple(max(64, largest // part) for part in (100, 10, 1))


def _path(setup: Setup, num: int) -> Path:
    return setup.root / f"scale-n{num}-d{setup.dim or DIM}"


def _subjects(setup: Setup, **more: object) -> dict[str, dict]:
    return {
        f"{num:,} keys": {"path": str(_path(setup, num)), "num_keys": num, "dim": setup.dim or DIM, **more}
        for num in _sizes(setup)
    }


def _case(setup: Setup, name: str, title: str, function: str, headline: tuple[str, ...], **more: object) -> Case:
    arguments = more.pop("arguments", {})
    return Case(
        name=name,
        title=title,
        function=f"bench.workloads.{function}",
        subjects=_subjects(setup, **arguments),  # type: ignore[arg-type]
        baseline=f"{_sizes(setup)[0]:,} keys",
        headline=headline,
        **more,  # type: ignore[arg-type]
    )


def _build(setup: Setup, name: str) -> Case:
    memory_bytes = min(MEMORY_BYTES, _sizes(setup)[-1] * 8)
    return _case(
        setup,
        name,
        f"build from rows in random order, memory_bytes = {memory_bytes / 2**20:.0f} MiB, int8, D = {setup.dim or DIM}",
        "scale_store:build",
        ("us_per_row", "seconds", "add_s", "finish_s", "cpu_s", "anon_mib", "bytes_per_key", "index_bytes_per_key"),
        arguments={"memory_bytes": memory_bytes},
        notes=(
            "anon_mib: largest anonymous memory above what the process had when all was imported and compiled;",
            "seconds: without making the rows up, which cpu_s has in it",
        ),
        rounds=1,
        environment={},
        timeout_s=4 * 3600,
    )


def _open(setup: Setup, name: str) -> Case:
    return _case(
        setup, name, "open and ask once, in a fresh process", "scale_store:opening", ("open_ms", "first_get_ms"),
        notes=("the files are read once before: facts say what share the page cache kept",),
    )  # fmt: skip


def _lookups(setup: Setup, name: str) -> Case:
    is_quarter = name == QUARTER
    mix = "zipf" if is_quarter else name
    cache = "a quarter of the rows" if is_quarter else "the default 256 MiB"
    return _case(
        setup,
        name,
        f"exact look-ups: {MIXES[mix]}",
        "scale_lookups:lookups",
        tuple(
            f"{metric}@{size}"
            for size in (1, 1024)
            for metric in ("us_per_key", "mean_us_per_key", "p99_us_per_call", "hit_rate")
        ),
        arguments={
            "mix": mix,
            "cache_share": 0.25 if is_quarter else None,
            "batch_sizes": [1, 1024],
            "calls": setup.pick(4000, 1000),
            "warmup_s": setup.warmup_s,
        },
        notes=(
            f"row cache: {cache}, holding what an endless run of this mix would leave in it, checked by a hit rate that is steady;",
            "page cache warm as far as it fits (facts: page_cache_share, hit_rate, cache_rows, cache_slots)",
        ),
    )


def _changes(setup: Setup, name: str) -> Case:
    return _case(
        setup,
        name,
        f"put {SHARE_CHANGED:.0%} of the keys, half of them new, in calls of 16,384; flush; compact",
        "scale_store:changes",
        (
            "put_us_per_row",
            "flush_s",
            "compact_s",
            "put_anon_mib",
            "flush_anon_mib",
            "compact_anon_mib",
            "flush_cpu_s",
            "compact_cpu_s",
        ),
        arguments={"share": SHARE_CHANGED},
        rounds=1,
        environment={},
        timeout_s=4 * 3600,
    )


def _verify(setup: Setup, name: str) -> Case:
    return _case(
        setup, name, "verify: every byte read and checked", "scale_store:verification", ("seconds", "cpu_s", "mb_per_s", "anon_mib"),
        rounds=1, timeout_s=4 * 3600,
    )  # fmt: skip
