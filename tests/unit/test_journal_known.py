"""The IDs of the journal in memory: a merge that ends early, by Ctrl-C or for want of memory, forgets none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import build_ngrams, published, rows_of, stamps_of

import ngramstore as ngs
from ngramstore.store.journal.known import KnownIds, Tier

OLDER, NEWER = range(5000), range(4900, 5200)  # the newer tier is too small to be merged at once


def note(known: KnownIds, ids, checksum: int, *, deleted: bool = False) -> None:
    ids = np.array(list(ids), np.uint64)
    known.add(ids, np.full(len(ids), deleted), np.full(len(ids), checksum, np.uint32))


def facts(known: KnownIds) -> tuple[list[int], list[bool], list[bool]]:
    """What is said of all IDs that were ever noted."""
    ids = np.arange(6000, dtype=np.uint64)
    checksums, is_known = known.checksums(ids)
    return checksums.tolist(), is_known.tolist(), known.find(ids)[1].tolist()


@contextmanager
def failing_merge(monkeypatch: pytest.MonkeyPatch, nth: int, error: type[BaseException]) -> Iterator[None]:
    real, count = Tier.over, iter(range(1000))

    def over(self: Tier, older: Tier) -> Tier:
        if next(count) == nth:
            raise error
        return real(self, older)

    with monkeypatch.context() as patch:
        patch.setattr(Tier, "over", over)
        yield


def three_tiers() -> KnownIds:
    known = KnownIds()
    note(known, range(10_000, 60_000), 3)
    note(known, OLDER, 1)
    note(known, NEWER, 2, deleted=True)
    assert [len(tier) for tier in known.tiers] == [300, 5000, 50_000]
    return known


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_all_ids_are_known_after_their_merge_was_interrupted(monkeypatch, nth, error):
    known = three_tiers()
    before = facts(known)
    with failing_merge(monkeypatch, nth, error), pytest.raises(error):
        known.arrays()
    assert facts(known) == before
    ids, is_delete = known.arrays()
    assert ids.tolist() == [*range(5200), *range(10_000, 60_000)]
    assert np.flatnonzero(is_delete).tolist() == list(NEWER)
    assert facts(known) == before


@pytest.mark.parametrize("nth", [0, 1])
def test_all_ids_are_known_after_an_addition_to_them_was_interrupted(monkeypatch, nth):
    known = three_tiers()
    before = facts(known)
    with failing_merge(monkeypatch, nth, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        note(known, range(2000), 4)
    assert facts(known) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("ask", ["get", "len"])
def test_a_put_whose_ids_were_not_merged_is_seen_whole(quick_path, monkeypatch, error, ask):
    """RocksDB has all of it by then: of the first key the new row, and the second one too."""
    build_ngrams(quick_path / "store", {(1,): 1})
    with ngs.open(quick_path / "store", mode="rw") as store:
        store.put([(2,)], rows_of([2], 4))
        with failing_merge(monkeypatch, 0, error), pytest.raises(error):
            store.put([(2,), (3,)], rows_of([20, 30], 4))
        if ask == "len":
            assert len(store) == 3
        assert stamps_of(store.get([(2,), (3,)])[0]) == [20, 30]
        assert store.stats()["unpublished_changes"] == 2
        assert len(store) == 3
    assert published(quick_path / "store") == {(1,): 1, (2,): 20, (3,): 30}


@pytest.mark.parametrize("call", ["flush", "len"])
def test_a_store_whose_ids_were_being_merged_at_ctrl_c_loses_and_counts_nothing_twice(quick_path, monkeypatch, call):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1})
    older, newer = [(2, i) for i in range(5000)], [(3, i) for i in range(300)]
    with ngs.open(path, mode="rw") as store:
        store.put(older, rows_of(range(5000), 4))
        store.put(newer, rows_of(range(300), 4))
        store.delete(older[:10])
        store._writer._num_moved = None  # as after an opening that found changes
        with failing_merge(monkeypatch, 0, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            store.flush() if call == "flush" else len(store)
        assert store.get(newer)[1].all()
        assert not store.get(older[:10])[1].any()
        store.put(newer[:1], rows_of([7], 4))
        assert len(store) == 1 + 4990 + 300
    with ngs.open(path, mode="rw") as store:
        assert len(store) == 1 + 4990 + 300
    assert published(path)[newer[0]] == 7
