"""What README.md and docs/ point to is there: files and headings that they link, tests and commands that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from helpers import ROOT

from ngramstore.cli.main import _OTHERS, CORE_COMMANDS, cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
COMMANDS = [*CORE_COMMANDS, *_OTHERS]
_COMMAND = re.compile(rf"\bngramstore ({'|'.join(COMMANDS)})\b([^`#\n]*)")


def prose(path: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), _FENCE.sub("", path.read_text()))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: links and markup fall away, then signs; blanks become hyphens."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    """Of the headings of a page: a slug that comes again gets -1, -2, ..."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", _FENCE.sub("", path.read_text()), re.MULTILINE):
        name = base = slug(heading)
        while name in found:
            found[base] += 1
            name = f"{base}-{found[base]}"
        found[name] = 0
    return set(found)


def broken(path: Path) -> Iterator[str]:
    for target in _LINK.findall(prose(path)):
        if _ELSEWHERE.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = path if not name else path.parent / name
        if not file.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(file.resolve()):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path):
    assert list(broken(path)) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b_c` & d!\n## Twice\n## Twice\n[good](#a-b_c--d) [good](#twice-1) [good](page.md#twice) [far](https://x.y/z)\n"
        "`[code](none.md)`\n```\n[code](none.md)\n# No heading\n```\n"
        "[bad](none.md) ![bad](none.png) [bad](#no-heading) [bad](page.md#twice-2)\n"
    )
    assert list(broken(page)) == [
        "none.md: no such file",
        "none.png: no such file",
        "#no-heading: no such heading",
        "page.md#twice-2: no such heading",
    ]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What it does not do", "what-it-does-not-do"),
        ("PLE: Qwen3.8-Flash-Next", "ple-qwen38-flash-next"),
        ("ngramstore_torch.StoreModule", "ngramstore_torchstoremodule"),
        ("Decisions, and what was measured", "decisions-and-what-was-measured"),
        ("The `warm` command, [linked](warm.md)", "the-warm-command-linked"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert slug(heading) == anchor


def test_tests_that_pages_name_are_there():
    named = {name for page in PAGES for name in re.findall(r"\btests/[\w/]+\.py", page.read_text())}
    assert "tests/unit/test_tutorial.py" in named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_commands_that_pages_show_have_these_options():
    known = {name: {"--help"} for name in COMMANDS}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        known[name].update(option for parameter in command.params for option in parameter.opts)
    shown = [(page.name, *found) for page in PAGES for found in _COMMAND.findall(page.read_text())]
    assert {name for _, name, _ in shown} == set(COMMANDS)
    for page, name, told in shown:
        assert set(re.findall(r"(?<!\S)--[\w-]+", told)) <= known[name], (page, name, told)
