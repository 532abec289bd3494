"""Bad input on the way from text to a table: one clear error each, before the work that it would make useless."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from click.testing import CliRunner, Result

from ngramstore.cli.main import cli
from ngramstore.errors import UsageError
from ngramstore_torch.training.config import TrainConfig

SMALL = "--dim 32 --layers 1 --heads 2 --tokens 1k --batch 4 --seq-len 32 --device cpu --quiet"


def run(command: str, more: str = "") -> Result:
    return CliRunner().invoke(cli, [*command.split(), *more.split()])


def refused(command: str, more: str = "") -> str:
    result = run(command, more)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "error: " in result.stderr and "hint: " in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Twenty documents, their vocabulary, and two runs that differ in their seeds, with the first one's store."""
    folder = tmp_path_factory.mktemp("place")
    rng = random.Random(0)
    words = ["the row", "of a store", "answers", "each token", "with a vector", "and nothing", "is lost", "twice"]
    (folder / "many").mkdir()
    for i in range(20):
        (folder / "many" / f"{i}.txt").write_text(" ".join(rng.choices(words, k=150)))
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)


def test_a_corpus_that_would_be_held_out_whole_is_refused(place):
    (place / "one.txt").write_text("a rose is a rose " * 200)
    assert "leaves out all" in refused("mine one.txt --out one.ngv --tokenizer train:270 --held-out 0.1 --quiet")
    done = run("mine one.txt --out one.ngv --tokenizer train:270 --quiet --json")
    assert json.loads(done.stdout)["num_ngrams"] > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-n 1", "max_n is 1, it must be 2 to 16"),
        ("--size 0", "size is 0"),
        ("--held-out 1.5", "held_out is 1.5"),
        ("--held-out nan", "held_out is nan"),
    ],
)
def test_options_out_of_range_are_refused_before_a_word_is_read(place, options, message):
    result = run("mine many --out early.ngv --tokenizer train:280 --quiet " + options)
    assert result.exit_code == 2 and message in result.stderr
    assert not list(place.glob("early*"))


def test_more_ngrams_than_there_are_keeps_all_that_are_frequent():
    found = run("mine many --out v.ngv --tokenizer train:280 --size 10000000 --held-out 0.2 --quiet")
    assert found.exit_code == 0 and "all of them are kept" in found.stderr
    assert "held out: " in found.stderr


def test_a_vocabulary_without_ngrams_trains_no_scone_model(place):
    (place / "bare.txt").write_text("".join(chr(i) for i in range(33, 120)))
    assert run("mine bare.txt --out bare.ngv --tokenizer train:270 --quiet").exit_code == 0
    assert "holds no f-gram" in refused("train --corpus bare.txt --vocab bare.ngv --out r0", SMALL)


def test_text_that_was_mined_with_replaced_bytes_or_other_endings_can_be_trained_on(place):
    (place / "odd").mkdir()
    for path in (place / "many").iterdir():
        (place / "odd" / f"{path.stem}.c").write_bytes(b"\xff" + path.read_bytes())
    how = "--errors replace --suffix .c"
    assert run(f"mine odd --out odd.ngv --tokenizer train:280 --held-out 0.2 --quiet {how}").exit_code == 0
    assert "invalid UTF-8 at byte 0" in refused("train --corpus odd --suffix .c --vocab odd.ngv --out r1", SMALL)
    done = run(f"train --corpus odd --vocab odd.ngv --out r1 {how}", SMALL)
    assert done.exit_code == 0, done.output


def test_a_store_of_another_checkpoint_is_not_measured(place):
    run("mine many --out v.ngv --tokenizer train:280 --held-out 0.2 --quiet")
    for seed in ("0", "1"):
        assert run(f"train --corpus many --vocab v.ngv --out s{seed} --seed {seed}", SMALL).exit_code == 0
    assert run("export --checkpoint s0 --vocab v.ngv --store table --device cpu --quiet").exit_code == 0
    how = "evaluate --corpus many --vocab v.ngv --store table --device cpu --quiet --json --checkpoint"
    assert len(json.loads(run(f"{how} s0").stdout)["results"]) == 2
    said = refused(f"{how} s1")
    assert "was exported from checkpoint" in said and "export again from the checkpoint as it is now" in said


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_learning_rate_is_a_positive_number(lr):
    with pytest.raises(UsageError, match="lr must be above 0"):
        TrainConfig(lr=lr)


def test_a_vocabulary_of_another_corpus_is_told(place):
    """What is held out is chosen by place in the corpus: with other documents it is other text than mining left out."""
    assert run("mine many --out lines.ngv --tokenizer train:280 --documents line --held-out 0.2 --quiet").exit_code == 0
    told = "what is held out here is not what mining left out"
    other = run("train --corpus many --vocab lines.ngv --out r2 --documents file", SMALL)
    assert other.exit_code == 0 and told in other.stderr
    same = run("train --corpus many --vocab lines.ngv --out r3 --documents line", SMALL)
    assert same.exit_code == 0 and told not in same.stderr
