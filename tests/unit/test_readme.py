"""What the front page shows works: its Python block runs, it names every command, and no page takes another's store."""

from __future__ import annotations

import re
from pathlib import Path

from ngramstore.cli.main import _OTHERS, CORE_COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FOLLOWED = ("README.md", "docs/tutorial.md", "docs/serving.md", "docs/tables.md", "docs/codecs.md")
"""Pages that make stores, which a reader may follow one after the other in one folder."""


def test_the_python_block_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["hit"].length.tolist() == [[0, 2, 3, 0]]
    assert found["found"].all() and len(found["store"]) == 3
    assert found["store"].contains([(9, 26), (2, 7, 1)]).tolist() == [True, False]


def test_pages_that_are_followed_in_one_folder_make_stores_of_different_names():
    """Else a build is refused, its hint says to delete what is there, and a later page lacks its store."""
    made = {
        page: {
            (in_python or by_command).rstrip("/")
            for in_python, by_command in re.findall(
                r'\b(?:ngs|ngramstore)\.build\("([^"]+)"|^ngramstore (?:build|export .*--store) (\S+)',
                (ROOT / page).read_text(),
                re.MULTILINE,
            )
        }
        for page in FOLLOWED
    }
    assert made["README.md"] == {"store", "rows-table"} and made["docs/tutorial.md"] == {"table", "table4"}
    assert all(made.values())
    assert sum(map(len, made.values())) == len(set().union(*made.values())), made


def test_it_links_every_document():
    documents = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
    assert [name for name in documents if f"({name}" not in README] == []


def test_it_names_every_command():
    (listed,) = re.findall(r"```\nngramstore (.*?)```", README, re.DOTALL)
    words = {word for line in listed.splitlines() for word in re.split(r"\s{3,}", line.strip())[0].split(" | ")}
    assert words == set(CORE_COMMANDS) | set(_OTHERS)
