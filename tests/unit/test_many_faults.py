"""What `verify` and `repair` say of many damaged rows: neighbours share a line, so a large loss takes no memory by the row."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_longcat
from click.testing import CliRunner
from helpers import build_ngrams, flip, rows_of
from store_cases import build_rows

import ngramstore as ngs
from ngramstore.cli.repair import command as repair_command
from ngramstore.hashing import row_ids
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.repair import check, worn
from ngramstore.store.repair.check import verify
from ngramstore.store.repair.repair import repair

COUNT = 20_000
ROW_BYTES = 4 * 4 + 4
PLAIN, ZSTD = {"dim": 4, "compression": "none"}, {"dim": 64, "compression": "zstd"}


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def whole_rows(rows: Path) -> int:
    """How many rows a file of plain ones holds to their ends."""
    return (rows.stat().st_size - 4096) // ROW_BYTES


def damage(rows: Path, *numbers: int) -> None:
    for number in numbers:
        flip(rows, 4096 + ROW_BYTES * number + 2)


@pytest.fixture
def some_chunks(monkeypatch):
    monkeypatch.setattr(worn, "_CHUNK_BYTES", 1 << 16)


@pytest.fixture
def a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(worn, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(check, "_CHUNK_BYTES", 1)


@pytest.mark.usefixtures("some_chunks")
@pytest.mark.parametrize("options", [PLAIN, {**PLAIN, "tokens": False}, ZSTD], ids=str)
def test_ngrams_whose_rows_are_cut_off_are_few_lines_and_counted(quick_path, options):
    path, out = quick_path / "store", quick_path / "out"
    build_ngrams(path, {(i, i + 1): i for i in range(COUNT)}, **options)
    cut_in_half(path / "base-000001.rows")
    faults = verify(path)
    assert len(faults) < 100
    report = repair(path, dry_run=True)
    assert len(report.lost) < 100
    kept = COUNT - report.num_lost
    assert 0 < kept == report.num_rows < COUNT
    assert f"rows {kept} to {COUNT - 1} are cut off" in [fault.what for fault in faults]
    (line,) = report.lost
    assert line.startswith("IDs 0x" if "tokens" in options else "n-grams (")
    assert line.endswith(f" and {report.num_lost - 8} more (rows {kept} to {COUNT - 1} of the base)")
    if options["compression"] == "none":
        assert kept == whole_rows(path / "base-000001.rows")
        assert 4096 + ROW_BYTES * kept in [fault.offset for fault in faults]
    real = repair(path, out)
    assert (real.lost, real.num_lost) == (report.lost, report.num_lost)
    assert verify(out) == []
    with ngs.open(out) as store:
        assert len(store) == kept


@pytest.mark.usefixtures("some_chunks")
def test_ngrams_whose_rows_file_is_missing_are_few_lines_and_counted(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(i, i + 1): i for i in range(COUNT)}, **PLAIN)
    (path / "base-000001.rows").unlink()
    faults = verify(path)
    assert len(faults) < 100
    assert {fault.what for fault in faults} >= {"the file is missing", f"rows 0 to {COUNT - 1} are cut off"}
    report = repair(path, dry_run=True)
    assert len(report.lost) < 100
    assert (report.num_lost, report.num_rows) == (COUNT, 0)


@pytest.mark.usefixtures("some_chunks")
@pytest.mark.parametrize("options", [PLAIN, ZSTD], ids=str)
def test_numbered_rows_that_are_cut_off_are_few_lines_and_counted(quick_path, options):
    path, out = quick_path / "store", quick_path / "out"
    build_rows(path, rows_of(range(COUNT), options["dim"]), compression=options["compression"])
    cut_in_half(path / "base-000001.rows")
    told = [fault.what for fault in verify(path)]
    assert len(told) < 100
    report = repair(path, dry_run=True)
    assert len(report.lost) < 100
    kept = COUNT - report.num_lost
    assert report.lost == [f"rows {kept} to {COUNT - 1}: now zeros"]
    assert report.num_rows == COUNT
    if options == PLAIN:
        assert kept == whole_rows(path / "base-000001.rows")
        assert told[-2:] == [
            f"rows {kept + 1} to {COUNT - 1} are in none of the layer's files",
            f"row {kept} is cut off",
        ]
    else:
        assert f"rows {kept} to {COUNT - 1} are cut off" in told
    assert repair(path, out).lost == report.lost
    with ngs.open(out) as store:
        is_zero = ~store.rows(np.arange(COUNT)).any(axis=1)
    assert np.flatnonzero(is_zero).tolist() == list(range(kept, COUNT))


@pytest.mark.usefixtures("a_block_at_a_time")
@pytest.mark.parametrize("first", [70, 63], ids=["in one chunk", "in two chunks"])
def test_damaged_ngrams_side_by_side_share_a_line_and_one_apart_has_its_own(quick_path, first):
    path = quick_path / "store"
    build_ngrams(path, {(i, i + 1): i for i in range(300)}, **PLAIN)
    with ngs.open(path) as store:
        ngrams = [ngram for ngram, _ in store.items()]
        ids = store._view.base.seeds(0, 300).tolist()
    damage(path / "base-000001.rows", first, first + 1, 90)
    assert [(fault.offset, fault.what) for fault in verify(path)] == [
        (4096 + ROW_BYTES * first, f"rows {first} to {first + 1} fail their checksums"),
        (4096 + ROW_BYTES * 90, f"row 90 (ID 0x{ids[90]:016x}) fails its checksum"),
    ]
    report = repair(path, dry_run=True)
    assert report.lost == [
        f"n-grams {ngrams[first]}, {ngrams[first + 1]} (rows {first} to {first + 1} of the base)",
        f"n-gram {ngrams[90]} (row 90 of the base)",
    ]
    assert report.num_lost == 3


@pytest.mark.usefixtures("a_block_at_a_time")
@pytest.mark.parametrize("first", [70, 63], ids=["in one chunk", "in two chunks"])
def test_damaged_numbered_rows_side_by_side_share_a_line_and_one_apart_has_its_own(quick_path, first):
    path = build_rows(quick_path / "store", rows_of(range(300), 4))
    damage(path / "base-000001.rows", first, first + 1, 90)
    assert [(fault.offset, fault.what) for fault in verify(path)] == [
        (4096 + ROW_BYTES * first, f"rows {first} to {first + 1} fail their checksums"),
        (4096 + ROW_BYTES * 90, "row 90 fails its checksum"),
    ]
    report = repair(path, dry_run=True)
    assert report.lost == [f"rows {first} to {first + 1}: now zeros", "row 90: now zeros"]
    assert report.num_lost == 3


def test_changed_rows_side_by_side_share_a_line(quick_path):
    path = build_rows(quick_path / "store", rows_of(range(300), 4))
    with ngs.open(path, mode="rw") as store:
        store.put([3, 40, 200], rows_of([1003, 1040, 1200], 4))
    damage(path / "overlay-000002.rows", 0, 1, 2)
    ids = sorted(row_ids(np.array([3, 40, 200], np.uint64)).tolist())
    report = repair(path, dry_run=True)
    assert report.lost == [f"changed rows (IDs {', '.join(f'0x{identity:016x}' for identity in ids)}): now zeros"]
    assert report.num_lost == 3


@pytest.mark.usefixtures("a_block_at_a_time")
def test_a_line_names_eight_ngrams_and_counts_the_others(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(i, i + 1): i for i in range(300)}, **PLAIN)
    with ngs.open(path) as store:
        ngrams = [ngram for ngram, _ in store.items()]
    damage(path / "base-000001.rows", *range(60, 70))  # 4 of one chunk, 6 of the next
    report = repair(path, dry_run=True)
    names = ", ".join(map(str, ngrams[60:68]))
    assert report.lost == [f"n-grams {names} and 2 more (rows 60 to 69 of the base)"]
    assert report.num_lost == 10


@pytest.mark.usefixtures("a_block_at_a_time")
def test_rows_in_place_side_by_side_share_a_line_and_one_apart_has_its_own(quick_path):
    write_longcat(quick_path / "checkpoint")
    path = quick_path / "store"
    import_checkpoint(quick_path / "checkpoint", path, checksums=True)
    (sums,) = path.glob("*.sums")
    for row in (63, 64, 90):
        flip(sums, 4096 + 4 * row)
    assert [fault.what for fault in verify(path) if "read in place" in fault.what] == [
        "rows 63 to 64, read in place, fail their checksums",
        "row 90, read in place, fails its checksum",
    ]


def test_the_command_counts_lost_rows_and_not_lines(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(i, i + 1): i for i in range(300)}, **PLAIN)
    damage(path / "base-000001.rows", 70, 71, 90)
    told = CliRunner().invoke(repair_command, [str(path), "--dry-run", "--quiet", "--json"])
    result = json.loads(told.stdout)
    assert (told.exit_code, result["lost_rows"], len(result["lost"]), result["rows"]) == (1, 3, 2, 297)
    told = CliRunner().invoke(repair_command, [str(path), "--dry-run", "--quiet"])
    assert "297 rows would be kept, 3 rows lost (2 lines)" in told.stderr
