"""Every bit flip and every truncation of every file of a store: an error that names the file, or the very same answers.

Damaged copies are opened in a worker process: a signal or a hang there is a failure here, not the end of the test run.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import all_ngrams, build_ngrams, rows_of, start_python

import ngramstore as ngs

TIME_LIMIT_S = 60.0
WORKER = """
import sys
from test_bit_flips import serve
serve()
"""


def make_ngrams(path: Path, **options) -> None:
    stored = {ngram: i for i, ngram in enumerate(all_ngrams(2, (0, 1, 2, 3, 300, 70_000, 2**32 - 1)))}
    build_ngrams(path, stored, **{"dim": 6, "max_n": 3, **options})
    with ngs.open(path, mode="rw") as writer:
        writer.put([(1, 2, 3), (1,), (9, 9, 9)], rows_of([101, 102, 103], writer.dim))
        writer.delete([(0,), (3, 3), (70_000, 1)])


def make_rows(path: Path, compression: str) -> None:
    with ngs.build(path, dim=24, addressing="row", codec="f32", compression=compression) as builder:
        builder.add_rows(rows_of(np.arange(130), 24))
    with ngs.open(path, mode="rw") as writer:
        writer.put([3, 77, 129], rows_of([200, 201, 202], 24))


def build_with_dictionary(path: Path) -> None:
    """Enough rows to train a zstd dictionary on."""
    build_ngrams(path, {(i, i % 7): i for i in range(700)}, dim=64, max_n=2, compression="zstd")


STORES = {
    "raw": lambda path: make_ngrams(path, compression="none"),
    "zstd": lambda path: make_ngrams(path, compression="zstd", dim=40),
    "dictionary": build_with_dictionary,
    "rows": lambda path: make_rows(path, "none"),
    "rows zstd": lambda path: make_rows(path, "zstd"),
}


def answers(path: Path) -> str:
    """All that a store says, as text: the manifest's numbers, stored keys, absent keys, longest matches, the listing."""
    said: list[object] = []
    with ngs.open(path, cache_bytes=0) as store:
        said += [store.dim, store.max_n, len(store), store.spec.addressing, store.generation, store.identity]
        said += [store.metadata, store.spec.codec.spec(), store.stats()["tombstones"], store.stats()["overlay_rows"]]
        if store.spec.is_ngram:
            keys = [*all_ngrams(2, (0, 1, 2, 3, 9, 300, 70_000, 2**32 - 1)), (1, 2, 3), (9, 9, 9), (5, 5), (3, 2, 1)]
            keys = [key for key in [*keys, *((i, i % 7) for i in range(0, 710, 9))] if len(key) <= store.max_n]
            rows, found = store.get(keys)
            hit = store.lookup(np.array([[0, 1, 2, 3, 300, 70_000, 2**32 - 1, 1, 2, 3, 9, 9, 9, 7, 8, 1, 9, 2]]))
            said += [rows.tobytes().hex(), found.tolist(), hit.rows.tobytes().hex(), hit.length.tolist()]
        else:
            said += [store.rows(np.arange(len(store))).tobytes().hex()]
        said += [(key, row.tobytes().hex()) for key, row in store.items()]
    return repr(said)


def serve() -> None:
    """The worker: a line with a path in, a line with the outcome out."""
    from ngramstore.errors import NgramStoreError

    for line in iter(input, ""):
        try:
            outcome = {"answers": answers(Path(line))}
        except NgramStoreError as error:
            outcome = {"error": str(error), "kind": type(error).__name__}
        except Exception as error:
            outcome = {"wrong": repr(error)}
        print(json.dumps(outcome), flush=True)


class Worker:
    """A child that answers for one path after the other; started again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path) -> dict[str, str]:
        """What became of opening and reading a store: its answers, an error of ours, or what went wrong."""
        if self._process is None:
            self._process = start_python(
                f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n{WORKER}",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        deadline = time.monotonic() + TIME_LIMIT_S
        data = b""
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self.close()
                return {"wrong": f"no answer in {TIME_LIMIT_S} s"}
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                code = process.wait()
                self.close()
                return {"wrong": f"the process died: {signal.Signals(-code).name if code < 0 else code}"}
            data += piece
        return json.loads(data)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def flips(data: bytes, every: int, bits: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Some bits of some bytes; the first 160 bytes and the last 16 all."""
    places = sorted(
        {*range(min(160, len(data))), *range(max(0, len(data) - 16), len(data)), *range(0, len(data), every)}
    )
    for i, place in enumerate(places):
        for bit in bits if len(bits) == 8 else (bits[i % len(bits)],):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            yield f"bit {bit} of byte {place}", bytes(damaged)


def cuts(data: bytes, every: int) -> Iterator[tuple[str, bytes]]:
    """Shorter files, and one byte longer."""
    lengths = {0, 1, 63, 64, 4095, 4096, 4097, len(data) - 4, len(data) - 1, *range(0, len(data), every)}
    for length in sorted(length for length in lengths if 0 <= length < len(data)):
        yield f"cut to {length} bytes", data[:length]
    yield "one byte longer", data + b"\0"


def attack(path: Path, worker: Worker, mutations) -> tuple[int, int]:
    """Apply mutations to each file in turn; returns how many were refused and how many changed nothing."""
    good = worker.ask(path)
    assert "answers" in good, good
    refused = harmless = 0
    for file in sorted(path.iterdir()):
        if file.is_dir():
            continue
        data = file.read_bytes()
        for what, damaged in mutations(file.name, data):
            file.write_bytes(damaged)
            outcome = worker.ask(path)
            where = f"{file.name}, {what}"
            if "error" in outcome:
                assert str(path) in outcome["error"] and (file.name in outcome["error"] or file.name == "MANIFEST"), (
                    f"{where}: the error does not name the file: {outcome}"
                )
                refused += 1
            else:
                assert "wrong" not in outcome, f"{where}: {outcome}"
                assert outcome == good, f"{where}: other answers, and no error"
                harmless += 1
        file.write_bytes(data)
        assert worker.ask(path) == good
    return refused, harmless


@pytest.mark.parametrize("kind", STORES)
def test_flips_and_cuts_of_any_file_are_errors_or_change_nothing(quick_path, worker, kind):
    """A sample: small files nearly whole, of large ones every 401st byte and what stands at both ends."""
    path = quick_path / "store"
    STORES[kind](path)

    def mutations(name: str, data: bytes):
        small = len(data) < 4096
        yield from flips(data, 31 if small else 401, (0, 3, 7, 5))
        yield from cuts(data, 257 if small else 2048)

    refused, harmless = attack(path, worker, mutations)
    assert refused > 500
    assert harmless < refused


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", STORES)
def test_every_flip_and_every_cut_of_any_file_is_an_error_or_changes_nothing(quick_path, worker, kind):
    path = quick_path / "store"
    STORES[kind](path)

    def mutations(name: str, data: bytes):
        yield from flips(data, 1, tuple(range(8)) if len(data) < 4096 else (0, 7, 4, 2, 6, 1, 5, 3))
        yield from cuts(data, 1 if len(data) < 4096 else 13)

    refused, harmless = attack(path, worker, mutations)
    assert refused > harmless


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_missing_or_foreign_file_is_named(quick_path, worker, kind):
    path, other = quick_path / "store", quick_path / "other"
    STORES[kind](path)
    build_ngrams(other, {(1,): 5, (2,): 6}, dim=6 if kind == "raw" else 40)
    for file in sorted(path.iterdir()):
        if file.name in ("LOCK", "MANIFEST"):
            continue
        data = file.read_bytes()
        file.unlink()
        outcome = worker.ask(path)
        assert file.name in outcome["error"]
        assert "missing" in outcome["error"]
        foreign = other / file.name.replace("overlay-000002", "base-000001").replace("tombstones-000002", "base-000001")
        shutil.copyfile(foreign, file)
        assert file.name in worker.ask(path)["error"]
        file.write_bytes(data)


def test_swapped_rows_are_noticed(quick_path, worker):
    """Each row with its checksum is whole, but in the place of another: the checksum is seeded with the ID."""
    path = quick_path / "store"
    STORES["raw"](path)
    file = path / "base-000001.rows"
    data = bytearray(file.read_bytes())
    stride = 6 * 4 + 4
    first, second = slice(4096, 4096 + stride), slice(4096 + stride, 4096 + 2 * stride)
    data[first], data[second] = data[second], data[first]
    file.write_bytes(data)
    outcome = worker.ask(path)
    assert outcome["kind"] == "DamagedRows"
    assert file.name in outcome["error"]


@pytest.mark.parametrize("on_damage", ["raise", "missing"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_one_damaged_row_does_not_take_down_its_batch(quick_path, on_damage, compression):
    from ngramstore.errors import DamagedRows

    path = quick_path / "store"
    stored = {(i,): i for i in range(100)}
    build_ngrams(path, stored, dim=40, compression=compression)
    with ngs.open(path) as store:
        layer = store._view.base
        places, _ = layer.places(0, 100)
        order = [ngram for ngram, _ in store.items()]
        ids = layer.seeds(0, 100).tolist()
    data = bytearray((path / "base-000001.rows").read_bytes())
    bad = {order[7], order[63], order[64]}
    for rank in (7, 63, 64):
        data[int(places[rank]) + 3] ^= 16
    (path / "base-000001.rows").write_bytes(data)
    for options in ({"cache_bytes": 0}, {"cache_bytes": 3 * 200}, {}):
        with ngs.open(path, on_damage=on_damage, **options) as store:
            keys = list(stored)
            rows = np.full((100, 40), 7, np.float32)
            for _ in range(2):
                if on_damage == "raise":
                    with pytest.raises(DamagedRows) as caught:
                        store.get(keys, out=rows)
                    assert sorted(caught.value.keys) == [ids[7], ids[63], ids[64]]
                    with pytest.raises(DamagedRows) as caught:
                        store.get([order[63]] * 20)
                    assert caught.value.keys == [ids[63]]  # once, however often it was asked for
                    assert "more rows" not in str(caught.value)
                    assert "base-000001.rows" in str(caught.value)
                else:
                    _, found = store.get(keys, out=rows)
                    assert {keys[i] for i in np.flatnonzero(~found)} == bad
                good = np.array([key not in bad for key in keys])
                np.testing.assert_array_equal(rows[good], rows_of(np.arange(100), 40)[good])
                assert not rows[~good].any()


def test_a_damaged_replaced_row_is_named_by_its_number(quick_path):
    from ngramstore.errors import DamagedRows

    path = quick_path / "store"
    with ngs.build(path, dim=4, addressing="row", codec="f32", compression="none") as builder:
        builder.add_rows(rows_of(range(100), 4))
    with ngs.open(path, mode="rw") as writer:
        writer.put([77], rows_of([500], 4))
    file = path / "overlay-000002.rows"
    data = bytearray(file.read_bytes())
    data[4096] ^= 1
    file.write_bytes(data)
    with ngs.open(path) as store, pytest.raises(DamagedRows, match=file.name) as caught:
        store.rows([5, 77, 0, 77])
    assert caught.value.keys == [77]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_resident_store_treats_damage_as_it_was_asked_to(quick_path, compression):
    from ngramstore.errors import DamagedRows

    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)}, dim=40, compression=compression)
    with ngs.open(path, mode="rw") as writer:
        writer.put([(200,)], rows_of([200], 40))
    with ngs.open(path) as store:
        place = int(store._view.base.places(7, 1)[0][0])
        order = [ngram for ngram, _ in store.items() if ngram != (200,)]
    data = bytearray((path / "base-000001.rows").read_bytes())
    data[place + 3] ^= 16
    (path / "base-000001.rows").write_bytes(data)
    with pytest.raises(DamagedRows, match="on_damage"):
        ngs.open(path, resident=True)
    with ngs.open(path, resident=True, on_damage="missing") as store:
        rows, found = store.get([*order, (200,)])
        assert np.flatnonzero(~found).tolist() == [7]
        assert not rows[7].any()
        stamps = [ngram[0] for ngram in (*order, (200,))]
        np.testing.assert_array_equal(rows[found], rows_of(stamps, 40)[found])


@pytest.mark.parametrize("lock_index", [False, True])
def test_a_rows_file_cut_under_an_open_reader_is_an_error(quick_path, lock_index):
    """Rows are read, never mapped: no signal. (Of the index see the test below.)"""
    from ngramstore.errors import DamagedRows

    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=8)
    with ngs.open(path, cache_bytes=0, lock_index=lock_index) as store:
        assert store.get([(5,)])[1].all()
        os.truncate(path / "base-000001.rows", 4096 + 36 * 20)
        with pytest.raises(DamagedRows, match=r"base-000001\.rows.*ends inside"):
            store.get([(i,) for i in range(200)])
        os.truncate(path / "base-000001.tokens", 5000)
        with pytest.raises(Exception, match=r"base-000001\.(rows|tokens)"):
            list(store.items())


def test_a_locked_index_survives_a_cut_of_its_file(quick_path):
    """A mapped index is at the mercy of whoever shortens its file in place (SIGBUS); lock_index=True reads it once."""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=8)
    with ngs.open(path, cache_bytes=0, lock_index=True) as store:
        os.truncate(path / "base-000001.index", 100)
        rows, found = store.get([(i,) for i in range(200)])
        assert found.all()
        np.testing.assert_array_equal(rows, rows_of(np.arange(200), 8))
