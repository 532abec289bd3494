"""The bench of ways to write, at toy size: every way is there, what it wrote is compared, and the page tells it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bench import page, writing
from ngramstore import file_writer
from ngramstore.file_writer import aligned_bytes


def test_every_way_is_measured_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(file_writer, "WAYS", (file_writer.direct, file_writer.cached))  # what any filesystem here takes
    path = tmp_path / "writing.json"
    done = CliRunner().invoke(
        writing.main,
        ["--dir", str(tmp_path), "--rounds", "2", "--mib", "8", "--json", str(path)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert set(result["ways"]) == {"direct", "cached"} and result["ways"]["direct"]["over_direct"] == 1
    assert len(result["ways"]["cached"]["seconds"]["values"]) == 2
    text = page._section("writing", result)
    assert "a file of 8 MiB" in text and "cached" in text and "python -m bench.writing" in text
    assert [file.name for file in tmp_path.iterdir()] == ["writing.json"]


def test_what_was_not_written_is_noticed(tmp_path):
    piece = aligned_bytes(4096)
    (tmp_path / "F").write_bytes(bytes(4096 * 2))
    writing.check(tmp_path / "F", piece, 2)
    for count in (1, 3):
        with pytest.raises(RuntimeError, match="does not hold"):
            writing.check(tmp_path / "F", piece, count)
    piece[7] = 1
    with pytest.raises(RuntimeError, match="does not hold"):
        writing.check(tmp_path / "F", piece, 2)
