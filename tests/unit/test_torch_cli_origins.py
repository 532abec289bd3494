"""`generate` and `evaluate` say where a store does not name the checkpoint that its rows came from, and only there."""

from __future__ import annotations

import random

import numpy as np
import pytest
from click.testing import CliRunner

import ngramstore
from ngramstore.cli.main import cli
from ngramstore.mine import Vocabulary

NOTE = "does not say which checkpoint its rows were computed from"


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained run, the table exported from it, and a store that `build` made for the same vocabulary."""
    folder = tmp_path_factory.mktemp("origins")
    (folder / "text").mkdir()
    rng = random.Random(0)
    for i in range(20):
        (folder / "text" / f"{i}.txt").write_text(
            " ".join(rng.choices(["the row", "of a store", "answers", "twice"], k=150))
        )
    text = ("--corpus", folder / "text", "--vocab", folder / "v.ngv")
    mined = ("--out", folder / "v.ngv", "--tokenizer", "train:280", "--size", "300", "--held-out", "0.2", "--quiet")
    run("mine", folder / "text", *mined)
    shape = ("--dim", "32", "--layers", "1", "--heads", "2", "--tokens", "4k", "--batch", "8", "--seq-len", "32")
    run("train", *text, *shape, "--device", "cpu", "--quiet", "--out", folder / "run")
    run(
        "export", "--checkpoint", folder / "run", "--vocab", folder / "v.ngv", "--store", folder / "exported", "--quiet"
    )
    np.save(folder / "rows.npy", np.zeros((len(Vocabulary.load(folder / "v.ngv")), 32), np.float32))
    run("build", folder / "built", "--rows", folder / "rows.npy", "--vocab", folder / "v.ngv", "--quiet")
    with ngramstore.open(folder / "built") as built:
        assert "checkpoint_id" not in built.metadata
    return folder


@pytest.mark.parametrize(("store", "is_told"), [("built", True), ("exported", False)])
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_store_that_names_no_checkpoint_is_served_with_a_note(folder, command, store, is_told):
    given = ("--checkpoint", folder / "run", "--store", folder / store, "--device", "cpu", "--quiet")
    if command == "generate":
        said = run(command, *given, "--prompt", "the row", "--max-new-tokens", "2")
    else:
        said = run(command, *given, "--corpus", folder / "text", "--vocab", folder / "v.ngv", "--max-windows", "2")
    assert (NOTE in said) == is_told
