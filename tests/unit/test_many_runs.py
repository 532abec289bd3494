"""A build may spill more runs than a process may have open files; its ID ranges keep their size, whatever the IDs are."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest
from store_cases import build, files_of, some_ngrams, some_rows

from ngramstore.errors import DamagedStore
from ngramstore.store.building import ranges as ranges_module
from ngramstore.store.building import runs
from ngramstore.store.building.build import Builder
from ngramstore.store.building.ranges import id_ranges

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
AIM, MOST = 500, 562


@pytest.fixture
def few_open_files() -> Iterator[None]:
    """What macOS allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_open_files")
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"duplicates": "last"}], ids=str)
def test_more_runs_than_files_may_be_open_give_the_same_bytes(tmp_path, options):
    ngrams, rows = some_ngrams(8000), some_rows(8000)
    rows[:, 2:] = 1  # so that frames are smaller than rows
    if "duplicates" in options:
        ngrams[7500:] = ngrams[:500]
    wanted = files_of(build(tmp_path / "memory", ngrams, rows, **options))
    spilled = tmp_path / "spilled"
    chosen = {"compression": "none", **options}
    with Builder(spilled, dim=6, max_n=3, codec="f32", memory_bytes=1, threads=1, **chosen) as builder:
        for at in range(0, 8000, 1000):
            builder.add(ngrams[at : at + 1000], rows[at : at + 1000])
        assert len(list((spilled / "runs").glob("*.ids"))) == 125  # of 64 rows
    assert files_of(spilled) == wanted


def test_id_ranges_are_found_once_for_all_passes(tmp_path, monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return id_ranges(*arguments, **options)

    monkeypatch.setattr(runs, "id_ranges", counted)
    build(tmp_path / "store", some_ngrams(700), some_rows(700), memory_bytes=1, compression="zstd")
    assert len(calls) == 1


def test_a_run_that_was_cut_short_is_named(tmp_path):
    builder = Builder(tmp_path / "store", dim=6, max_n=3, codec="f32", compression="none", memory_bytes=1)
    builder.add(some_ngrams(200), some_rows(200))
    os.truncate(tmp_path / "store" / "runs" / "run-00001.rows", 64 * 24 - 1)
    with pytest.raises(DamagedStore, match=r"run-00001\.rows ends 1 bytes too early"):
        builder.finish()
    builder.abort()


def hashed(num: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).integers(0, 1 << 64, num, np.uint64))


def some_runs(kind: str) -> list[np.ndarray]:
    """Runs of 1000 ascending IDs each."""
    rng = np.random.default_rng(0)
    if kind == "hashed, the last run short":
        return [*(hashed(1000, seed) for seed in range(60)), hashed(10, 60)]
    if kind == "interleaved":  # samples of all runs lie side by side
        return [np.arange(i, 200_000, 200, dtype=np.uint64) for i in range(200)]
    if kind == "one behind the other":
        return [np.arange(1000 * i, 1000 * (i + 1), dtype=np.uint64) for i in range(200)]
    if kind == "crowded":
        return [np.sort(np.append(hashed(10, i), rng.integers(7, 5000, 990, np.uint64))) for i in range(99)]
    if kind == "one in half of the rows":
        return [np.sort(np.append(hashed(500, i), np.full(500, 1 << 40, np.uint64))) for i in range(50)]
    few = {"few": [3, 4, 1 << 50, 1 << 63], "ends": [0, 2**64 - 1], "one": [7], "largest": [2**64 - 1]}[kind]
    return [np.sort(rng.choice(np.array(few, np.uint64), 1000)) for _ in range(20)]


REGULAR = ["hashed, the last run short", "interleaved", "one behind the other"]


@pytest.mark.parametrize("kind", [*REGULAR, "crowded", "one in half of the rows", "few", "ends", "one", "largest"])
def test_no_id_range_has_more_rows_than_asked_for_unless_one_id_has(kind):
    columns = some_runs(kind)
    total = sum(map(len, columns))
    num_rows_R = np.array([len(column) for column in columns], np.int64)
    found = id_ranges(num_rows_R, columns.__getitem__, aim_rows=AIM, most_rows=MOST)
    in_order = []
    for part in found:
        places = zip(columns, part.firsts_R.tolist(), part.lasts_R.tolist(), strict=True)
        ids = np.sort(np.concatenate([column[first:last] for column, first, last in places]))
        assert len(ids) == part.num_rows > 0
        assert len(ids) <= MOST or ids[0] == ids[-1]
        assert part.low <= int(ids[0]) <= int(ids[-1]) < part.high
        in_order.append(ids)
    np.testing.assert_array_equal(np.concatenate(in_order), np.sort(np.concatenate(columns)))
    if kind in REGULAR:
        assert len(found) <= 2 * total // AIM


def test_a_sample_does_not_grow_with_runs_times_ranges(monkeypatch):
    num_runs, num_rows, aim_rows = 400, 2000, 1000
    sampled, real = [], ranges_module._samples

    def counted(*arguments):
        samples = real(*arguments)
        sampled.append(sum(map(len, samples)))
        return samples

    monkeypatch.setattr(ranges_module, "_samples", counted)
    columns = [hashed(num_rows, seed) for seed in range(num_runs)]
    found = id_ranges(np.full(num_runs, num_rows), columns.__getitem__, aim_rows=aim_rows, most_rows=1125)
    assert len(found) >= 800
    assert max(sampled) <= 2 * (64 * num_runs + 192 * 800)  # of 800,000 IDs
