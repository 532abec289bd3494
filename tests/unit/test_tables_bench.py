"""The bench of tables compares answers before it times them, and leaves out what is not installed."""

from __future__ import annotations

import numpy as np
import pytest

import ngramstore as ngs
from bench.check import WrongAnswer
from bench.setup import Refused, Setup
from bench.workloads import tables, tables_checkpoint, tables_engramdb


def test_an_answer_that_differs_in_one_byte_is_seen():
    wanted = np.arange(320, dtype=np.uint8).reshape(2, 160) % 100
    for answer in (wanted.copy(), wanted.tobytes()):
        tables_engramdb._compare(answer, wanted, "fetch")
    wrong = wanted.copy()
    wrong[1, 159] ^= 1
    for answer in (wrong, wrong.tobytes()):
        with pytest.raises(AssertionError, match="differs"):
            tables_engramdb._compare(answer, wanted, "fetch")


@pytest.mark.parametrize(("width", "way"), [(160, "fetch"), (160, "tensor"), (264, "fetch")])
def test_every_subject_answers_with_the_source_s_rows(tmp_path, width, way):
    pytest.importorskip("engramdb")
    pytest.importorskip("torch")
    tables_engramdb._make(tmp_path, 500, width, Setup(root=tmp_path))
    source = np.fromfile(tmp_path / "raw" / "shard_000.bin", np.uint8).reshape(500, width)
    numbers = np.random.default_rng(1).integers(0, 500, 3 * tables_engramdb._WIDTHS[width])
    for subject in tables_engramdb.SUBJECTS:
        ask, close = tables_engramdb._opened(subject, tmp_path, width, way, 500)
        for _ in range(2):  # from the files, then from a cache where there is one
            tables_engramdb._compare(ask(numbers), source[numbers], way)
        close()


def test_without_engramdb_there_is_no_case_and_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_engramdb, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="pip install engramdb-python"):
        Setup(root=tmp_path).cases(tables_engramdb.offers())
    assert not list(tmp_path.iterdir())


def test_without_torch_only_what_needs_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_engramdb, "find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(tables_engramdb, "_make", lambda *args: None)
    setup = Setup(root=tmp_path)
    made = {case.name: set(case.subjects) for case in setup.cases(tables_engramdb.offers())}
    left = {"engramdb", "ngramstore", "ngramstore_uncached"}
    assert made == {"engramdb_fetch_160": left, "engramdb_fetch_264": left}
    assert "engramdb's modules left out: torch is not installed" in setup.warnings


def test_rows_that_are_not_the_checkpoint_s_are_noticed(tmp_path):
    """Read in place, a byte that changed would be what is compared with; the packed store has a copy of its own."""
    tables._make(tmp_path, 300, Setup(root=tmp_path))
    with ngs.open(tmp_path / "packed") as store:
        numbers = np.array([0, 7, len(store) // 2 + 400, len(store) - 1])
    for name in ("in_place", "checksums", "packed"):
        with ngs.open(tmp_path / name, trust_external=True) as store:
            assert tables_checkpoint.must_be_the_checkpoint_s(store, tmp_path / "checkpoint", numbers) == 4
    last = tmp_path / "checkpoint" / "model-14.safetensors"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1  # a scale of the last row
    last.write_bytes(data)
    with ngs.open(tmp_path / "packed") as store, pytest.raises(WrongAnswer, match=f"row {numbers[-1]} "):
        tables_checkpoint.must_be_the_checkpoint_s(store, tmp_path / "checkpoint", numbers)
