"""Memory of look-ups on a store ten times its cache: growth over a baseline after import and compilation. Worker function."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import data, pages, peers


def memory(
    *, subject: str, source: str, tiny_source: str, cache_bytes: int, lookups: int, batch: int, seed: int
) -> dict:
    """Largest growth of anonymous memory (MiB) while `lookups` keys are asked for: `anon_mib`; `over_budget_mib` is what
    exceeds the cache budget.

    The baseline is read after the subject answered from a tiny store, with the queries and the answer array allocated;
    file-backed pages (maps of the page cache, shared and reclaimable) are a fact, not a metric.
    """
    origin = data.load(source)
    tiny = data.load(tiny_source)
    out_BD = np.zeros((batch, origin.dim), np.float32)
    small = peers.opened(subject, tiny)
    for warmup in data.split(data.queries(tiny, 4 * batch, seed), batch):
        small.get(warmup, out_BD)
    small.close()
    batches = data.split(data.queries(origin, lookups, seed), batch)
    pages.warm(peers.create(subject).files(peers.files_folder(peers.create(subject), origin.folder)))

    before = resident_mib()
    peer = peers.opened(subject, origin, cache_bytes)
    after_open = resident_mib()
    largest = dict(after_open)
    for i, wanted in enumerate(batches):
        peer.get(wanted, out_BD)
        if i % 16 == 0:
            now = resident_mib()
            largest = {kind: max(largest[kind], now[kind]) for kind in now}
    grown = largest["RssAnon"] - before["RssAnon"]
    return {
        "metrics": {
            "anon_mib": grown,
            "over_budget_mib": grown - cache_bytes / 2**20,
            "open_mib": after_open["RssAnon"] - before["RssAnon"],
        },
        "facts": {
            "settings": peer.settings,
            "cache_mib": round(cache_bytes / 2**20, 1),
            "rows_mib": round(origin.stored_NR.nbytes / 2**20, 1),
            "baseline_mib": round(before["RssAnon"], 1),
            "file_mib": round(largest["RssFile"] - before["RssFile"], 1),
            **peer.facts(),
        },
    }


def resident_mib() -> dict[str, float]:
    """Anonymous and file-backed resident memory of this process, MiB, from /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon", "RssFile")
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(kinds)}
