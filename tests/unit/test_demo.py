"""The demo on a thimble of text: every stage leaves its result, a second run goes on, two demos do not mix."""

from __future__ import annotations

import json
import random

import pytest

from ngramstore.errors import UsageError
from ngramstore_torch.experiment import demo
from ngramstore_torch.experiment.presets import Preset
from ngramstore_torch.training.config import TrainConfig

TINY = Preset(
    name="quick",
    corpus_bytes=0,
    tokenizer_size=300,
    num_fgrams=500,
    held_out=0.2,
    dim=16,
    num_layers=1,
    num_heads=2,
    train=TrainConfig(tokens=2048, batch_size=4, seq_len=64, lr=1e-3),
    max_windows=8,
)


def run(folder, text):
    said = []
    return demo.run(folder, texts=[text], quick=True, progress=False, say=said.append), said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, text, result, said) of one demo; its tests run in order and the last one changes the text."""
    home = tmp_path_factory.mktemp("demo")
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "the",
        "dog",
        "ate",
        "my",
        "hat",
        "in",
        "the",
        "sun",
        "while",
        "it",
        "rained",
        "over",
        "the",
        "hill",
    ]
    dice = random.Random(1)
    text = home / "text"
    text.mkdir()
    for name in range(12):
        (text / f"{name}.txt").write_text(" ".join(dice.choice(words) for _ in range(600)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "QUICK", TINY)
        yield home / "demo", text, *run(home / "demo", text)


def test_the_demo_reports_what_it_measured_and_draws_it(finished):
    folder, _, result, said = finished
    assert {"plain", "scone_live", "store_int8", "store_int4"} == set(result["perplexity"])
    assert all(value > 1 for value in result["perplexity"].values())
    assert 0 < result["hit_rate"] < 1
    assert result["tokens_per_s"] > 0
    assert abs(result["perplexity"]["store_int8"] / result["perplexity"]["scone_live"] - 1) < 0.001
    assert json.loads((folder / "report.json").read_text())["perplexity"] == result["perplexity"]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert any("better" in line for line in said)


def test_a_larger_cache_never_hits_less(finished):
    rates = list(finished[2]["hit_rate_by_cache_share"].values())
    assert rates == sorted(rates)


def test_a_second_run_trains_nothing_again_and_finds_the_same(finished):
    folder, text, first, _ = finished
    second, _ = run(folder, text)
    assert second["perplexity"] == first["perplexity"]
    assert second["losses"] == first["losses"]
    assert all(line["tokens_per_second"] == 0 for line in second["models"][:2])


def test_a_folder_with_another_demo_is_refused(finished):
    folder, text, _, _ = finished
    (text / "0.txt").write_text("something else entirely " * 300)
    with pytest.raises(UsageError, match="other text or settings"):
        run(folder, text)


def test_the_verdict_fits_both_outcomes():
    from ngramstore_torch.experiment.demo_report import verdict

    assert verdict(0.25) == "0.250 nats better" and verdict(-0.25) == "0.250 nats worse"
