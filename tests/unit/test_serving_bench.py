"""The cache replays of the decode bench, against caches written down plainly and against the store's own counters."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from serving_cases import table, write

import ngramstore
from bench import cache_policies
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES


def plain(keys, slots, policy):
    """Hits of a cache that is a list: the meaning of both policies."""
    held, hits = OrderedDict(), []
    for p, key in enumerate(keys):
        hits.append(key in held)
        if key in held:
            held.move_to_end(key)
            continue
        if len(held) == slots:
            if policy == "lru":
                held.popitem(last=False)
            else:
                rest = list(keys[p:])
                del held[max(held, key=lambda k: rest.index(k) if k in rest else len(keys))]
        held[key] = True
    return hits


@pytest.mark.parametrize("policy", ["lru", "belady"])
@pytest.mark.parametrize("slots", [1, 2, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_a_replay_is_the_plain_cache(policy, slots, seed):
    keys = np.random.default_rng(seed).zipf(1.3, 200) % 50
    got = cache_policies.replay(keys, slots, policy)
    if policy == "lru":
        assert got.tolist() == plain(keys.tolist(), slots, policy)
    else:  # ties are free: two rows that are never needed again
        assert got.sum() == sum(plain(keys.tolist(), slots, policy))


def test_nothing_beats_belady():
    keys = np.random.default_rng(9).zipf(1.2, 3000) % 300
    for slots in (3, 30, 100):
        assert cache_policies.replay(keys, slots, "belady").sum() >= cache_policies.replay(keys, slots, "lru").sum()
    assert not cache_policies.replay(keys, 0, "lru").any()


def test_the_stores_cache_hits_as_often_as_the_replayed_lru(tmp_path):
    rows = table()
    ngrams = list(rows)
    asked = np.random.default_rng(1).zipf(1.3, 500) % len(ngrams)
    with ngramstore.open(write(tmp_path / "store", rows), cache_bytes=20 * (8 * 4 + SLOT_OVERHEAD_BYTES)) as store:
        for i in asked.tolist():
            store.get([ngrams[i]])
        stats = store.stats()
        assert stats["cache_slots"] == 20
        assert stats["cache_hits"] == cache_policies.replay(asked, 20, "lru").sum()
