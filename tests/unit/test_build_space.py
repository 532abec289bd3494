"""A build that the disk cannot hold is refused at its start, where the number of rows is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ngramstore as ngs
from ngramstore.cli.main import cli
from ngramstore.store.building.build import Builder
from ngramstore.store.building.packing import Packing

NUM_ROWS, DIM = 20_000, 64
TABLE_BYTES = NUM_ROWS * (4 * DIM + 4)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Run the command where the disk has so many bytes free, whatever is written."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(1).standard_normal((NUM_ROWS, DIM)).astype(np.float32))
    usage = shutil.disk_usage(tmp_path)

    def run(free: int, memory: str, *more: str):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        words = ["build", str(tmp_path / "store"), "--rows", str(tmp_path / "rows.npy"), "--codec", "f32", "--quiet"]
        return CliRunner().invoke(cli, [*words, "--memory", memory, *more])

    run.store = tmp_path / "store"
    return run


@pytest.mark.parametrize(("free", "memory"), [(TABLE_BYTES - 1, "64MiB"), (2 * TABLE_BYTES, "1MiB")])
def test_no_row_is_read_where_the_table_does_not_fit(build, monkeypatch, free, memory):
    monkeypatch.delattr(Builder, "add_rows")
    result = build(free, memory)
    assert result.exit_code == 2 and "error: the build needs about" in result.stderr
    assert not build.store.exists()


@pytest.mark.parametrize(("free", "memory"), [(TABLE_BYTES + 10_000, "64MiB"), (2 * TABLE_BYTES + 500_000, "1MiB")])
def test_a_build_that_fits_is_made(build, free, memory):
    assert build(free, memory).exit_code == 0
    with ngs.open(build.store) as store:
        assert len(store) == NUM_ROWS


def test_ngrams_that_may_be_the_same_are_not_counted_twice(build, tmp_path):
    np.save(tmp_path / "ngrams.npy", np.zeros((NUM_ROWS, 2), np.uint32))
    options = ("--vocab", str(tmp_path / "ngrams.npy"), "--duplicates", "last")
    assert build(1_000_000, "64MiB", *options).exit_code == 0


@pytest.mark.parametrize("more", [-1, 0, 1, 5000])
def test_runs_take_what_was_foretold(tmp_path, monkeypatch, more):
    taken = []
    publish = Packing.publish

    def measured(packing: Packing) -> None:
        taken.append(sum(path.stat().st_size for path in Path(packing.path / "runs").iterdir()))
        publish(packing)

    monkeypatch.setattr(Packing, "publish", measured)
    with ngs.build(tmp_path / "store", dim=DIM, max_n=3, codec="int8", memory_bytes=1 << 20) as builder:
        count = builder._sorter._capacity + more
        foretold = builder._sorter.spilled_bytes(count)
        tokens = np.arange(3 * count, dtype=np.uint32).reshape(count, 3)
        builder.add(tokens, np.ones((count, DIM), np.float32))
    assert taken == [foretold] and (foretold > 0) == (more >= 0)
