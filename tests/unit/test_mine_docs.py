"""docs/mining.md prints the tables that the code uses, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ngramstore.mine import Vocabulary
from ngramstore.mine.runs import RUN_HEADER
from ngramstore.mine.vocab_file import VOCAB_HEADER

DOCUMENT = (Path(__file__).parents[2] / "docs" / "mining.md").read_text("utf-8")


@pytest.mark.parametrize("layout", [VOCAB_HEADER, RUN_HEADER])
def test_the_document_prints_the_table_the_code_uses(layout):
    assert layout.markdown() in DOCUMENT
    assert layout.struct.format[0] == "<"


def test_the_python_in_the_document_runs(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a rose is a rose is a rose. " * 400)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert len(Vocabulary.load("vocab.ngv")) == len(names["vocabulary"]) > 0
    assert names["lengths"].max() == 5
