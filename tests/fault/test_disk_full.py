"""A full disk: every operation says so with a hint, what was there stays readable, and a retry works once there is room."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import assert_verifies, flip, published, rows_of, stamps_of, start_python

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import DiskFull
from ngramstore.store.repair.repair import repair

DIM = 256
OLD = {(i,): i for i in range(120)}
CHANGED = {(i,): 1000 + i for i in range(60, 200)}

LIMITED = """
import resource, sys
from pathlib import Path
import ngramstore as ngs
from helpers import contents, published, rows_of
from ngramstore.errors import DiskFull
from test_disk_full import CHANGED, DIM, OLD, build, is_full

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

path = Path(sys.argv[1])
limit(30_000)
for memory_bytes in (1 << 30, 1):
    is_full(lambda: build(path, memory_bytes))
    assert not path.exists()
limit(resource.RLIM_INFINITY)
build(path, 1 << 30)

store = ngs.open(path, mode="rw")
limit(30_000)
is_full(lambda: store.put(list(CHANGED), rows_of(list(CHANGED.values()), DIM)))
seen = dict(zip(OLD, store.get(list(OLD))[0][:, 0] // 8))
assert seen == OLD and len(store) == len(OLD)
limit(resource.RLIM_INFINITY)
store.put(list(CHANGED), rows_of(list(CHANGED.values()), DIM))
limit(60_000)
is_full(store.flush)
new = {**OLD, **CHANGED}
assert dict(zip(new, store.get(list(new))[0][:, 0] // 8)) == new
assert published(path) == OLD
limit(resource.RLIM_INFINITY)
store.flush()
assert published(path) == new
limit(60_000)
is_full(store.compact)
assert contents(store) == new and published(path) == new
assert not list(path.glob("base-000003*")), "what a failed compaction wrote is removed"
limit(resource.RLIM_INFINITY)
store.compact()
assert contents(store) == new and published(path) == new
limit(60_000)
is_full(lambda: store.backup(path.with_name("copy")))
limit(resource.RLIM_INFINITY)
store.backup(path.with_name("copy"))
store.close()
assert published(path) == published(path.with_name("copy")) == new
print("done")
"""


def build(path: Path, memory_bytes: int) -> None:
    with ngs.build(path, dim=DIM, max_n=2, codec="f32", compression="none", memory_bytes=memory_bytes) as builder:
        builder.add(list(OLD), rows_of(list(OLD.values()), DIM))


def is_full(act) -> None:
    """`act` raises DiskFull, which names the place and says what to do."""
    with pytest.raises(DiskFull) as caught:
        act()
    assert caught.value.hint
    assert "/" in caught.value.message


def test_a_compaction_asks_for_the_room_of_what_changed_too(tmp_path, monkeypatch):
    from ngramstore.store.changes import compaction

    build(tmp_path / "store", 1 << 30)
    asked: list[int] = []
    with ngs.open(tmp_path / "store", mode="rw") as store:
        store.put([(i,) for i in range(1000)], rows_of(range(1000), DIM))
        store.flush()
        monkeypatch.setattr(compaction, "require_space", lambda _, needed, __: asked.append(needed))
        store.compact()
        assert asked[-1] >= sum(store.stats()["file_bytes"].values())


def test_no_file_may_grow_and_nothing_is_lost(tmp_path):
    """A file-size limit fails writes in the middle, also those of RocksDB."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{LIMITED}"
    child = start_python(code, tmp_path / "store", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 0, said.decode()
    assert said.endswith(b"done\n")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 4 MiB, where we may mount one."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def leave_free(disk: Path, num_bytes: int) -> None:
    """Fill a disk up to so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - num_bytes))


def put_for_ever(store, stamps: list[int]) -> None:
    """Acknowledged stamps go to the list."""
    for stamp in range(1000):
        store.put(list(CHANGED), rows_of([stamp] * len(CHANGED), DIM))
        stamps.append(stamp)


def test_a_small_disk_fills_up_and_nothing_is_lost(small_disk):
    path, other = small_disk / "store", small_disk / "other"
    build(path, 1 << 30)
    for memory_bytes in (1 << 30, 1):
        leave_free(small_disk, 90_000)
        is_full(lambda memory_bytes=memory_bytes: build(other, memory_bytes))
        assert not other.exists()
    with ngs.open(path, mode="rw") as store:
        leave_free(small_disk, 1_000_000)
        stamps: list[int] = []
        is_full(lambda: put_for_ever(store, stamps))
        assert stamps
        assert published(path) == OLD
        seen = contents_without_flush(store)
        leave_free(small_disk, 50_000)
        is_full(lambda: put_for_ever(store, []))
        is_full(store.flush)
        assert contents_without_flush(store) == seen, "look-ups go on while the disk is full"
        leave_free(small_disk, 1_500_000)
        now = contents_without_flush(store)
        assert now in ({**OLD, **dict.fromkeys(CHANGED, stamp)} for stamp in (stamps[-1], stamps[-1] + 1))
        leave_free(small_disk, 50_000)
        is_full(store.flush)
        assert published(path) == OLD
        leave_free(small_disk, 1_500_000)
        assert contents_without_flush(store) == now
        store.flush()
        assert published(path) == now
        leave_free(small_disk, 50_000)
        is_full(store.compact)
        is_full(lambda: store.backup(other))
        assert published(path) == now
        (small_disk / "ballast").unlink()
        store.compact()
        store.backup(other)
        assert published(path) == published(other) == now
    assert_verifies(path)


PLANES = """
import sys
from pathlib import Path
import numpy as np
from ngramstore.errors import DiskFull
from ngramstore.store.layers import index_builder
from ngramstore.store.layers.index_plan import IndexPlan
index_builder._LARGE_BYTES = 0
try:
    builder = index_builder.IndexBuilder(IndexPlan(1 << 18, True, False), scratch=Path(sys.argv[1]))
    builder.add(np.arange(1 << 18, dtype=np.uint64) << np.uint64(46))
except DiskFull as error:
    print(error.message)
"""


def test_planes_of_an_index_that_find_no_room_are_an_error_and_no_signal(small_disk):
    leave_free(small_disk, 500_000)
    child = start_python(PLANES, small_disk, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 0, (child.returncode, said.decode())
    assert said.decode().startswith(f"no space left while writing {small_disk}")
    assert shutil.disk_usage(small_disk).free >= 499_000, "what was taken is given back"


def test_builds_compactions_and_repairs_ask_for_the_planes_of_the_index_too(tmp_path, monkeypatch):
    from ngramstore.store.building import packing
    from ngramstore.store.changes import compaction
    from ngramstore.store.layers import index_builder
    from ngramstore.store.layers.index_plan import IndexPlan
    from ngramstore.store.repair import rebuild

    asked: list[int] = []
    for module in (packing, compaction, rebuild):
        monkeypatch.setattr(module, "require_space", lambda _, needed, __: asked.append(needed))
    for large, in_planes in ((1 << 20, 0), (0, 7 * len(OLD))):
        monkeypatch.setattr(index_builder, "_LARGE_BYTES", large)
        path = tmp_path / str(large)
        build(path, 1 << 30)
        with ngs.open(path, mode="rw") as store:
            files = store.stats()["file_bytes"]
            store.put(list(CHANGED), rows_of(list(CHANGED.values()), DIM))
            store.compact()
        index_bytes = IndexPlan(len(OLD), True, False).file_bytes
        assert asked[0] >= len(OLD) * (DIM * 4 + 4 + 8) + index_bytes + in_planes
        assert asked[1] >= sum(files.values()) + in_planes
        flip(path / "base-000003.rows", 5000)
        repair(path, out=tmp_path / f"{large}-repaired")
        assert asked[2] >= len(OLD) * (DIM * 4 + 4 + 8) + index_bytes + in_planes
        asked.clear()


def test_a_repair_that_finds_the_disk_full_leaves_nothing_on_it(tmp_path, monkeypatch):
    build(tmp_path / "store", 1 << 30)
    rows = tmp_path / "store" / "base-000001.rows"
    rows.write_bytes(rows.read_bytes()[:-60] + bytes(60))
    nth, is_full_now = 0, True
    while is_full_now:
        path = tmp_path / str(nth)
        shutil.copytree(tmp_path / "store", path)
        seen: list[str] = []

        def observe(operation: str, file: Path, seen=seen, nth=nth) -> None:
            if operation == "write" and file.name.startswith("base-000002."):
                seen.append(file.name)
                if len(seen) == nth + 1:
                    raise OSError(errno.ENOSPC, "injected")

        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", observe)
            try:
                repair(path)
            except DiskFull:
                assert [file.name for file in path.glob("base-000002*")] == [], seen
        is_full_now = len(seen) > nth
        nth += 1
        assert len(repair(path).lost) == is_full_now
        assert published(path) == {key: OLD[key] for key in published(path)}
        assert len(published(path)) == len(OLD) - 1
    assert nth > 5


def contents_without_flush(store) -> dict:
    keys = [*OLD, *(key for key in CHANGED if key not in OLD)]
    rows, found = store.get(keys)
    there = [key for key, is_there in zip(keys, found, strict=True) if is_there]
    return dict(zip(there, stamps_of(rows[found]), strict=True))
