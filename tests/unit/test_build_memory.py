"""What a build holds: rows that cannot change are not copied, others are copied once, and the budget is kept."""

from __future__ import annotations

import mmap
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from store_cases import build, files_of, some_ngrams, some_rows

from ngramstore.codec import codec_from_spec
from ngramstore.kernels.native import packing
from ngramstore.store.building import held
from ngramstore.store.building.build import Builder
from ngramstore.store.building.held import HeldRows, sorting_order
from ngramstore.store.layers.scattered import ScatteredRows, cannot_change

DIM = 30  # an int8 row takes 34 bytes


def encoded(count: int) -> np.ndarray:
    return codec_from_spec("int8", DIM).encode(some_rows(count, DIM))


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


# Which arrays cannot change


def test_an_array_that_nobody_can_write_to_cannot_change(tmp_path):
    rows = encoded(20)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for array in (read_only(rows), read_only(rows)[3:9], mapped, mapped[::2], np.frombuffer(rows.tobytes(), np.uint8)):
        assert cannot_change(array)


def test_an_array_that_somebody_may_write_to_can_change(tmp_path):
    rows = encoded(20)
    np.save(tmp_path / "rows.npy", rows)
    view = rows[:]
    view.flags.writeable = False  # of an array that is not
    buffer = bytearray(rows.tobytes())
    shared = np.frombuffer(buffer, np.uint8)
    shared.flags.writeable = False
    memory = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    memory.flags.writeable = False
    copied_on_write = np.load(tmp_path / "rows.npy", mmap_mode="c")
    copied_on_write.flags.writeable = False
    for array in (
        rows,
        rows[2:],
        view,
        shared,
        memory,
        np.load(tmp_path / "rows.npy", mmap_mode="r+"),
        copied_on_write,
    ):
        assert not cannot_change(array)


# Held where they are, or copied


def forms(tmp_path, rows: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
    """The same rows in memory of every kind, and whether they are copied."""
    np.save(tmp_path / "rows.npy", rows)
    by_columns = np.asfortranarray(rows)
    by_columns.flags.writeable = False
    wide = read_only(np.concatenate([rows, rows[:, :5]], axis=1))
    return {
        "writable": (rows.copy(), True),
        "read-only": (read_only(rows), False),
        "mapped": (np.load(tmp_path / "rows.npy", mmap_mode="r"), False),
        "columns of wider rows": (wide[:, : rows.shape[1]], False),
        "backwards": (read_only(rows[::-1])[::-1], False),
        "by columns": (by_columns, True),
    }


@pytest.mark.parametrize("memory_bytes", [1, 100_000, 1 << 30], ids=["64 rows", "some rows", "all rows"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_rows_in_memory_of_any_kind_give_the_same_bytes(tmp_path, monkeypatch, memory_bytes, compression):
    monkeypatch.setattr(held, "_WORTH_HOLDING_BYTES", 1)
    ngrams, rows = some_ngrams(3000), encoded(3000)
    wanted = files_of(build(tmp_path / "wanted", ngrams, some_rows(3000, DIM), codec="int8", compression=compression))
    for name, (form, is_copied) in forms(tmp_path, rows).items():
        path = tmp_path / f"{name}-{memory_bytes}"
        with Builder(path, dim=DIM, max_n=3, compression=compression, memory_bytes=memory_bytes, threads=2) as builder:
            for at in range(0, 3000, 700):
                builder.add_encoded(ngrams[at : at + 700], form[at : at + 700])
        assert builder.stats()["rows_copied"] == (3000 if is_copied else 0), name
        assert builder.stats()["rows"] == 3000
        assert files_of(path) == wanted, name


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_a_buffer_may_be_used_again_after_each_call(tmp_path, memory_bytes):
    ngrams, rows = some_ngrams(5000), encoded(5000)
    buffer = np.empty((1000, DIM + 4), np.uint8)
    with Builder(tmp_path / "a", dim=DIM, max_n=3, compression="none", memory_bytes=memory_bytes) as builder:
        for at in range(0, 5000, 1000):
            buffer[:] = rows[at : at + 1000]
            builder.add_encoded(ngrams[at : at + 1000], buffer)
        buffer[:] = 0
    wanted = build(tmp_path / "b", ngrams, some_rows(5000, DIM), codec="int8")
    assert files_of(tmp_path / "a") == files_of(wanted)


def test_few_rows_at_a_time_are_copied_rather_than_kept_track_of(tmp_path):
    rows = read_only(encoded(100))
    with Builder(tmp_path / "store", dim=DIM, max_n=3) as builder:
        for i, ngram in enumerate(some_ngrams(100)):
            builder.add_encoded([ngram], rows[i : i + 1])
    assert builder.stats()["rows_copied"] == 100


def test_memory_that_rows_were_copied_into_is_used_again():
    rows = encoded(500)
    some = HeldRows(500, DIM + 4, 2)
    pieces = None
    for _ in range(3):
        order = np.random.default_rng(0).permutation(500)
        some.add(order.astype(np.uint64), rows, np.zeros((500, 2), np.uint32), np.ones(500, np.uint8), is_ours=False)
        batches = list(some.sorted_batches(64))
        assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(500))
        got = np.concatenate([batch.rows.copied() for batch in batches])
        assert (got == rows[np.argsort(order)]).all()
        assert pieces is None or pieces == [piece.ctypes.data for piece in some._pieces]
        pieces = [piece.ctypes.data for piece in some._pieces]
        some.clear()
        assert len(some) == 0


def test_equal_ids_stay_in_the_order_they_came():
    rng = np.random.default_rng(0)
    for ids in (rng.integers(0, 50, 4000).astype(np.uint64), rng.permutation(4000).astype(np.uint64)):
        assert (sorting_order(ids) == np.argsort(ids, kind="stable")).all()


def test_scattered_rows_are_taken_like_rows_of_an_array():
    rows = encoded(40)
    scattered = ScatteredRows.of(rows)
    for which in (slice(3, 9), slice(None, None, -1), np.array([5, 5, 0, 39]), np.arange(40) % 3 == 0):
        assert (scattered[which].copied() == rows[which]).all()
        assert len(scattered[which]) == len(rows[which])
    out = np.full(41 * (DIM + 4), 7, np.uint8)
    assert (scattered.copied(out) == rows).all()
    assert (out[40 * (DIM + 4) :] == 7).all()


def test_scattered_rows_keep_their_memory_alive():
    scattered = ScatteredRows.of(encoded(100))[np.arange(99, -1, -1)]
    wanted = encoded(100)[::-1]
    filled = [np.full((100, DIM + 4), 255, np.uint8) for _ in range(50)]
    assert (scattered.copied() == wanted).all()
    assert len(filled) == 50


# The budget


@pytest.mark.parametrize("form", ["copied", "floats"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_build_keeps_its_budget(tmp_path, form, compression):
    """Anonymous memory of a process that builds 128 MiB of rows in 32, sampled while it does, over what it held before."""
    code = f"""
        import sys, threading
        from pathlib import Path
        import numpy as np
        import ngramstore as ngs
        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10
        def fill(path, steps, memory_bytes):
            with ngs.build(path, dim=1020, max_n=1, codec="int8", compression={compression!r}, threads=2,
                           memory_bytes=memory_bytes) as builder:
                for step in range(steps):
                    tokens = (np.arange(2048) * 64 + step).astype(np.uint32)[:, None]
                    if {form!r} == "floats":
                        builder.add(tokens, np.resize(values, (2048, 1020)))
                    else:
                        rows[:] = step
                        builder.add_encoded(tokens, rows)
        values = np.random.default_rng(0).standard_normal((2048, 1020), np.float32)
        rows = np.empty((2048, 1024), np.uint8)
        fill({str(tmp_path / "first")!r}, 3, 32 << 20)
        before, largest, is_done = anonymous(), [0], threading.Event()
        def watch():
            while not is_done.wait(0.002):
                largest[0] = max(largest[0], anonymous())
        watcher = threading.Thread(target=watch)
        watcher.start()
        fill({str(tmp_path / "store")!r}, 64, 32 << 20)
        is_done.set()
        watcher.join()
        print(largest[0] - before)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    arguments_mib = 12 if form == "floats" else 0  # the caller's own array and the encoder's
    assert int(ended.stdout) <= 32 + arguments_mib


def test_the_kernel_reads_no_further_than_the_row(tmp_path):
    """Rows at the end of a map, in front of memory that is not there: prefetching must not fault."""
    size = 4 * mmap.PAGESIZE
    (tmp_path / "rows").write_bytes(bytes(range(256)) * (size // 256))
    rows = np.memmap(tmp_path / "rows", np.uint8, "r", shape=(size // 64, 64))
    out = np.empty(size, np.uint8)
    packing.gather_rows(ScatteredRows.of(rows).addresses, 64, out)
    assert (out.reshape(rows.shape) == rows).all()
