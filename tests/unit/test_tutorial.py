"""docs/tutorial.md is run as it stands: every command and every line of Python, in order, with smaller numbers and less text."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from click.testing import CliRunner

import ngramstore
from ngramstore.cli.main import cli
from ngramstore.mine import Vocabulary, python_sources

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
SMALLER = {
    "train:1024": "train:300",
    "--size 100000": "--size 300",
    "--held-out 0.05": "--held-out 0.2",
    "--tokens 1.5M": "--tokens 2k --dim 32 --heads 2 --seq-len 32",
    "--max-new-tokens 100": "--max-new-tokens 5",
}
"""What this test changes in the commands, and nothing else."""


def blocks() -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def is_of_the_corpus(content: str) -> bool:
    """The block that makes a corpus/ for whoever has none."""
    return "python_sources(" in content


def commands() -> list[str]:
    return [line for kind, content in blocks() if kind == "bash" for line in content.splitlines() if line]


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    words = ["def main(", "for each row", "return the store", "of an n-gram", "with a vector", "and nothing else"]
    (tmp_path / "corpus").mkdir()
    for i in range(20):
        (tmp_path / "corpus" / f"{i}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return tmp_path / "corpus"


def test_the_page_runs_from_its_first_command_to_its_last_line_of_python(corpus, capsys):
    said = {}
    for kind, content in blocks():
        if kind == "python":
            if not is_of_the_corpus(content):  # `corpus` stands for it
                exec(compile(content, "docs/tutorial.md", "exec"), {})
            continue
        for line in filter(None, content.splitlines()):
            wanted = line
            for large, small in SMALLER.items():
                wanted = wanted.replace(large, small)
            name, *arguments = shlex.split(wanted)
            assert name == "ngramstore", line
            result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
            assert result.exit_code == 0, (line, result.output)
            said[line] = result.stdout
    assert len(said) == len(set(commands())) >= 11
    with ngramstore.open("table/") as store:
        assert len(store) == len(Vocabulary.load("vocab.ngv")) > 100
    (evaluated,) = (text for line, text in said.items() if " evaluate " in line)
    assert [line.split()[0] for line in evaluated.splitlines()[1:]] == ["plain", "scone", "table", "table4"]
    assert Path("vocab.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"\n?.+ (None|[01]\.\d+)\n$", capsys.readouterr().out)  # the last print of the Python


def test_the_corpus_for_whoever_has_none_is_utf8_whatever_the_sources_are(tmp_path, monkeypatch):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n".encode("latin-1"))
    asked = []

    def some_sources(max_bytes: int) -> list[Path]:
        asked.append(max_bytes)
        return [*python_sources(max_bytes // 100), tmp_path / "latin.py"]

    monkeypatch.setattr(ngramstore.mine, "python_sources", some_sources)
    monkeypatch.chdir(tmp_path)
    (block,) = (content for kind, content in blocks() if kind == "python" and is_of_the_corpus(content))
    exec(compile(block, "docs/tutorial.md", "exec"), {})
    made = [path.read_bytes().decode() for path in sorted(Path("corpus").iterdir())]
    assert asked == [10_000_000] and len(made) == len(python_sources(100_000)) + 1 > 1
    assert made[-1] == "# -*- coding: latin-1 -*-\nname = 'caf\ufffd'\n"
    assert made[0] == python_sources(100_000)[0].read_bytes().decode(errors="replace")


def test_every_number_that_the_test_makes_smaller_is_on_the_page():
    assert [large for large in SMALLER if not any(large in command for command in commands())] == []
