"""The pages on shipped tables say what the code does: row counts, manifest fields, commands and files that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import write_longcat
from test_keys import LONGCAT, QWEN, V41

from ngramstore.keys import keys_from_config
from ngramstore.store.imports.importing import import_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = ["tables.md", "tables/engram.md", "tables/qwen_ple.md", "tables/longcat.md"]
MODELS = {"engram": (V41, 264), "qwen_ple": (QWEN, 160), "longcat": (LONGCAT, 512)}


@pytest.mark.parametrize("model", MODELS)
def test_row_counts_and_sizes_of_the_overview_are_those_of_the_keys(model):
    config, row_bytes = MODELS[model]
    keys = keys_from_config(config)
    line = next(line for line in (ROOT / "docs" / "tables.md").read_text().splitlines() if f"[{model}]" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (int(cells[2]), int(cells[3].replace(",", "")), int(cells[5])) == (
        len(keys.tables),
        keys.num_rows,
        keys.num_heads,
    )
    assert f"{row_bytes} B" in cells[4]
    page = (ROOT / "docs" / "tables" / f"{model}.md").read_text()
    assert f"{keys.num_rows * row_bytes / 1e9:.1f} GB" in page and "## Not verified" in page


def test_every_field_of_a_manifest_in_place_is_in_the_document(tmp_path):
    write_longcat(tmp_path / "checkpoint")
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "store", checksums=True)
    base = json.loads((tmp_path / "store" / "MANIFEST").read_bytes().partition(b"\n")[2])["base"]
    section = (ROOT / "docs" / "tables.md").read_text().partition("## What the manifest says")[2]
    for name in [*base["external"], *base["external"]["sources"][0]]:
        assert f"`{name}`" in section, name


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    text = (ROOT / "docs" / page).read_text()
    named = re.findall(r"\((tests/[\w/]+\.py)\)", text) + re.findall(r"\((tables/\w+\.md)\)", text)
    for name in named:
        assert (ROOT / name).is_file() or (ROOT / "docs" / name).is_file(), name
    assert named


def test_commands_of_the_pages_are_commands_with_these_options():
    from importlib import import_module

    for page in PAGES:
        for line in (ROOT / "docs" / page).read_text().splitlines():
            found = re.match(r"ngramstore (import|keys) ", line)
            if found:
                command = import_module(f"ngramstore.cli.{found[1]}").command
                known = {option for parameter in command.params for option in parameter.opts}
                assert set(re.findall(r" (--[\w-]+)", line.partition("#")[0])) <= known, line
