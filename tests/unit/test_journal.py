"""The journal against a dict, across reopening; its locks, its errors, and what a kill and a power cut leave."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import reboot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ngramstore.errors import DamagedJournal, DiskFull, StoreClosed, UsageError, WriterLocked
from ngramstore.store.journal import ack as journal_ack
from ngramstore.store.journal import guard as journal_guard
from ngramstore.store.journal.journal import Changes, Journal
from ngramstore.store.journal.rocks import open_rocksdb
from ngramstore.store.journal.values import STATE, STATE_KEY, VALUE_HEAD, VALUE_TAIL
from ngramstore.store.repair.journal import salvage

WIDTH, ROW_BYTES = 3, 10
OF_STORE = {"row_bytes": ROW_BYTES, "width": WIDTH, "store_state": bytes(16)}
"""What a store says of its journal."""


def make_changes(ids, *, deletes=(), salt=0, row_bytes=ROW_BYTES) -> Changes:
    """A change of each ID, told apart by `salt`."""
    ids = np.array(sorted(ids), np.uint64)
    is_delete = np.isin(ids, np.array(list(deletes), np.uint64))
    rng = np.random.default_rng([salt, len(ids)])
    lengths = rng.integers(1, WIDTH + 1, len(ids)).astype(np.uint8)
    tokens = rng.integers(0, 2**32, (len(ids), WIDTH)).astype(np.uint32)
    tokens[np.arange(WIDTH) >= lengths[:, None]] = 0
    rows = rng.integers(0, 256, (len(ids), row_bytes)).astype(np.uint8)
    rows[is_delete] = 0
    return Changes(ids, is_delete, tokens, lengths, rows)


def as_dict(changes: Changes) -> dict[int, tuple]:
    return {
        int(changes.ids[i]): (
            bool(changes.is_delete[i]),
            changes.tokens[i].tolist(),
            int(changes.lengths[i]),
            changes.rows[i].tobytes(),
        )
        for i in range(len(changes))
    }


def contents(journal: Journal, max_bytes: int = 64 << 20) -> dict[int, tuple]:
    result: dict[int, tuple] = {}
    last = -1
    for chunk in journal.scan(max_bytes):
        assert chunk.ids.dtype == np.uint64 and chunk.tokens.dtype == np.uint32 and chunk.rows.dtype == np.uint8
        assert int(chunk.ids[0]) > last and (chunk.ids[1:] > chunk.ids[:-1]).all()
        last = int(chunk.ids[-1])
        result.update(as_dict(chunk))
    return result


def open_journal(path: Path, **kwargs) -> Journal:
    return Journal.open(path, **{**OF_STORE, **kwargs})


ID = st.one_of(st.integers(0, 12), st.sampled_from([2**64 - 1, 2**63, 2**32, 255, 256]))
APPEND = st.tuples(st.just("append"), st.sets(ID, min_size=1, max_size=8), st.sets(ID, max_size=4))
STEP = st.one_of(APPEND, APPEND, st.tuples(st.sampled_from(["reopen", "sync", "scan"]), st.none(), st.none()))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=12))
def test_a_journal_is_a_dict_that_survives_reopening(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("j") / "journal"
    model: dict[int, tuple] = {}
    journal = open_journal(path)
    for salt, (what, ids, deletes) in enumerate(steps):
        if what == "append":
            changes = make_changes(ids, deletes=deletes, salt=salt)
            journal.append(changes)
            model.update(as_dict(changes))
        elif what == "sync":
            journal.sync()
        elif what == "reopen":
            journal.close()
            journal = open_journal(path, create=False)
        else:
            assert contents(journal, max_bytes=100) == model
        assert len(journal) == len(model)
    ids, is_delete = journal.ids()
    assert ids.tolist() == sorted(model)
    assert is_delete.tolist() == [model[i][0] for i in sorted(model)]
    assert contents(journal) == model
    wanted = np.array(sorted(model, key=lambda i: i * 7919 % 13), np.uint64)
    got = journal.get(wanted)
    assert got.ids.tolist() == wanted.tolist()
    assert as_dict(got) == model
    journal.close()


def test_get_keeps_the_order_and_repeats_of_its_ids(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([5, 6, 7]))
        assert journal.get(np.array([7, 5, 7], np.uint64)).ids.tolist() == [7, 5, 7]
        assert len(journal.get(np.array([], np.uint64))) == 0


def test_find_tells_known_and_deleted_ids_apart(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1, 2, 3], deletes=[2]))
        journal.ids()
        journal.append(make_changes([3, 4], deletes=[3]))
        is_known, is_delete = journal.find(np.array([4, 3, 2, 1, 0], np.uint64))
        assert is_known.tolist() == [True, True, True, True, False]
        assert is_delete.tolist() == [False, True, True, False, False]


def test_get_of_an_absent_id_names_it_and_the_path(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1]))
        with pytest.raises(DamagedJournal, match="0x00000000000000ff") as caught:
            journal.get(np.array([1, 255], np.uint64))
        assert str(tmp_path / "j") in str(caught.value)


def test_an_append_with_unsorted_ids_or_wrong_shapes_is_refused(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        good = make_changes([1, 2])
        for ids in ([2, 1], [1, 1]):
            bad = Changes(np.array(ids, np.uint64), good.is_delete, good.tokens, good.lengths, good.rows)
            with pytest.raises(UsageError, match="ascend"):
                journal.append(bad)
        with pytest.raises(UsageError, match="shapes"):
            journal.append(make_changes([1], row_bytes=ROW_BYTES + 1))
        with pytest.raises(UsageError, match="tokens"):
            journal.append(Changes(good.ids, good.is_delete, good.tokens, good.lengths + WIDTH, good.rows))
        assert len(journal) == 0


def test_an_append_larger_than_a_batch_may_be_is_refused_and_a_smaller_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("ngramstore.store.journal.journal.MAX_APPEND_BYTES", 100)  # three puts take 84 bytes
    with open_journal(tmp_path / "j") as journal:
        with pytest.raises(UsageError, match="9 changes, 252 bytes; the limit is 100") as caught:
            journal.append(make_changes(range(9)))
        assert "split it" in caught.value.hint
        journal.append(make_changes(range(3)))
        assert len(journal) == 3
        assert contents(journal) == as_dict(make_changes(range(3)))


def test_a_journal_of_another_width_or_row_size_is_refused(tmp_path):
    open_journal(tmp_path / "j").close()
    with pytest.raises(DamagedJournal, match="10 row bytes"):
        open_journal(tmp_path / "j", row_bytes=ROW_BYTES + 1)
    with pytest.raises(DamagedJournal, match="3 tokens"):
        open_journal(tmp_path / "j", width=WIDTH + 1)


def test_opening_twice_is_writer_locked_and_a_missing_journal_says_so(tmp_path):
    with open_journal(tmp_path / "j"), pytest.raises(WriterLocked):
        open_journal(tmp_path / "j")
    open_journal(tmp_path / "j").close()
    with pytest.raises(DamagedJournal, match="missing"):
        open_journal(tmp_path / "k", create=False)


def test_after_close_and_destroy_every_use_is_a_clear_error(tmp_path):
    journal = open_journal(tmp_path / "j")
    journal.append(make_changes([1]))
    journal.close()
    journal.close()
    for use in (journal.ids, journal.sync, lambda: journal.append(make_changes([2])), lambda: list(journal.scan())):
        with pytest.raises(StoreClosed):
            use()
    journal = open_journal(tmp_path / "j")
    journal.destroy()
    assert os.listdir(tmp_path) == []
    with pytest.raises(StoreClosed):
        journal.get(np.array([1], np.uint64))


def child_command(program: str, *arguments: object) -> list[str]:
    """Runs a program that has this module's helpers, in a process of its own."""
    setup = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\nfrom test_journal import *\n"
    return [sys.executable, "-c", setup + textwrap.dedent(program), *map(str, arguments)]


def in_child(program: str, *arguments: object, **kwargs) -> subprocess.CompletedProcess[str]:
    command = child_command(program, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_loses_no_returned_append_and_leaves_no_half_of_one(tmp_path, seed):
    """Every append changes the same IDs, so that a half-done one would show as a mixture."""
    program = """
        every = [make_changes(range(300), salt=salt) for salt in range(7)]
        journal = open_journal(Path(sys.argv[1]))
        for number in range(1_000_000):
            journal.append(every[number % 7])
            os.write(1, b".")
    """
    process = subprocess.Popen(child_command(program, tmp_path / "j"), stdout=subprocess.PIPE)
    num_returned = len(process.stdout.read(20))
    time.sleep(random.Random(seed).random() / 50)
    process.kill()
    num_returned += len(process.communicate()[0])
    with open_journal(tmp_path / "j", create=False) as journal:
        found = contents(journal)
    assert found in [as_dict(make_changes(range(300), salt=(num_returned + more) % 7)) for more in (-1, 0)]


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_while_a_journal_is_created_or_opened_leaves_one_that_opens(tmp_path, seed):
    program = """
        import threading, time
        def kill():
            time.sleep(float(sys.argv[2]))
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill).start()
        for number in range(1000):
            open_journal(Path(sys.argv[1]) / str(number // 2)).close()
    """
    result = in_child(program, tmp_path, 0.05 + 0.02 * random.Random(seed).random())
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert os.listdir(tmp_path)
    for path in tmp_path.iterdir():
        with open_journal(path) as journal:
            assert len(journal) == 0


def crash(path: Path, num_synced: int, num_more: int) -> list[dict[int, tuple]]:
    """A process appends to 4 IDs, syncs after `num_synced` appends, and dies. What the journal held after each append."""
    program = """
        journal = open_journal(Path(sys.argv[1]))
        for salt in range(int(sys.argv[2]) + int(sys.argv[3])):
            journal.append(make_changes(range(4), salt=salt))
            if salt + 1 == int(sys.argv[2]):
                journal.sync()
        os._exit(0)
    """
    result = in_child(program, path, num_synced, num_more)
    assert result.returncode == 0, result.stderr
    return [{}, *(as_dict(make_changes(range(4), salt=salt)) for salt in range(num_synced + num_more))]


def the_log(path: Path) -> Path:
    (log,) = (file for file in path.glob("*.log") if file.stat().st_size)
    return log


def test_after_a_power_cut_the_synced_appends_and_a_prefix_of_the_others_are_left(tmp_path, monkeypatch, caplog):
    states = crash(tmp_path / "good", 3, 4)
    reboot(monkeypatch)
    size = the_log(tmp_path / "good").stat().st_size
    seen = set()
    for number, length in enumerate(range(0, size, 41)):
        path = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", path)
        os.truncate(the_log(path), length)
        caplog.clear()
        try:
            with open_journal(path, create=False) as journal:
                kept = states.index(contents(journal))
        except DamagedJournal:
            kept = -1
        else:
            assert f"{4 * (7 - kept)} of 28 unflushed changes are lost" in caplog.text
            with open_journal(path, create=False) as journal:  # the lost appends stay lost, without a warning
                assert states.index(contents(journal)) == kept
            assert caplog.text.count("lost") == 1
        seen.add(kept)
        shutil.rmtree(path)
    assert seen == {-1, 3, 4, 5, 6}


def test_after_a_power_cut_a_hole_in_unsynced_appends_ends_the_journal_there(tmp_path, monkeypatch):
    """Pages reach the disk in any order: a hole may lie before pages that arrived."""
    states = crash(tmp_path / "j", 3, 4)
    log = the_log(tmp_path / "j")
    data = log.read_bytes()
    record = len(data) // 7
    log.write_bytes(data[: 4 * record + 20] + bytes(record) + data[5 * record + 20 :])
    shutil.copytree(tmp_path / "j", tmp_path / "same boot")
    with pytest.raises(DamagedJournal):
        open_journal(tmp_path / "same boot", create=False)
    reboot(monkeypatch)
    with open_journal(tmp_path / "j", create=False) as journal:
        assert contents(journal) == states[4]


def test_an_append_whose_acknowledgement_was_not_written_is_kept(tmp_path):
    open_journal(tmp_path / "j").close()
    acknowledged = (tmp_path / "j" / "ACK").read_bytes()
    states = crash(tmp_path / "j", 0, 1)
    (tmp_path / "j" / "ACK").write_bytes(acknowledged)
    with open_journal(tmp_path / "j", create=False) as journal:
        assert contents(journal) == states[1]


def test_an_older_copy_of_rocksdbs_files_is_refused(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1]))
    shutil.copytree(tmp_path / "j", tmp_path / "old")
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1], salt=1))
    shutil.copy(tmp_path / "j" / "ACK", tmp_path / "old" / "ACK")
    with pytest.raises(DamagedJournal, match="1 appends are there, ACK says 2"):
        open_journal(tmp_path / "old")


def tamper(path: Path, change) -> None:
    """Change RocksDB's content behind the journal's back, with good checksums of its own."""
    db = open_rocksdb(path, is_same_boot=True)
    change(db)
    db.close()


def test_a_value_that_is_missing_older_moved_or_changed_is_refused_at_opening(tmp_path):
    key, other = (5).to_bytes(8, "big"), (6).to_bytes(8, "big")
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([5, 6]))
    db = open_rocksdb(tmp_path / "j", is_same_boot=True)
    older = db.get(key)
    db.close()
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([5, 6], salt=1))

    def flip(db):
        value = bytearray(db.get(key))
        value[20] ^= 1
        db.put(key, bytes(value))

    faults = {
        "1 IDs are there, the journal's state record says 2": lambda db: db.delete(key),
        "2 IDs are there, .* fingerprint": lambda db: db.put(key, older),
        "ID 0x0000000000000006 is not what was written": lambda db: db.put(other, db.get(key)),
        "ID 0x0000000000000005 is not what was written": flip,
        "state record has 3 bytes": lambda db: db.put(STATE_KEY, b"???"),
        "0 appends are there, ACK says 2": lambda db: [db.delete(name) for name in (key, other, STATE_KEY)],
    }
    for number, (message, fault) in enumerate(faults.items()):
        path = tmp_path / str(number)
        shutil.copytree(tmp_path / "j", path)
        tamper(path, fault)
        with pytest.raises(DamagedJournal, match=message) as caught:
            open_journal(path)
        assert str(path) in str(caught.value)


def test_a_value_changed_under_an_open_journal_is_refused(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([5, 6]))
        older = journal._db.get((5).to_bytes(8, "big"))
        journal.append(make_changes([5, 6], salt=1))
        journal._db.put((5).to_bytes(8, "big"), older)
        with pytest.raises(DamagedJournal, match="not the latest"):
            contents(journal)
        journal._db.put((5).to_bytes(8, "big"), older[:-1] + b"?")
        for read in (lambda: contents(journal), lambda: journal.get(np.array([6, 5], np.uint64))):
            with pytest.raises(DamagedJournal, match="ID 0x0000000000000005 is not what was written"):
                read()
        journal._db.delete((5).to_bytes(8, "big"))
        with pytest.raises(DamagedJournal, match="ID 0x0000000000000005 is missing"):
            contents(journal)


def test_a_full_disk_is_disk_full_and_what_was_there_stays(tmp_path):
    """A limit on file sizes stands in for the disk: the system reports it at the same call."""
    program = """
        import resource
        from ngramstore.errors import DiskFull
        journal = open_journal(Path(sys.argv[1]))
        journal.append(make_changes(range(10)))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            journal.append(make_changes(range(1000), salt=1))
        except DiskFull as error:
            print("full", error.message.startswith(sys.argv[1]))
        print(journal.is_behind, contents(journal) == as_dict(make_changes(range(10))))
        for use in (journal.sync, lambda: journal.append(make_changes([1]))):
            try:
                use()
            except StoreClosed as error:
                print(error.message)
        os._exit(0)
    """
    result = in_child(program, tmp_path / "j")
    lines = result.stdout.splitlines()
    assert lines[:2] == ["full True", "False True"], result  # and it can be read while the disk is full
    assert len(lines) == 4 and all("an earlier write failed" in line for line in lines[2:])
    with open_journal(tmp_path / "j") as journal:
        assert contents(journal) == as_dict(make_changes(range(10)))


@pytest.mark.parametrize("damage", ["no MANIFEST", "a record of an unknown type"])
def test_a_damaged_journal_that_there_is_no_room_to_read_is_disk_full_and_not_a_loss(tmp_path, damage):
    """RocksDB repairs what it has room for, and does not say that there was more."""
    program = """
        import resource
        from ngramstore.errors import DiskFull
        path = Path(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = the_log(path).stat().st_size
        for limit in range(size - 1000, size + 5000, 500):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                print(sum(map(len, salvage(path, **OF_STORE)[0])))
            except DiskFull as error:
                print("full", str(path) in error.message, error.message)
    """
    many = """
        journal = open_journal(Path(sys.argv[1]))
        for salt in range(3):
            journal.append(make_changes(range(200 * salt, 200 * salt + 200), salt=salt))
        os._exit(0)
    """
    assert in_child(many, tmp_path / "j").returncode == 0
    if damage == "no MANIFEST":
        next((tmp_path / "j").glob("MANIFEST*")).unlink()
    else:
        data = bytearray(the_log(tmp_path / "j").read_bytes())
        data[6] = 77
        the_log(tmp_path / "j").write_bytes(data)
    lines = in_child(program, tmp_path / "j").stdout.splitlines()
    assert lines[-1] == "600"
    assert all(line == "600" or line.startswith("full True") for line in lines), lines
    assert sum("for a copy of" in line for line in lines) > 0, (
        "a limit at which the files can be copied and not repaired"
    )
    assert os.listdir(tmp_path) == ["j"]


def test_a_damaged_journal_is_not_read_where_its_copy_has_no_room(tmp_path, monkeypatch):
    open_journal(tmp_path / "j").close()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2000))
    with pytest.raises(DiskFull, match=r"reading a damaged journal needs about [0-9,]+ bytes in .*, 2,000 are free"):
        salvage(tmp_path / "j", **OF_STORE)


def test_a_fork_of_the_writer_gets_clear_errors_and_leaves_the_journal_alone(tmp_path):
    program = """
        import gc
        from ngramstore.errors import WrongProcess
        journal = open_journal(Path(sys.argv[1]))
        journal.append(make_changes([1, 2, 3]))
        if os.fork() == 0:
            for use in (journal.ids, journal.sync, journal.destroy, lambda: journal.append(make_changes([4]))):
                try:
                    use()
                except WrongProcess:
                    print("wrong process", flush=True)
            journal.close()
            del journal
            gc.collect()
            sys.exit(0)  # an ordinary end: finalizers run
        assert os.wait()[1] == 0
        journal.append(make_changes([5], salt=1))
        print(sorted(contents(journal)), flush=True)
        if os.fork() == 0:
            signal.pause()  # outlives the writer, and must not hold its lock
        print("pid", flush=True)
        journal.close()
        open_journal(Path(sys.argv[1])).close()
        os.killpg(0, signal.SIGKILL)
    """
    result = in_child(program, tmp_path / "j", start_new_session=True)
    assert result.stdout.splitlines() == ["wrong process"] * 4 + ["[1, 2, 3, 5]", "pid"], result.stderr
    assert result.stderr == ""
    with open_journal(tmp_path / "j") as journal:
        assert len(journal) == 4


def test_log_files_do_not_pile_up(tmp_path):
    for salt in range(12):
        with open_journal(tmp_path / "j") as journal:
            journal.append(make_changes(range(5), salt=salt))
    names = os.listdir(tmp_path / "j")
    assert len([name for name in names if name.startswith("LOG")]) <= 3
    assert len([name for name in names if name.startswith("OPTIONS")]) <= 2
    assert len(names) < 30


def test_salvage_of_a_good_journal_is_all_of_it_without_a_fault(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes(range(20), deletes=[3]))
        expected = contents(journal)
    before = {file.name: file.read_bytes() for file in (tmp_path / "j").iterdir()}
    chunks, faults = salvage(tmp_path / "j", **OF_STORE)
    assert faults == []
    assert {k: v for chunk in chunks for k, v in as_dict(chunk).items()} == expected
    assert {file.name: file.read_bytes() for file in (tmp_path / "j").iterdir()} == before
    assert os.listdir(tmp_path) == ["j"]


@pytest.mark.parametrize("name", ["ACK", "CURRENT", "MANIFEST", "log", "block"])
def test_salvage_keeps_what_is_good_and_names_the_faults(tmp_path, name):
    path = tmp_path / "j"
    states = crash(path, 2, 1)
    if name == "log":
        with open(the_log(path), "r+b") as file:
            file.seek(the_log(path).stat().st_size // 2)
            file.write(b"????")
    elif name == "block":
        open_journal(path).close()
        (table,) = path.glob("*.sst")
        with open(table, "r+b") as file:
            file.seek(50)
            file.write(b"????")
    else:
        (file,) = path.glob(name + "*")
        file.write_bytes(b"?" + file.read_bytes()[1:100])
    with pytest.raises(DamagedJournal):
        open_journal(path)
    chunks, faults = salvage(path, **OF_STORE)
    got = {k: v for chunk in chunks for k, v in as_dict(chunk).items()}
    assert faults and all(str(path) in fault for fault in faults)
    assert all(got[id_] in [state.get(id_) for state in states] for id_ in got)
    if name in ("ACK", "CURRENT", "MANIFEST"):
        assert got == states[3]


def test_crc32c_is_the_published_one():
    """Test vectors of RFC 3720, appendix B.4."""
    assert journal_guard.crc32c(bytes(32)) == 0x8A9136AA
    assert journal_guard.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert journal_guard.crc32c(bytes(range(32))) == 0x46DD794E


def test_the_document_prints_the_tables_the_code_uses():
    text = (Path(__file__).parents[2] / "docs" / "journal.md").read_text()
    for layout in (VALUE_HEAD, VALUE_TAIL, STATE, journal_ack.ACK_SLOT, journal_ack.ACK_PUBLISHED):
        assert layout.markdown() in text


def refuse_ack(monkeypatch, code: int) -> None:
    """From here on the system has this error for ACK, opened or read whole."""

    def refused(real):
        def opened(path, *args, **options):
            if Path(os.fsdecode(path)).name == journal_ack.ACK_NAME:
                raise OSError(code, os.strerror(code), str(path))
            return real(path, *args, **options)

        return opened

    monkeypatch.setattr(os, "open", refused(os.open))
    monkeypatch.setattr(Path, "read_bytes", refused(Path.read_bytes))


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.EIO, DamagedJournal, "ACK: cannot be read: Input/output error"),
        (errno.ENOENT, DamagedJournal, "ACK: the file is missing"),
        (errno.EMFILE, UsageError, "too many open files to open .*ACK"),
        (errno.EACCES, UsageError, "no permission for .*ACK"),
    ],
)
def test_what_the_system_says_of_ack_is_an_error_of_ours(tmp_path, monkeypatch, code, error, message):
    open_journal(tmp_path / "journal").close()
    refuse_ack(monkeypatch, code)
    acts = [
        lambda: journal_ack.AckFile.open(tmp_path / "journal"),
        lambda: journal_ack.read_ack(tmp_path / "journal" / journal_ack.ACK_NAME),
    ]
    if code != errno.ENOENT and error is UsageError:
        acts.append(lambda: journal_ack.no_writer(tmp_path / "journal" / journal_ack.ACK_NAME).__enter__())
    for act in acts:
        with pytest.raises(error, match=message):
            act()
