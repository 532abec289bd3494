"""The Python blocks of docs/scone.md run, and every name the package offers is there."""

from __future__ import annotations

import re
from pathlib import Path

import ngramstore_torch

PAGE = Path(__file__).parents[2] / "docs" / "scone.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_every_name_the_package_offers_can_be_imported():
    for name in ngramstore_torch.__all__:
        assert getattr(ngramstore_torch, name) is not None
