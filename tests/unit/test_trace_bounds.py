"""A trace that had no room for all rows says so: it does not pass off what is left as all there is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from store_cases import build_rows, some_rows

from ngramstore.cli.main import cli
from ngramstore.keys import keys_from_config
from ngramstore.store.trace import Trace

QWEN = {
    "vocab_size": 500,
    "ngram_size": 2,
    "heads_per_ngram": 4,
    "ngram_vocab_size_base": 3000,
    "make_ngram_vocab_size_divisible_by": 1,
    "ple_layer_ids": [2],
    "eos_token_id": 499,
}


@pytest.fixture
def traced(tmp_path):
    tokens = np.random.default_rng(7).zipf(1.3, 4000) % 499
    np.save(tmp_path / "t.npy", tokens.astype(np.uint16))
    keys = keys_from_config(QWEN)
    store = build_rows(tmp_path / "table", some_rows(keys.num_rows), metadata={"keys": keys.spec()})

    def run(*options):
        words = ["trace", store, tmp_path / "t.npy", "--out", tmp_path / "hot.ngt", "--quiet", *options]
        result = CliRunner().invoke(cli, list(map(str, words)))
        assert result.exit_code == 0, result.output
        return result

    run.out = tmp_path / "hot.ngt"
    return run


def test_rows_that_were_dropped_are_not_left_out_of_the_count_in_silence(traced):
    result = traced("--max-entries", 300, "--json")
    said, trace = json.loads(result.stdout), Trace.load(traced.out)
    assert said["distinct"] is None and said["kept"] == len(trace.keys) <= 300
    assert said["rows_for_share"]["0.99"] is None is said["cache_bytes_for_share"]["0.99"]
    lost = 1 - trace.counts.sum() / trace.num_lookups
    assert f"{lost:.1%} of the look-ups" in result.stderr and "raise --max-entries" in result.stderr


def test_shares_that_the_rows_left_do_not_answer_are_named_as_not_known(traced):
    lines = traced("--max-entries", 300).stdout.splitlines()
    assert len(lines) == 7 and lines[-1] == "   99% of the look-ups: not known"
    assert "rows" in lines[1]


def test_a_trace_of_all_rows_warns_of_nothing(traced):
    result = traced("--json", "--top", 5)
    said = json.loads(result.stdout)
    assert said["distinct"] > 300 and result.stderr == "" and None not in said["rows_for_share"].values()
    assert "not known" not in traced("--top", 5).stdout
