"""The paper's tables: its published numbers, the workload that puts ours beside them, and the journal's workload."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import ngramstore
from bench import check, data, peers, text
from bench.peers import in_memory
from bench.workloads import journal, paper_cases

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="page cache checks are for Linux")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Mined n-grams of 2..5 made-up tokens with f16 rows, and the text they are looked up in."""
    root = tmp_path_factory.mktemp("paper")
    tokens = np.random.default_rng(0).zipf(1.4, 4000).clip(0, 60).astype(np.uint32)
    np.save(root / "text.held_out.npy", tokens[3000:])
    data.write(root / "text", *text.frequent_ngrams(tokens[:3000], 150), dim=8, seed=0, codec="f16")
    return root / "text"


def test_every_token_asked_for_ends_a_stored_ngram_and_has_its_context(source):
    origin = data.load(source)
    stored = {tuple(row[:n].tolist()) for row, n in zip(origin.ngrams_NK, origin.lengths_N, strict=True)}
    for call in paper_cases._calls(origin, 4, 50, seed=2):
        for window, length in zip(call.windows_BK.tolist(), call.stretch.lengths_T, strict=True):
            suffixes = [tuple(window[-n:]) for n in range(2, 6)]
            assert length == max(len(gram) for gram in suffixes if gram in stored)


@needs_linux
@pytest.mark.parametrize("subject", ["ngramstore", "dict", "memmap_numba", "lmdb"])
def test_latency_in_memory_runs_and_is_checked(source, subject):
    if reason := peers.missing(subject):
        pytest.skip(reason)
    peers.ensure_built(subject, str(source))
    found = paper_cases.latency_ram(
        subject=subject, source=str(source), batch_sizes=[1, 4], calls=20, warmup_s=0.0, seed=1
    )
    assert found["facts"]["rows_checked"] == 20 * (1 + 4)
    assert 0 < found["metrics"]["us@4"] <= found["metrics"]["p99_us@4"]


@needs_linux
@pytest.mark.parametrize("subject", ["ngramstore", "memmap", "lmdb"])
def test_latency_from_disk_runs_and_is_checked(source, subject):
    if reason := peers.missing(subject):
        pytest.skip(reason)
    peers.ensure_built(subject, str(source))
    found = paper_cases.latency_disk(subject=subject, source=str(source), batch_sizes=[1, 4], calls=3, seed=1)
    assert found["facts"]["rows_checked"] == 5 * (1 + 4)
    assert found["metrics"]["us@1"] > 0


def test_a_wrong_length_stops_the_case(source, monkeypatch):
    right = in_memory.DictOfRows.longest
    monkeypatch.setattr(in_memory.DictOfRows, "longest", lambda self, *args: right(self, *args) - 1)
    peers.ensure_built("dict", str(source))
    with pytest.raises(check.WrongAnswer, match="by definition"):
        paper_cases.latency_ram(subject="dict", source=str(source), batch_sizes=[4], calls=5, warmup_s=0.0, seed=1)


def test_space_says_how_far_the_estimate_was_off(tmp_path):
    source = data.prepare(tmp_path, 500, 16, 1, "f16")
    found = paper_cases.space(subject="ngramstore", source=str(source), root=str(tmp_path), fgrams=[10**7], seed=0)
    metrics = found["metrics"]
    off = 100 * (metrics["predicted_bytes_per_key"] / metrics["bytes_per_key"] - 1)
    assert metrics["error_percent"] == pytest.approx(off)
    said = ngramstore.sizes(10**7, 16, codec="f16", mean_length=3.0)[0].disk_bytes
    assert found["facts"]["gb"] == {str(10**7): said / 1e9}


def test_the_journals_workload_runs_on_few_changes(tmp_path):
    found = journal.append(size=8, root=str(tmp_path), total=64, seed=1)
    assert found["facts"]["appends"] == 8
    assert 0 < found["metrics"]["fastest_us_per_change"] <= found["metrics"]["us_per_change"]
    found = journal.read(count=40, root=str(tmp_path), seed=1, repeats=1)
    assert set(found["metrics"]) == {"open_ms", "open_after_kill_ms", "get_us_per_row", "scan_us_per_change"}
    assert not list(tmp_path.iterdir())


def test_the_papers_numbers_are_those_of_its_own_arithmetic():
    """A row is 4,096 B; LMDB spills each to a second page; the paper's sizes are at least the raw rows and grow in proportion."""
    with open(paper_cases.__file__.replace("workloads/paper_cases.py", "paper.json")) as file:
        found = json.load(file)
    nums = found["space_gb"]["num_fgrams"]
    for num, ram, lmdb in zip(nums, found["space_gb"]["ram"], found["space_gb"]["lmdb_nvme"], strict=True):
        raw = num * found["dim"] * 2 / 1e9
        assert ram is None or 1.0 < ram / raw < 1.1
        assert 1.8 < lmdb / raw < 2.0
    assert "2502.01637" in found["citation"]
