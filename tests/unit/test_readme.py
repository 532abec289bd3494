"""What the front page shows works: its Python block runs, and it names every command."""

from __future__ import annotations

import re
from pathlib import Path

from ngramstore.cli.main import _OTHERS, CORE_COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_python_block_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["hit"].length.tolist() == [[0, 2, 3, 0]]
    assert found["found"].all() and len(found["store"]) == 3
    assert found["store"].contains([(9, 26), (2, 7, 1)]).tolist() == [True, False]


def test_it_names_every_command():
    (listed,) = re.findall(r"```\nngramstore (.*?)```", README, re.DOTALL)
    words = {word for line in listed.splitlines() for word in re.split(r"\s{3,}", line.strip())[0].split(" | ")}
    assert words == set(CORE_COMMANDS) | set(_OTHERS)
