"""A mining run that is killed at any file it publishes goes on and ends with the same bytes; memory stays in its budget."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mining_cases import OPTIONS, die_at, mined_bytes, shard_of, two_shards

from ngramstore.errors import DamagedStore, DiskFull, NgramStoreError, UsageError, WriterLocked
from ngramstore.mine import Shard, TokenShards, merge_runs, mine_ngrams
from ngramstore.mine.work import LOCK_NAME, STEP_NAME, WorkDirectory
from ngramstore.writer_lock import WriterLock


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing that it gave to the system; fsync is for power cuts."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def corpus(tmp_path) -> TokenShards:
    return two_shards(tmp_path)


def test_a_run_killed_at_any_rename_goes_on_to_the_same_bytes(corpus, tmp_path):
    whole = mined_bytes(corpus, tmp_path)
    for number in range(1000):
        lived = die_at("replace", corpus, tmp_path / "work", number, keep_work=True)
        assert mined_bytes(corpus, tmp_path) == whole
        assert not (tmp_path / "work").exists()
        if lived:
            break
    assert number > 12


def test_a_killed_run_goes_on_with_more_memory_or_less(corpus, tmp_path):
    """With much memory nothing is kept but the frequent n-grams, and those are counted anew."""
    whole = mined_bytes(corpus, tmp_path)
    for number in range(12):
        for before, after in ((1 << 24, 1 << 24), (1 << 24, 1 << 14), (1 << 14, 1 << 24)):
            die_at("replace", corpus, tmp_path / "work", number, memory_bytes=before, keep_work=True)
            assert mined_bytes(corpus, tmp_path, memory_bytes=after) == whole


def test_a_run_killed_again_and_again_makes_progress(corpus, tmp_path):
    whole = mined_bytes(corpus, tmp_path)
    deaths = 0
    while not die_at("replace", corpus, tmp_path / "work", 30, keep_work=True):
        deaths += 1
        assert deaths < 50
    assert deaths > 0
    assert mined_bytes(corpus, tmp_path) == whole


def test_finished_counts_are_not_counted_again(corpus, tmp_path, monkeypatch):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    monkeypatch.setattr("ngramstore.mine.miner.count_shard", None)
    assert len(mined_bytes(corpus, tmp_path)) > 1000


@pytest.mark.parametrize("change", [{"min_count": 3}, {"held_out": 0.2}])
def test_other_options_are_refused_until_restart(corpus, tmp_path, change):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    with pytest.raises(UsageError, match=next(iter(change))):
        mined_bytes(corpus, tmp_path, **change)
    assert len(mined_bytes(corpus, tmp_path, restart=True, **change)) > 1000


def test_another_corpus_is_refused(corpus, tmp_path):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    with pytest.raises(UsageError, match="begun with corpus"):
        mined_bytes(TokenShards(corpus.shards, "another"), tmp_path)


def cut_at(path: Path, cut: int) -> TokenShards:
    """One text of 5,000 tokens, in two shards of one file."""
    whole = shard_of(path, 5000, 0)
    shards = [
        replace(
            whole,
            header_bytes=2 * begin,
            num_tokens=end - begin,
            num_documents=(end - begin) // 100,
            starts_array=np.arange(0, end - begin + 1, 100, dtype=np.uint64),
        )
        for begin, end in ((0, cut), (cut, 5000))
    ]
    return TokenShards(shards, "one text")


@pytest.mark.parametrize("number", [1, 4, 7, 10])
def test_shards_that_end_elsewhere_are_refused_until_restart(tmp_path, number):
    """Kept counts are of a shard: those of documents that moved to the next one would be there twice, or not at all."""
    before, after = (cut_at(tmp_path / "tokens.bin", cut) for cut in (2000, 3000))
    whole = mined_bytes(after, tmp_path)
    assert mined_bytes(before, tmp_path) == whole
    assert not die_at("replace", before, tmp_path / "work", number, keep_work=True)
    with pytest.raises(UsageError, match=r"begun with shard_tokens = \[2000, 3000\], now it is \[3000, 2000\]"):
        mined_bytes(after, tmp_path)
    assert mined_bytes(after, tmp_path, restart=True) == whole


def test_two_processes_cannot_mine_in_one_directory(corpus, tmp_path):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    lock = WriterLock(tmp_path / "work" / LOCK_NAME)
    for restart in (False, True):
        with pytest.raises(WriterLocked, match="work"):
            mined_bytes(corpus, tmp_path, restart=restart)
    lock.release()
    assert len(mined_bytes(corpus, tmp_path)) > 1000


def kill_this_process(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_said_to_be_dead_and_the_run_goes_on(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ngramstore.mine.miner.count_shard", kill_this_process)
        with pytest.raises(NgramStoreError, match=r"worker process died(.|\n)*__main__"):
            mined_bytes(corpus, tmp_path, workers=2)
    assert len(mined_bytes(corpus, tmp_path)) > 1000


def test_a_worker_killed_while_idle_is_said_to_be_dead_and_the_run_goes_on(corpus, tmp_path, monkeypatch):
    def merge_without_workers(*arguments, **options):
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
        time.sleep(0.5)  # the pool notices in a thread of its own
        merge_runs(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ngramstore.mine.miner.merge_runs", merge_without_workers)
        with pytest.raises(NgramStoreError, match="worker process died"):
            mined_bytes(corpus, tmp_path, workers=2)
    assert len(mined_bytes(corpus, tmp_path)) > 1000


def test_a_full_disk_is_said_to_be_full(corpus, tmp_path):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        try:
            mine_ngrams(corpus, work=tmp_path / "work", **OPTIONS)
        except DiskFull:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(mined_bytes(corpus, tmp_path)) > 1000


def test_a_folder_of_somebody_else_is_never_deleted(corpus, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex is not a file of mining"):
        mined_bytes(corpus, tmp_path, restart=True)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_a_step_of_somebody_else_does_not_make_a_folder_ours(corpus, tmp_path, what, restart):
    work = tmp_path / "work"
    work.mkdir()
    (work / "zylinder.txt").write_text("years of work")
    if what == "file":
        (work / STEP_NAME).write_text("ISO-10303-21;")
    elif what == "folder":
        (work / STEP_NAME).mkdir()
        (work / "zylinder.txt").rename(work / STEP_NAME / "zylinder.txt")
    else:
        (work / STEP_NAME).symlink_to(work / "zylinder.txt")
    with pytest.raises(UsageError, match="is not a file of mining"):
        mined_bytes(corpus, tmp_path, restart=restart)
    assert next(work.rglob("zylinder.txt")).read_text() == "years of work"


def test_every_changed_byte_of_the_step_file_is_noticed(tmp_path):
    WorkDirectory(tmp_path / "work", {"min_count": 5}, restart=False).close()
    step = tmp_path / "work" / STEP_NAME
    good = step.read_bytes()
    for at in range(len(good)):
        step.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        try:
            WorkDirectory(tmp_path / "work", {"min_count": 5}, restart=False).close()
        except DamagedStore:
            continue
        assert json.loads(step.read_bytes()) == json.loads(good)  # white space


def test_a_damaged_run_is_noticed(corpus, tmp_path):
    mine_ngrams(corpus, work=tmp_path / "work", keep_work=True, **OPTIONS)
    path = tmp_path / "work" / "frequent-03.run"
    good = path.read_bytes()
    for at in (0, 9, 13, 20, 30, 33, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DamagedStore, match=r"frequent-03\.run"):
            mined_bytes(corpus, tmp_path)
    path.write_bytes(good[:-1])
    with pytest.raises(DamagedStore, match=r"frequent-03\.run"):
        mined_bytes(corpus, tmp_path)


MEASURE = """
import resource, sys
import numpy as np
from pathlib import Path
from ngramstore.mine import Shard, TokenShards, mine_ngrams
folder, num, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def mine(num, name):
    shards = []
    for i in range(2):
        path = folder / f"{name}-{i}.bin"
        with open(path, "wb") as file:
            for begin in range(0, num, 1 << 16):
                n = min(1 << 16, num - begin)
                file.write(np.random.default_rng(begin + i).integers(0, 50_000, n).astype("<u4").tobytes())
        shards.append(Shard(path, "<u4", num, 1, starts_array=np.array([0, num], np.uint64)))
    mine_ngrams(TokenShards(shards, name), work=folder / name, size=1000, min_count=1, max_n=3, memory_bytes=budget)
mine(20_000, "warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mine(num, "large")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("budget", [24 << 20, 10 << 20], ids=["in memory, some ranges", "length by length"])
def test_memory_stays_in_its_budget(tmp_path, budget):
    """6 M distinct n-grams a length would take 200 MB in one table, their tokens take 12."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "3000000", str(budget)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 1.25 * budget


def test_a_vocabulary_that_cannot_be_saved_loses_no_count(corpus, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "fresh").mkdir()
    with pytest.raises(UsageError, match="taken: Is a directory"):
        mine_ngrams(corpus, work=tmp_path / "work", save_to=tmp_path / "taken", **OPTIONS)
    monkeypatch.setattr("ngramstore.mine.miner.count_shard", None)  # nothing is counted again
    mine_ngrams(corpus, work=tmp_path / "work", save_to=tmp_path / "v", **OPTIONS)
    assert not (tmp_path / "work").exists()
    monkeypatch.undo()
    assert (tmp_path / "v").read_bytes() == mined_bytes(corpus, tmp_path / "fresh")


def test_more_shards_than_files_may_be_open(tmp_path):
    shards = []
    for i in range(300):
        (tmp_path / f"{i}.bin").write_bytes(np.array([1, 2, 3, i], "<u2").tobytes())
        shards.append(Shard(tmp_path / f"{i}.bin", "<u2", 4, 1, starts_array=np.array([0, 4], np.uint64)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))  # what macOS allows
    try:
        found = mine_ngrams(TokenShards(shards, "many"), work=tmp_path / "work", max_n=3, min_count=300)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    tokens_MK, lengths_M = found.ngrams
    ngrams = [tuple(line[:n].tolist()) for line, n in zip(tokens_MK, lengths_M, strict=True)]
    assert ngrams == [(1, 2), (2, 3), (1, 2, 3)]


def test_ctrl_c_while_a_lock_is_let_go_closes_its_file_once(tmp_path, monkeypatch):
    """Python may raise right after os.close: by then the number must be forgotten, or it is closed when another has it."""
    lock, real = WriterLock(tmp_path / "LOCK"), os.close

    def interrupted(fd):
        real(fd)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lock.release()
    monkeypatch.undo()
    with open(tmp_path / "other", "wb") as other:
        lock.release()
        os.fstat(other.fileno())
