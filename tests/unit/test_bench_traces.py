"""The traces of the benchmark are what their names say, and each is checked before it is timed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bench import check, data, peers, text
from bench.peers import memmap
from bench.workloads import store_traces

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="page cache checks are for Linux")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Random keys, and the n-grams of made-up text."""
    root = tmp_path_factory.mktemp("traces")
    tokens = np.random.default_rng(0).zipf(1.4, 4000).clip(0, 60).astype(np.uint32)
    np.save(root / "text.held_out.npy", tokens[3000:])
    data.write(root / "text", *text.frequent_ngrams(tokens[:3000], 150), dim=8, seed=0)
    return {"": str(data.prepare(root, 600, 8, seed=3)), "python": str(root / "text")}


def _numbers(name, folder, count):
    batches = store_traces._batches(name, data.load(folder), 50, count, 7)
    return np.concatenate([batch.numbers_B for batch in batches])


def test_misses_are_all_absent(sources):
    assert (_numbers("misses", sources[""], 8) == -1).all()


def test_unique_asks_for_no_key_twice_and_ends_with_the_keys(sources):
    numbers = _numbers("unique", sources[""], 100)
    assert len(numbers) == len(np.unique(numbers)) == 600
    assert (numbers >= 0).all()


def test_uniform_has_no_hot_key_and_zipf_has(sources):
    hottest = {}
    for name in ("uniform", "zipf"):
        numbers = _numbers(name, sources[""], 400)
        assert abs((numbers < 0).mean() - 0.2) < 0.03
        hottest[name] = np.bincount(numbers[numbers >= 0]).max() / len(numbers)
    assert hottest["zipf"] > 5 * hottest["uniform"]


def test_text_asks_for_the_longest_stored_ngram_of_each_position(sources):
    source = data.load(sources["python"])
    batch = store_traces._batches("python", source, 200, 1, 7)[0]
    stored = {tuple(row[:n].tolist()) for row, n in zip(source.ngrams_NK, source.lengths_N, strict=True)}
    for ngram, n, number in zip(batch.ngrams_BK.tolist(), batch.lengths_B, batch.numbers_B, strict=True):
        assert (number >= 0) == (tuple(ngram[:n]) in stored)
    assert 0.2 < (batch.numbers_B >= 0).mean() < 1


def _run(sources, subject, **changes):
    for folder in sources.values():
        peers.ensure_built(subject, folder)
    arguments = {"batch": 50, "calls": 6, "warmup_s": 0.0, "budget_s": 0.1, "seed": 1}
    return store_traces.traces(subject=subject, sources=sources, **{**arguments, **changes})


@needs_linux
@pytest.mark.parametrize(("subject", "cache_share"), [("ngramstore", None), ("ngramstore", 0.1), ("dict", None)])
def test_every_trace_is_checked_and_timed(sources, subject, cache_share):
    found = _run(sources, subject, cache_share=cache_share)
    names = (*store_traces.SYNTHETIC, "python")
    assert found["facts"]["rows_checked"] == len(names) * 2 * 50
    assert all(found["metrics"][f"us_per_key@{name}"] > 0 for name in names)


@needs_linux
def test_a_small_cache_is_a_share_of_the_rows_of_each_source(sources):
    """Text has fewer n-grams than were asked for: a tenth of these would hold most of its rows."""
    found = _run(sources, "ngramstore", cache_share=0.1)
    row_bytes = 8 + 4
    assert found["facts"]["cache_bytes"] == {"random keys": 600 * row_bytes // 10, "python": 150 * row_bytes // 10}
    assert 0 <= found["metrics"]["hit_rate@python"] < 1


@needs_linux
def test_a_small_cache_settles_by_count_and_files_are_warm_before_each_timing(sources, monkeypatch):
    """By time a slow subject would be timed with an emptier cache than a fast one."""
    for subject in ("ngramstore", "memmap"):
        for folder in sources.values():
            peers.ensure_built(subject, folder)
    settled, warmed = [], []
    monkeypatch.setattr(
        store_traces.store_get, "look_all_up", lambda peer, batches, dim: settled.append(sum(map(len, batches)))
    )
    monkeypatch.setattr(store_traces.pages, "warm", lambda files: warmed.append(len(files)))
    _run(sources, "ngramstore", cache_share=0.1)
    assert settled == [
        1200,
        1200,
        600,
        300,
    ]  # zipf, uniform, unique (each key once), text: twice the rows; none for misses
    warmed.clear()
    settled.clear()
    _run(sources, "memmap", cache_share=0.1)
    assert settled == [] and len(warmed) == len(sources) + len(store_traces.SYNTHETIC) + 1


@needs_linux
def test_a_wrong_answer_on_any_trace_stops_it(sources, monkeypatch):
    right = memmap.Memmap.get

    def forgets_misses(self, batch, out_BD):
        return right(self, batch, out_BD) | (batch.numbers_B < 0).all()

    monkeypatch.setattr(memmap.Memmap, "get", forgets_misses)
    with pytest.raises(check.WrongAnswer, match="the source says False"):
        _run(sources, "memmap")
