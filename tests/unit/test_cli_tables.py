"""What `trace`, `sizes`, `generate` and `evaluate` say of a table that does not fit, and of options that have no use for one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from store_cases import some_rows

from ngramstore.cli.main import cli
from ngramstore.errors import UsageError
from ngramstore.mine import require_tokenizer

tokenizers = pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat and the dog sat on the cat " * 40


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def mined(tmp_path):
    """A vocabulary and a store of it that `build` made; another tokenizer in other.json."""
    from ngramstore.mine import Vocabulary, train_bpe

    (tmp_path / "a.txt").write_text(TEXT)
    train_bpe(["quite another text"] * 9, 270).save(tmp_path / "other.json")
    made = run("mine", tmp_path / "a.txt", "--out", tmp_path / "v.ngv", "--tokenizer", "train:280", "--quiet")
    assert made.exit_code == 0, made.output
    np.save(tmp_path / "rows.npy", some_rows(len(Vocabulary.load(tmp_path / "v.ngv")), 4))
    built = run("build", tmp_path / "store", "--rows", tmp_path / "rows.npy", "--vocab", tmp_path / "v.ngv", "--quiet")
    assert built.exit_code == 0, built.output
    return tmp_path


def traced(folder, *options):
    return run("trace", folder / "store", folder / "a.txt", "--out", folder / "t", "--quiet", *options)


def test_a_store_that_build_made_knows_its_tokenizer_too(mined):
    assert traced(mined, "--tokenizer", mined / "v.ngv.tokenizer.json").exit_code == 0
    wrong = traced(mined, "--tokenizer", mined / "other.json")
    assert wrong.exit_code == 2 and "was made with the tokenizer" in wrong.stderr


def test_a_token_map_is_refused_for_ngrams_and_no_rows_at_all_too(mined):
    right = ("--tokenizer", mined / "v.ngv.tokenizer.json")
    wrong = traced(mined, *right, "--token-map", mined / "missing.npy")
    assert wrong.exit_code == 2 and "--token-map has no use" in wrong.stderr
    none = traced(mined, *right, "--top", "0")
    assert none.exit_code == 2 and "--top is 0" in none.stderr
    assert not (mined / "t").exists()


@pytest.mark.parametrize(
    ("made_with", "is_refused"),
    [
        (None, False),
        ({}, False),
        ({"tokenizer_id": "b"}, True),
        ({"tokenizer_id": "a"}, False),
        ({"vocabulary": {"tokenizer_id": "b", "tokenizer_name": "its"}}, True),
        ({"vocabulary": {"tokenizer_id": "a"}}, False),
        ({"vocabulary": "of my own"}, False),
        ({"tokenizer_id": "a", "vocabulary": {"tokenizer_id": "b"}}, False),
    ],
)
def test_a_tokenizer_is_known_from_an_export_and_from_a_build(made_with, is_refused):
    if not is_refused:
        require_tokenizer("it", made_with, "a")
        return
    with pytest.raises(UsageError, match="it was made with the tokenizer"):
        require_tokenizer("it", made_with, "a")
    require_tokenizer("it", made_with, "")


@pytest.mark.parametrize("option", [("--no-tokens",), ("--mean-length", "4"), ("--mean-length", "3.0")])
def test_sizes_of_rows_by_number_take_no_options_of_ngrams(option):
    words = ("sizes", "--rows", "5", "--dim", "3")
    wrong = run(*words, "--addressing", "row", *option)
    assert wrong.exit_code == 2 and re.search(rf"{option[0]} is for stores of n-grams", wrong.stderr)
    assert run(*words, *option).exit_code == 0 and run(*words, "--addressing", "row").exit_code == 0
