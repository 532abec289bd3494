"""Memory of look-ups on a store ten times its cache: growth over a baseline after import and compilation. Worker
function and case."""

from __future__ import annotations

import numpy as np

from bench import data, pages, peers
from bench.harness import Case
from bench.process import resident_mib
from bench.sampler import OFTEN_S, Sampler
from bench.setup import Setup
from bench.workloads import store_source as shared
from bench.workloads.store_get import check_answers

MEMORY = ("ngramstore", "ngramstore_zstd", "rocks_zstd")


def memory_case(setup: Setup) -> Case:
    """A cache for a tenth of the rows."""
    source = shared.source(setup)
    tiny = shared.tiny(setup, shared.dim(setup))
    setup.build(MEMORY, tiny)
    arguments = {
        "source": str(source),
        "tiny_source": str(tiny),
        "cache_bytes": shared.tenth_bytes(setup),
        "lookups": setup.pick(409_600, 40_960),
        "batch": min(1024, shared.num_keys(setup)),
    }
    return Case(
        name="memory",
        title="anonymous memory above the baseline after import, store ten times the cache budget",
        function="bench.workloads.store_memory:memory",
        subjects=setup.subjects(MEMORY, source, arguments),
        baseline="rocks_zstd",
        headline=("anon_mib", "over_budget_mib", "open_mib"),
        notes=("facts: cache_mib is the budget, file_mib is shared page cache",),
        is_forkable=False,
        rounds=3,
    )


def memory(
    *, subject: str, source: str, tiny_source: str, cache_bytes: int, lookups: int, batch: int, seed: int
) -> dict:
    """Largest growth of anonymous memory (MiB) while `lookups` keys are asked for: `anon_mib`; `over_budget_mib` is what
    exceeds the cache budget. What a call takes and gives back before it ends counts too, unless it holds the GIL meanwhile.

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
    with Sampler(every_s=OFTEN_S) as sampler:
        peer = peers.opened(subject, origin, cache_bytes)
        after_open = resident_mib()
        largest_file = after_open["RssFile"]
        for i, wanted in enumerate(batches):
            peer.get(wanted, out_BD)
            if i % 16 == 0:
                largest_file = max(largest_file, resident_mib()["RssFile"])
    grown = sampler.peak_anon_mib
    checked = check_answers(peer, origin, batch, seed)  # behind the measurement: it needs memory of its own
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
            "file_mib": round(largest_file - before["RssFile"], 1),
            "rows_checked": checked,
            **peer.facts(),
        },
    }
