"""The pages on shipped tables say what the code does: row counts, manifest fields, the hash of the example."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_longcat
from test_keys import LONGCAT, QWEN, V41

import ngramstore
from ngramstore.keys import keys_from_config
from ngramstore.store.imports.importing import import_checkpoint

ROOT = Path(__file__).parents[2]
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


def test_the_hash_of_the_page_names_the_rows_of_its_formula_in_one_piece_and_token_by_token(tmp_path):
    torch = pytest.importorskip("torch")
    from ngramstore_torch import RowTableEmbedding

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tables.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "\nclass " in block)
    found: dict = {}
    exec(compile(block, "docs/tables.md", "exec"), found)
    hasher = found["PairsAndTriples"]()
    rows = np.random.default_rng(0).standard_normal((hasher.num_rows, 4)).astype(np.float32)
    with ngramstore.build(tmp_path / "store", dim=4, addressing="row", codec="f32") as build:
        build.add_rows(rows)
    line = [3, 14, 15, 9, 128_000, 3]
    want = np.zeros((1, len(line), 2, 4), np.float32)
    for t in range(1, len(line)):
        want[0, t, 0] = rows[(line[t - 1] * 31 + line[t]) % 5003]
    for t in range(2, len(line)):
        want[0, t, 1] = rows[(line[t - 2] * 961 + line[t - 1] * 31 + line[t]) % 5009 + 5003]
    with ngramstore.open(tmp_path / "store") as store:
        embed = RowTableEmbedding(store, hasher, combine="none")
        assert np.array_equal(embed(torch.tensor([line])).numpy(), want)
        history = embed.new_history(1)
        steps = [embed(torch.tensor([[token]]), history=history) for token in line]
        assert np.array_equal(torch.cat(steps, 1).numpy(), want)
