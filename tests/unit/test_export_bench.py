"""The export bench at toy size: every part of the time is there, and the page tells it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from bench import export, page


def test_an_export_is_taken_apart_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CASES", export.CASES[:2])
    path = tmp_path / "export.json"
    done = CliRunner().invoke(
        export.main, ["--rounds", "2", "--scale", "0.002", "--json", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert [shape["codec"] for shape in result["shapes"]] == ["int8", "int4"]
    for shape in result["shapes"]:
        assert shape["rows"] == 200
        parts = {name: part["wall_s"] for name, part in shape["parts"].items()}
        assert list(parts) == ["model", "quantize", "spool", "sort", "pack"]
        assert min(parts.values()) > 0 and shape["store_over_model_wall"] > 0
    text = page._section("export", result)
    assert "200 rows of 192, A_f of 1 layers, int4: CPU s model" in text and "python -m bench.export" in text


def test_its_ngrams_are_distinct():
    words = export.vocabulary(500)
    tokens, lengths = words.ngrams
    assert len({tuple(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)}) == len(words) == 500
