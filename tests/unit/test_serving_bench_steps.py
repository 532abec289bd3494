"""The workers of the decode bench at a size of nothing: what they report about caches, cold pages, processes and threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ngramstore
from bench import pages, traces
from bench.check import WrongAnswer
from bench.workloads import decode_cache, decode_calls, decode_model
from ngramstore_torch import NGramEmbedding

TEXT = np.random.default_rng(0).zipf(1.5, 6000).astype(np.uint32) % 50


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """A folder as `traces.prepare` makes it, of made-up text."""
    root = tmp_path_factory.mktemp("trace")
    np.savez(root / "trace-tokens-code-fall.npz", tokens=TEXT, sizes=np.full(30, 200))
    return traces.prepare(root, "code", 300, 128, 0, None)


def test_a_trace_is_made_of_the_kept_tokens_and_holds_out_every_tenth_document(trace):
    held = np.load(trace / "held_out.npy")
    np.testing.assert_array_equal(held, TEXT.reshape(30, 200)[::10].reshape(-1))
    with ngramstore.open(trace / "store") as store:
        assert len(store) == 300 and store.dim == 128


@pytest.fixture(scope="module")
def steps(trace):
    patch = pytest.MonkeyPatch()
    patch.setattr(decode_model, "VOCAB", 60)
    patch.setitem(decode_model.SIZES, "tiny", {"dim": 128, "num_layers": 1, "num_heads": 2})
    patch.setattr(decode_model, "MOST_STEPS", 40)
    modes = ["cached", "tenth", "cold", "candidates"]
    try:
        yield decode_model.step(size="tiny", trace=str(trace), batch=2, seconds=60, threads=1, modes=modes, seed=0)
    finally:
        patch.undo()


def test_every_mode_reports_both_sides_and_its_cache(steps):
    for mode in ("cached", "tenth", "cold", "candidates"):
        metrics = {name: value for name, value in steps["metrics"].items() if name.endswith("_" + mode)}
        assert metrics[f"longer_{mode}"] == metrics[f"step_us_{mode}"] / metrics[f"plain_us_{mode}"]
        assert 0 < metrics[f"own_us_{mode}"] < metrics[f"plain_us_{mode}"]
        assert 0.5 < steps["facts"][mode]["found_share"] < 1
        assert steps["facts"][mode]["steps"] == 32
    facts = steps["facts"]
    assert facts["cached"]["hit_rate"] == 1 and facts["cached"]["rows_read_a_step"] == 0
    assert 0 < facts["tenth"]["hit_rate"] < 1
    assert facts["cold"]["hit_rate"] is None
    assert facts["cold"]["rows_read_a_step"] >= facts["cold"]["found_share"]  # two sequences, each found row is read


def test_cold_is_verified_and_doubted_where_pages_stay(steps, trace):
    """Where the test's folder is a disk, pages go; where it is memory, they cannot, and the result says so."""
    with ngramstore.open(trace / "store") as store:
        rows = [path for path in store.files if path.suffix == ".rows"]
    pages.drop(rows)
    left = pages.resident_share(rows)
    for mode in ("cold", "candidates"):
        assert steps["facts"][mode]["rows_pages_left"] == pytest.approx(left, abs=0.2)
    assert bool(steps["facts"]["warnings"]) == (left > 0.01)
    assert steps["facts"]["cached"]["rows_pages_left"] is None


def test_vectors_that_are_not_the_traces_are_noticed(trace, tmp_path):
    tokens = torch.from_numpy(np.load(trace / "held_out.npy")[:200].astype(np.int64))[None]
    own = torch.nn.Embedding(60, 128)
    np.savez(tmp_path / "trace-tokens-code-fall.npz", tokens=TEXT, sizes=np.full(30, 200))
    other = traces.prepare(tmp_path, "code", 300, 128, 1, None)
    with ngramstore.open(trace / "store") as store, torch.inference_mode():
        assert decode_model.must_be_the_traces(NGramEmbedding(store, own), trace, tokens) == 400
        with pytest.raises(WrongAnswer, match="no n-gram ends"):
            decode_model.must_be_the_traces(NGramEmbedding(store, own, min_length=3), trace, tokens)
        with pytest.raises(WrongAnswer, match="module: row"):
            decode_model.must_be_the_traces(NGramEmbedding(store, own), other, tokens)


def test_candidates_hold_the_token_that_comes_next(trace):
    next_B = torch.tensor([3, 7])
    drawn = decode_model._candidates(next_B, np.random.default_rng(0))
    assert drawn.shape == (2, 8) and drawn[:, 0].tolist() == [3, 7]


def test_prompts_are_looked_up_beside_the_decoders_pass(trace, monkeypatch):
    monkeypatch.setattr(decode_model, "VOCAB", 60)
    monkeypatch.setitem(decode_model.SIZES, "tiny", {"dim": 128, "num_layers": 1, "num_heads": 2})
    found = decode_calls.prefill(size="tiny", trace=str(trace), batch=2, length=64, turns=2, threads=1, seed=0)
    for mode in ("cached", "tenth"):
        share = found["metrics"][f"lookup_ms_{mode}"] / found["metrics"]["decoder_ms"]
        assert found["metrics"][f"share_{mode}"] == pytest.approx(share)


@pytest.mark.slow
def test_processes_share_the_rows_in_the_page_cache_and_threads_share_a_row_cache(trace):
    """Each process reads all rows it asks for, the page cache holds them once: no more of it for three than for one."""
    asked = {"threads": 1, "trace": str(trace), "positions": 600, "seed": 0}
    one, three = (decode_cache.sharing(processes=count, **asked) for count in (1, 3))
    assert one["metrics"]["rows_in_page_cache_mib"] > 0
    assert three["metrics"]["rows_in_page_cache_mib"] == one["metrics"]["rows_in_page_cache_mib"]
    assert three["facts"]["rows_read_mib_a_process"] == one["facts"]["rows_read_mib_a_process"] > 0
    assert three["metrics"]["disk_read_mib_all"] <= one["metrics"]["disk_read_mib_all"] * 1.5 + 0.1
    threads = decode_cache.sharing(processes=1, **{**asked, "threads": 4})
    assert threads["facts"]["rows_in_a_row_cache"] == one["facts"]["rows_in_a_row_cache"] > 0
