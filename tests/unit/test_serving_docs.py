"""The Python blocks of docs/serving.md run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ngramstore.cli.main import cli

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def blocks(*, of_a_run: bool) -> list[str]:
    """The page's blocks of Python: those that read the run folder hashed/, or those that need nothing."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in found if ("load_checkpoint(" in block) == of_a_run]


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert len(blocks(of_a_run=False)) == 3
    for block in blocks(of_a_run=False):
        exec(compile(block, str(PAGE), "exec"), {})


def test_a_run_with_hashed_tables_is_served_as_the_page_says(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from torch_cases import DECODER, language, shaken

    from ngramstore_torch.data.batches import tag
    from ngramstore_torch.model.hashed import HashedConfig, HashedModel
    from ngramstore_torch.training import checkpoint

    monkeypatch.chdir(tmp_path)
    run = shaken(HashedModel(DECODER, HashedConfig(num_rows=120, max_n=4)))
    checkpoint.save("hashed", run, step=7, optimizer={}, train={}, data={})
    (line,) = re.findall(r"^ngramstore (build .*)$", PAGE.read_text(), re.MULTILINE)
    arguments = [str(name) for word in shlex.split(line) for name in ([*Path().glob(word)] if "*" in word else [word])]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (block,) = blocks(of_a_run=True)
    found: dict = {}
    exec(compile(block, str(PAGE), "exec"), found)
    tokens, offsets = language(3)
    starts = np.isin(np.arange(len(tokens)), offsets)[None]
    batch = tag(tokens, offsets, None).at(np.arange(len(tokens))[None], history=run.history)
    with torch.no_grad():
        got = found["embed"](torch.from_numpy(tokens[None].astype(np.int64)), starts=starts)
        torch.testing.assert_close(got, run.inputs(batch))
