"""A sort that spilled to disk answers as one that held everything: the same order, the same tokens for any places asked for."""

from __future__ import annotations

import numpy as np
import pytest

from ngramstore.store.building.runs import RunSorter

NUM_ROWS, NUM_IDS, ROW_BYTES, MAX_N = 3000, 200, 8, 3
IN_RUNS, IN_MEMORY = 6000, 1 << 20


def sorter(directory, memory_bytes: int) -> RunSorter:
    """Many rows of few IDs; each row has tokens, a length and bytes of its own, so that no two can be mistaken."""
    rng = np.random.default_rng(5)
    ids = rng.integers(0, NUM_IDS, NUM_ROWS).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    stamps = np.arange(NUM_ROWS)
    tokens = (stamps[:, None] * 10 + np.arange(MAX_N)).astype(np.uint32)
    rows = stamps.astype("<u8").view(np.uint8).reshape(NUM_ROWS, ROW_BYTES)
    result = RunSorter(directory, ROW_BYTES, MAX_N, memory_bytes)
    for at in range(0, NUM_ROWS, 700):
        part = slice(at, at + 700)
        result.add(ids[part], rows[part], tokens[part], (stamps[part] % MAX_N + 1).astype(np.uint8), is_ours=False)
    result.seal()
    return result


def collected(found: RunSorter) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """IDs, tokens and lengths of all places in order, and how many places each range has."""
    ids, tokens, lengths, sizes = [], [], [], []
    for some_ids, tokens_at in found.sorted_ids():
        some_tokens, some_lengths = tokens_at(np.arange(len(some_ids)))
        assert some_tokens.dtype == np.uint32 and some_lengths.dtype == np.uint8
        for column, part in ((ids, some_ids), (tokens, some_tokens), (lengths, some_lengths)):
            column.append(part)
        sizes.append(len(some_ids))
    return np.concatenate(ids), np.concatenate(tokens), np.concatenate(lengths), np.array(sizes)


def test_runs_on_disk_give_the_ids_and_tokens_that_memory_gives(tmp_path):
    """Equal IDs in many runs, in the order they were added: that is how the last of duplicates is found."""
    wanted, found = sorter(tmp_path, IN_MEMORY), sorter(tmp_path, IN_RUNS)
    assert len(found._runs) > 10 and not wanted._runs
    for column, other in zip(collected(found)[:3], collected(wanted)[:3], strict=True):
        np.testing.assert_array_equal(column, other)
    assert len(collected(found)[3]) > 5


@pytest.mark.parametrize("how", ["backwards", "some twice", "none"])
def test_tokens_come_in_the_order_they_were_asked_for(tmp_path, how):
    for ids, tokens_at in sorter(tmp_path, IN_RUNS).sorted_ids():
        places = np.arange(len(ids))
        chosen = {"backwards": places[::-1], "some twice": np.repeat(places, 2)[::3], "none": places[:0]}[how]
        all_tokens, all_lengths = tokens_at(places)
        tokens, lengths = tokens_at(chosen)
        np.testing.assert_array_equal(tokens, all_tokens[chosen])
        np.testing.assert_array_equal(lengths, all_lengths[chosen])
