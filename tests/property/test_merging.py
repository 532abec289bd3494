"""The streams that flush and compaction read, against dicts: however they are cut, what comes out is ascending and complete."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ngramstore.store.layers.layer import Batch
from ngramstore.store.layers.merge import is_in, merged, without

ID = st.integers(0, 40) | st.sampled_from([2**63, 2**64 - 1])
CUTS = st.lists(st.integers(0, 5), max_size=20)


def batch_of(ids: list[int], stamp: int) -> Batch:
    """Rows, tokens and lengths that tell each ID and where it came from."""
    numbers = np.array(ids, np.uint64)
    low = (numbers & np.uint64(0xFF)).astype(np.uint8)
    rows = np.stack([low, np.full(len(ids), stamp, np.uint8)], axis=1)
    return Batch(numbers, rows, np.stack([low, low + stamp], axis=1).astype(np.uint32), (low % 7).astype(np.uint8))


def cut(ids: list[int], cuts: list[int], stamp: int) -> Iterator[Batch]:
    """A sorted list as batches of those sizes, empty ones too, and one of the rest."""
    at = 0
    for size in cuts:
        yield batch_of(ids[at : at + size], stamp)
        at += size
    yield batch_of(ids[at:], stamp)


def listed(batches: Iterator[Batch]) -> list[tuple]:
    return [
        (int(id_), row.tobytes(), tokens.tobytes(), int(length))
        for batch in batches
        for id_, row, tokens, length in zip(batch.ids, batch.rows, batch.tokens, batch.lengths, strict=True)
    ]


@given(st.sets(ID), st.sets(ID), CUTS, CUTS)
@example({1, 3}, {2, 4}, [2], [2])
@example({1, 2}, {3}, [1, 0, 1], [])
@example({1, 2**64 - 1}, {2}, [1], [0])
def test_two_streams_become_one_however_they_are_cut(left, right, cuts_left, cuts_right):
    right -= left
    got = listed(merged(cut(sorted(left), cuts_left, 1), cut(sorted(right), cuts_right, 2)))
    assert got == sorted(listed(iter([batch_of(sorted(left), 1), batch_of(sorted(right), 2)])))


@given(st.sets(ID), st.sets(ID), CUTS)
def test_what_is_listed_is_left_out_however_the_stream_is_cut(ids, dropped, cuts):
    unwanted = np.array(sorted(dropped), np.uint64)
    got = listed(without(cut(sorted(ids), cuts, 1), unwanted))
    assert got == listed(iter([batch_of(sorted(ids - dropped), 1)]))
    assert is_in(np.array(sorted(ids), np.uint64), unwanted).tolist() == [id_ in dropped for id_ in sorted(ids)]


@given(st.sets(ID), st.sets(ID), st.sets(ID), CUTS, CUTS)
def test_a_layer_less_what_changed_with_what_came_in_its_place(old, new, deleted, cuts_old, cuts_new):
    new -= deleted
    changed = np.array(sorted(new | deleted), np.uint64)
    got = listed(merged(without(cut(sorted(old), cuts_old, 1), changed), cut(sorted(new), cuts_new, 2)))
    model = dict.fromkeys(old, 1) | dict.fromkeys(new, 2)
    wanted = [listed(iter([batch_of([id_], model[id_])]))[0] for id_ in sorted(set(model) - deleted)]
    assert got == wanted
