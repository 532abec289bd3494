"""Mining killed where it is hardest: while it deletes its work directory, and as the parent of workers, which must not
go on alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mining_cases import OPTIONS, die_at, mined_bytes, shard_of, two_shards

from ngramstore.mine import TokenShards, count_shard, merge_runs, mine_ngrams
from ngramstore.mine import count as count_module
from ngramstore.mine.runs import RunReader
from ngramstore.mine.work import STEP_NAME

LEFT_BY_A_KILL = (
    "count-02-00000.run.tmp",
    "count-02-00000.run.spill-00000",
    "count-03-00001.run.spill-0a1b-00000.tmp",
    "frequent-02.run.group-0a1b-00000",
)


@pytest.fixture
def corpus(tmp_path) -> TokenShards:
    return two_shards(tmp_path)


def test_a_run_killed_while_it_deletes_its_work_directory_is_run_again(corpus, tmp_path):
    whole = mined_bytes(corpus, tmp_path)
    mine_ngrams(corpus, work=tmp_path / "counted", keep_work=True, **OPTIONS)
    num_files = len(list((tmp_path / "counted").iterdir()))
    assert num_files > 5
    for options in ({}, {"restart": True}):
        for number in range(2 * num_files):
            shutil.copytree(tmp_path / "counted", tmp_path / "work")
            lived = die_at("unlink", corpus, tmp_path / "work", number, **options)
            assert mined_bytes(corpus, tmp_path) == whole
            assert not (tmp_path / "work").exists()
            if lived:
                break
        assert number >= num_files


def test_counts_without_a_step_are_not_taken_for_those_of_other_options(corpus, tmp_path):
    whole = mined_bytes(corpus, tmp_path, min_count=3)
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    (tmp_path / "work" / STEP_NAME).unlink()
    assert mined_bytes(corpus, tmp_path, min_count=3) == whole


def test_what_a_killed_run_was_writing_is_deleted_when_the_next_begins(corpus, tmp_path):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    whole = {file.name for file in (tmp_path / "work").iterdir()}
    for name in LEFT_BY_A_KILL:
        (tmp_path / "work" / name).write_bytes(b"half")
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    assert {file.name for file in (tmp_path / "work").iterdir()} == whole


def pairs_of(path: Path) -> list[list[int]]:
    return [pair for block in RunReader(path).blocks(1000) for pair in block.tolist()]


def test_a_shard_counted_by_two_at_once_is_counted_right(corpus, tmp_path, monkeypatch):
    """The other, of a run that is dead, spills and ends just before the first merges its own spills."""
    budget = 4 << 10
    count_shard(corpus.shards[0], None, tmp_path / "alone", memory_bytes=budget)
    others = [corpus.shards[1]]

    def merge(paths, out_path, *arguments, **options):
        assert len(paths) > 1
        if others:
            count_shard(others.pop(), None, out_path, memory_bytes=budget)
        return merge_runs(paths, out_path, *arguments, **options)

    monkeypatch.setattr(count_module, "merge_runs", merge)
    count_shard(corpus.shards[0], None, tmp_path / "run", memory_bytes=budget)
    assert pairs_of(tmp_path / "run") == pairs_of(tmp_path / "alone")
    assert {file.name for file in tmp_path.iterdir() if not file.suffix} == {"alone", "run"}


def test_runs_merged_in_groups_by_two_at_once_are_merged_right(corpus, tmp_path, monkeypatch):
    paths = []
    for i in range(5):
        paths.append(tmp_path / str(i))
        count_shard(shard_of(tmp_path / "s.bin", 2000, i), None, paths[-1], memory_bytes=1 << 20)
    merge_runs(paths, tmp_path / "alone", memory_bytes=1)
    real, calls = count_module.merge_runs.__globals__["RunReader"], []

    def reader(path):
        calls.append(path)
        if "group" in path.name and sum("group" in call.name for call in calls) == 1:
            merge_runs(paths[2:], tmp_path / "run", memory_bytes=1)
        return real(path)

    monkeypatch.setattr("ngramstore.mine.merge.RunReader", reader)
    merge_runs(paths, tmp_path / "run", memory_bytes=1)
    assert pairs_of(tmp_path / "run") == pairs_of(tmp_path / "alone")


PARENT = """
import sys
from pathlib import Path
from ngramstore.mine import Shard, TokenShards, mine_ngrams
import numpy as np
folder, num = Path(sys.argv[1]), int(sys.argv[2])
starts = np.arange(0, num + 1, 100, dtype=np.uint64)
shards = [Shard(folder / f"{i}.bin", "<u2", num, num // 100, starts_array=starts) for i in range(2)]
mine_ngrams(TokenShards(shards, "orphans"), work=folder / "work", max_n=3, memory_bytes=1 << 14, workers=2)
"""


def test_workers_of_a_killed_parent_end(tmp_path):
    """They hold its standard output, which ends with the last of them."""
    num = 3_000_000  # so much memory as above makes thousands of spills of it
    for i in range(2):
        shard_of(tmp_path / f"{i}.bin", num, i)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(num)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        until = time.monotonic() + 120
        while not all(list(tmp_path.glob(f"work/count-02-{i:05d}.run.spill-*")) for i in range(2)):
            assert parent.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.kill()
        parent.communicate(timeout=10)
        before = set((tmp_path / "work").iterdir())
        time.sleep(0.5)
        assert set((tmp_path / "work").iterdir()) == before
    finally:
        try:
            os.killpg(parent.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        parent.wait()
