"""The Python blocks of docs/serving.md run, its commands exist, and the packages offer the names they list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_the_commands_of_the_page_exist():
    from ngramstore_torch.cli.generate import command

    known = {option for parameter in command.params for option in parameter.opts}
    lines = re.findall(r"^ +ngramstore generate (.*)$", PAGE.read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_every_name_of_the_transformers_package_can_be_imported_again_and_again():
    pytest.importorskip("transformers")
    import ngramstore_transformers

    for _ in range(2):
        for name in ngramstore_transformers.__all__:
            assert callable(getattr(ngramstore_transformers, name))
