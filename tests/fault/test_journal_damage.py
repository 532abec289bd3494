"""Bit flips, cuts and deletions in every file of a journal: an error that names the place, or the very same contents.

RocksDB can spin on damage, so each case runs in a child process under a watchdog: this file is also that child's program.
One child takes many cases; a child that hangs or dies is a failure of the case it was at.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ngramstore.errors import DamagedJournal
from ngramstore.store.journal.journal import Changes, Journal
from ngramstore.store.repair.journal import salvage

WIDTH, ROW_BYTES = 3, 10
OF_STORE = {"row_bytes": ROW_BYTES, "width": WIDTH, "store_state": bytes(16)}
TIMEOUT_S = 20
SEED = 20250101
VARIANTS = ("log", "log synced", "table and log")


def make_changes(start: int) -> Changes:
    """Four changes, of which one deletes; consecutive calls overlap by one ID."""
    rng = np.random.default_rng(start)
    ids = np.arange(start, start + 4, dtype=np.uint64) * np.uint64(0x1234567890ABCDE)
    is_delete = np.array([False, True, False, False])
    tokens = rng.integers(1, 2**32, (4, WIDTH)).astype(np.uint32)
    rows = rng.integers(0, 256, (4, ROW_BYTES)).astype(np.uint8)
    rows[is_delete] = 0
    return Changes(ids, is_delete, tokens, np.full(4, WIDTH, np.uint8), rows)


def make_journal(path: Path, variant: str) -> None:
    """Ends without closing: closing would write what the log holds to a table."""
    for start in (0, 3, 6):
        journal = Journal.open(path, **OF_STORE)
        journal.append(make_changes(start))
        if variant == "table and log" and start < 6:
            journal.close()
            continue
        if start < 6:
            journal.append(make_changes(3))
            journal.append(make_changes(6))
        if "synced" in variant:
            journal.sync()
        os._exit(0)


def contents(journal: Journal) -> str:
    columns = [
        (c.ids.tolist(), c.is_delete.tolist(), c.tokens.tolist(), c.lengths.tolist(), c.rows.tolist())
        for c in journal.scan(100)
    ]
    ids, is_delete = journal.ids()
    got = journal.get(ids[::-1])
    return json.dumps([columns, len(journal), ids.tolist(), is_delete.tolist(), got.rows.tolist()])


def damage(path: Path, how: str, place: int) -> None:
    if how == "delete":
        path.unlink()
    elif how == "cut":
        os.truncate(path, place)
    else:
        with open(path, "r+b") as file:
            file.seek(place // 8)
            byte = file.read(1)[0]
            file.seek(place // 8)
            file.write(bytes([byte ^ 1 << place % 8]))


def run_case(good: Path, work: Path, name: str, how: str, place: int, *, is_open: bool, with_salvage: bool) -> str:
    """'same', 'refused', or what went wrong."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work)
    expected = (good.parent / (good.name + ".json")).read_text()
    try:
        if is_open:
            with Journal.open(work, **OF_STORE, create=False) as journal:
                if not (work / name).exists():
                    return "same"
                damage(work / name, how, place)
                if contents(journal) != expected:
                    return "other contents while open"
        else:
            damage(work / name, how, place)
        for when in ("at first opening", "at second opening"):
            with Journal.open(work, **OF_STORE, create=False) as journal:
                if contents(journal) != expected:
                    return f"other contents {when}"
        return "same"
    except DamagedJournal as error:
        if str(work) not in str(error):
            return f"the error does not name the place: {error}"
        return try_salvage(work) if with_salvage else "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def try_salvage(work: Path) -> str:
    """'refused' where salvage finds faults, and only values that were once written."""
    written = [dict(zip(c.ids.tolist(), c.rows.tolist(), strict=True)) for c in map(make_changes, (0, 3, 6))]
    chunks, faults = salvage(work, **OF_STORE)
    if not faults:
        return "salvage finds no fault"
    for chunk in chunks:
        for id_, row in zip(chunk.ids.tolist(), chunk.rows.tolist(), strict=True):
            if all(values.get(id_) != row for values in written):
                return "salvage returns a value that nobody wrote"
    return "refused"


def child_main() -> None:
    for line in sys.stdin:
        good, work, *case = json.loads(line)
        print(
            json.dumps(run_case(Path(good), Path(work), *case[:3], is_open=case[3], with_salvage=case[4])), flush=True
        )


class Child:
    """A process that runs cases; started anew after one that hung or died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *case: object) -> str:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
            )
        self.process.stdin.write(json.dumps(case).encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], TIMEOUT_S)[0]:
            self.stop()
            return f"hangs for {TIMEOUT_S} s"
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            return f"the process died: {code}"
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def child_environment() -> dict[str, str]:
    import ngramstore

    root = str(Path(next(iter(ngramstore.__path__))).parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def goods():
    """Variant -> a good journal; in memory where the system has a place for it, since each case opens RocksDB twice."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        paths = {}
        for number, variant in enumerate(VARIANTS):
            path = Path(folder) / f"good{number}"
            subprocess.run([sys.executable, __file__, str(path), variant], check=True, env=child_environment())
            copy = Path(folder) / "copy"
            shutil.copytree(path, copy)  # opening changes the files
            with Journal.open(copy, **OF_STORE, create=False) as journal:
                (Path(folder) / f"good{number}.json").write_text(contents(journal))
            shutil.rmtree(copy)
            paths[variant] = path
        yield paths


@pytest.fixture(scope="module")
def child():
    child = Child()
    yield child
    child.stop()


def run_cases(
    child: Child, good: Path, cases: list[tuple[str, str, int, bool]], with_salvage: bool = False
) -> dict[str, int]:
    """Outcome -> count. Fails on any outcome but 'same' and 'refused'."""
    outcomes: dict[str, int] = {}
    wrong = []
    for case in cases:
        outcome = child.run(str(good), str(good.parent / "work"), *case, with_salvage)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome not in ("same", "refused"):
            wrong.append((case, outcome))
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:5]}"
    return outcomes


def data_files(good: Path) -> list[Path]:
    """Those with data or its description. LOG, LOCK, IDENTITY and OPTIONS are tested at fewer places."""
    return [
        path
        for path in sorted(good.iterdir())
        if path.suffix in (".log", ".sst") or path.name.startswith(("ACK", "CURR", "MANI"))
    ]


def other_files(good: Path) -> list[Path]:
    return [path for path in sorted(good.iterdir()) if path not in data_files(good)]


def test_the_variants_hold_what_their_names_say(goods):
    for variant, good in goods.items():
        suffixes = [path.suffix for path in good.iterdir() if path.stat().st_size]
        assert ".log" in suffixes and (".sst" in suffixes) == (variant == "table and log")


@pytest.mark.parametrize("variant", VARIANTS)
def test_deleting_any_file_is_refused_or_harmless(goods, child, variant):
    good = goods[variant]
    cases = [(path.name, "delete", 0, is_open) for path in good.iterdir() for is_open in (False, True)]
    run_cases(child, good, cases)
    data = [(path.name, "delete", 0, False) for path in data_files(good)]
    assert run_cases(child, good, data) == {"refused": len(data)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cutting_any_file_at_any_length_is_refused_or_harmless(goods, child, variant):
    good, rng = goods[variant], random.Random(SEED)
    cases = []
    for path in good.iterdir():
        size = path.stat().st_size
        step = 3 if path.suffix == ".log" else 17
        lengths = (
            set(range(0, size, step)) if path in data_files(good) else {0, *rng.sample(range(size or 1), min(size, 4))}
        )
        cases += [(path.name, "cut", length, False) for length in sorted(lengths) if length < size]
    outcomes = run_cases(child, good, cases)
    assert outcomes["refused"] > 50


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_flipped_bit_is_refused_or_harmless(goods, child, variant):
    good, rng = goods[variant], random.Random(SEED)
    cases = []
    for path in data_files(good):
        step = 4 if path.suffix == ".log" or path.name.startswith(("CURR", "MANI")) else 13
        cases += [
            (path.name, "flip", 8 * byte + rng.randrange(8), False) for byte in range(0, path.stat().st_size, step)
        ]
    for path in other_files(good):
        bits = 8 * path.stat().st_size
        cases += [(path.name, "flip", bit, False) for bit in rng.sample(range(bits), min(bits, 10))]
    outcomes = run_cases(child, good, cases)
    assert outcomes["refused"] > 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_damage_under_an_open_journal_is_refused_or_harmless(goods, child, variant):
    good, rng = goods[variant], random.Random(SEED)
    cases = []
    for path in data_files(good):
        size = path.stat().st_size
        cases += [(path.name, "flip", bit, True) for bit in rng.sample(range(8 * size), min(8 * size, 30))]
        cases += [(path.name, "cut", length, True) for length in rng.sample(range(size), min(size, 8))]
    run_cases(child, good, cases)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_flip_in_the_header_of_a_log_record_is_refused_or_harmless(goods, child, variant):
    """Two of these made RocksDB read the log without end."""
    good = goods[variant]
    (log,) = (path for path in good.glob("*.log") if path.stat().st_size)
    data, position, bits = log.read_bytes(), 0, []
    while position < len(data):
        bits += range(8 * (position + 4), 8 * (position + 7))
        position += 7 + int.from_bytes(data[position + 4 : position + 6], "little")
    assert position == len(data)
    cases = [(log.name, "flip", bit, False) for bit in bits]
    assert run_cases(child, good, cases, with_salvage=True) == {"refused": len(cases)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_salvage_of_any_damage_ends_and_returns_only_what_was_written(goods, child, variant):
    good, rng = goods[variant], random.Random(SEED)
    cases = []
    for path in data_files(good):
        size = path.stat().st_size
        cases += [(path.name, "flip", bit, False) for bit in rng.sample(range(8 * size), min(8 * size, 30))]
        cases += [(path.name, "cut", length, False) for length in rng.sample(range(size), min(size, 8))]
        cases.append((path.name, "delete", 0, False))
    assert run_cases(child, good, cases, with_salvage=True)["refused"] > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_bit_flip_of_every_file_is_refused_or_harmless(goods, child, variant):
    good = goods[variant]
    for path in good.iterdir():
        step = 1 if path in data_files(good) else 97
        run_cases(child, good, [(path.name, "flip", bit, False) for bit in range(0, 8 * path.stat().st_size, step)])


if __name__ == "__main__":
    if sys.argv[1:]:
        make_journal(Path(sys.argv[1]), sys.argv[2])
    child_main()
