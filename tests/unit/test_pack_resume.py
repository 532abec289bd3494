"""A conversion that was killed goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_longcat
from store_cases import files_of

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import FormatError, IncompleteStore, NgramStoreError, UsageError
from ngramstore.store.imports import importing, job, resumable
from ngramstore.store.imports.resumable import ResumableRows
from ngramstore.store.layers.datafile import FileStamp

HOWS = {
    "as_it_is": {"compression": "none"},
    "int8": {"codec": "int8", "compression": "none"},
    "zstd": {"compression": "zstd"},
}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_CHUNK_BYTES", 100 * 512)
    write_longcat(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def pack(checkpoint: Path, out: Path, how: dict, **options):
    return importing.import_checkpoint(checkpoint, out, pack=True, **how, **options)


def interrupted(checkpoint: Path, out: Path, how: dict, monkeypatch, nth: int, *, only_rows: bool = False) -> int:
    """Let the n-th operation fail; how many there were."""
    count = 0

    def fail(operation: str, path: Path) -> None:
        nonlocal count
        if only_rows and (operation != "write" or path.suffix != ".rows"):
            return
        count += 1
        if count == nth + 1:
            raise OSError(5, f"injected into {operation}", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        try:
            pack(checkpoint, out, how)
        except (OSError, NgramStoreError):
            pass
    return count


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_wherever_it_ended_the_same_command_brings_it_to_its_end(checkpoint, tmp_path, quick_path, how, monkeypatch):
    pack(checkpoint, tmp_path / "clean", how)
    wanted, resumed = files_of(tmp_path / "clean"), set()
    for nth in [*range(14), *range(14, 200, 4)]:  # every one at the start, where files are made
        out = quick_path / f"out{nth}"
        count = interrupted(checkpoint, out, how, monkeypatch, nth)
        if not (out / "MANIFEST").exists():
            resumed.add(pack(checkpoint, out, how).resumed_rows)
            assert files_of(out) == wanted, nth
        if count <= nth:
            break
    assert 20 < nth < 190 and len(resumed) >= 4 and 0 in resumed


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_what_was_torn_or_damaged_meanwhile_is_written_anew(checkpoint, tmp_path, how, monkeypatch):
    pack(checkpoint, tmp_path / "clean", how)
    wanted = files_of(tmp_path / "clean")
    for number, spoil in enumerate((b"", b"cut", b"junk", b"flip")):
        out = tmp_path / f"out{number}"
        interrupted(checkpoint, out, how, monkeypatch, 6, only_rows=True)  # the head and five chunks were written
        path = out / "base-000001.rows"
        data = bytearray(path.read_bytes())
        if spoil == b"cut":
            del data[-50:]
        elif spoil == b"junk":
            data += b"x" * 5000
        elif spoil == b"flip":
            data[len(data) // 2] ^= 4
        path.write_bytes(data)
        report = pack(checkpoint, out, how)
        assert {b"": 500, b"cut": 499, b"junk": 500}.get(spoil, report.resumed_rows) == report.resumed_rows
        assert 0 < report.resumed_rows <= 500 and files_of(out) == wanted, spoil
    assert report.resumed_rows < 400


def test_lengths_that_were_not_written_are_missing_rows(checkpoint, tmp_path, monkeypatch):
    how = HOWS["zstd"]
    pack(checkpoint, tmp_path / "clean", how)
    interrupted(checkpoint, tmp_path / "out", how, monkeypatch, 6, only_rows=True)
    lengths = tmp_path / "out" / "runs" / "lengths"
    lengths.write_bytes(lengths.read_bytes()[:-301])
    assert pack(checkpoint, tmp_path / "out", how).resumed_rows == 349
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


def test_another_conversion_does_not_go_on_with_it(checkpoint, tmp_path, monkeypatch):
    out, how = tmp_path / "out", HOWS["int8"]
    interrupted(checkpoint, out, how, monkeypatch, 3, only_rows=True)
    for other in (HOWS["as_it_is"], how | {"codec": "int4"}):
        with pytest.raises(IncompleteStore, match="never finished"):
            pack(checkpoint, out, other)
    with pytest.raises(IncompleteStore):
        importing.import_checkpoint(checkpoint, out)
    file = next(checkpoint.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IncompleteStore):
        pack(checkpoint, out, how)
    assert pack(checkpoint, out, how, restart=True).resumed_rows == 0
    with ngs.open(out) as store:
        assert store.verify() == []


def test_a_row_written_anew_between_kill_and_resume_is_never_served_as_it_was(checkpoint, tmp_path, monkeypatch):
    """Row 12 lies in no page that tells one checkpoint from another, and is packed before the kill."""
    out, how = tmp_path / "out", HOWS["as_it_is"]
    file = next(checkpoint.glob("*.safetensors"))
    pack(checkpoint, tmp_path / "before", how)
    with ngs.open(tmp_path / "before") as store:
        old, new = (store.rows_encoded([row]).tobytes() for row in (12, 500))
    interrupted(checkpoint, out, how, monkeypatch, 3, only_rows=True)
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    with pytest.raises(IncompleteStore) as refused:
        pack(checkpoint, out, how)
    assert "--restart" in refused.value.hint
    pack(checkpoint, out, how, restart=True)
    with ngs.open(out) as store:
        assert store.rows_encoded([12]).tobytes() == new


def test_a_checkpoint_that_was_written_to_is_not_gone_on_with_wherever_that_was(checkpoint, tmp_path, monkeypatch):
    interrupted(checkpoint, tmp_path / "out", HOWS["int8"], monkeypatch, 3, only_rows=True)
    file = next(checkpoint.glob("*.safetensors"))
    status = file.stat()
    os.utime(
        file, ns=(status.st_atime_ns, status.st_mtime_ns + 1)
    )  # as a write to a page that no sample looks at would
    with pytest.raises(IncompleteStore):
        pack(checkpoint, tmp_path / "out", HOWS["int8"])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert pack(checkpoint, tmp_path / "out", HOWS["int8"]).resumed_rows > 0


def test_a_restart_begins_anew_and_wrong_use_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    interrupted(checkpoint, tmp_path / "out", HOWS["int8"], monkeypatch, 4, only_rows=True)
    assert pack(checkpoint, tmp_path / "out", HOWS["int8"], restart=True).resumed_rows == 0
    assert not (tmp_path / "out" / "runs").exists()
    monkeypatch.setattr(importing.compress, "MAX_COMPRESSED_ROW_BYTES", 100)
    with pytest.raises(UsageError, match="cannot be compressed"):
        pack(checkpoint, tmp_path / "other", HOWS["zstd"])


def test_a_conversion_that_was_killed_goes_on(checkpoint, tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from ngramstore import files
from ngramstore.store.imports import importing, job
job._CHUNK_BYTES = 100 * 512
seen = 0
def die(operation, path):
    global seen
    seen += operation == "write" and path.suffix == ".rows"
    if seen == 5:
        os.kill(os.getpid(), signal.SIGKILL)
files.observe = die
importing.import_checkpoint(sys.argv[1], sys.argv[2], pack=True, codec="int8", compression="none")
"""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, str(checkpoint), str(out)], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(IncompleteStore):
        ngs.open(out)
    assert pack(checkpoint, out, HOWS["int8"]).resumed_rows == 300
    pack(checkpoint, tmp_path / "clean", HOWS["int8"])
    assert files_of(out) == files_of(tmp_path / "clean")
    with ngs.open(out) as store:
        assert np.isfinite(store.rows(np.arange(len(store)))).all()


def rows_begun(path: Path, dictionary: bytes | None = None, *, width: int = 8, num_rows: int = 0) -> ResumableRows:
    """Rows of a small conversion as they are found, and `num_rows` more."""

    def as_they_are(rows):
        return rows.reshape(-1), np.full(len(rows), width)

    rows = ResumableRows(path, width, {"a": 1}, dictionary=dictionary, compress=as_they_are if dictionary else None)
    if num_rows:
        rows.write(np.random.default_rng(num_rows).integers(0, 256, (num_rows, width), np.uint8))
    return rows


@pytest.mark.parametrize("at", ["all", "dictionary", "one byte", "header"])
@pytest.mark.parametrize("dictionary", [None, b"D" * 5000], ids=["as_it_is", "zstd"])
def test_a_head_that_a_power_cut_took_is_written_again(tmp_path, dictionary, at):
    stamp = FileStamp(bytes(16), 1)
    for name in ("clean", "out"):
        (tmp_path / name).mkdir()
        rows_begun(tmp_path / name / "base-000001.rows", dictionary, num_rows=30).close()
    path = tmp_path / "out" / "base-000001.rows"
    data = bytearray(path.read_bytes())
    if at == "all":
        del data[:]
    elif at == "dictionary":
        data[4096:9096] = bytes(5000) if dictionary else data[4096:9096]
    else:
        data[6000 if at == "one byte" and dictionary else 100] ^= 1
    path.write_bytes(data)
    rows, clean = rows_begun(path, dictionary), rows_begun(tmp_path / "clean" / "base-000001.rows", dictionary)
    assert rows.num_rows == (0 if at == "all" else 30) and clean.num_rows == 30
    if at == "all":
        rows.close()
        rows = rows_begun(path, dictionary, num_rows=30)
    assert rows.finish(stamp) == clean.finish(stamp)
    assert path.read_bytes() == clean.path.read_bytes()


@pytest.mark.parametrize("keeps", [0, 4096, 5000])
def test_a_store_packed_after_a_power_cut_opens(checkpoint, tmp_path, monkeypatch, keeps):
    """The state was made durable, the rows beside it were not."""
    out, how = tmp_path / "out", HOWS["zstd"]
    pack(checkpoint, tmp_path / "clean", how)
    interrupted(checkpoint, out, how, monkeypatch, 4, only_rows=True)
    os.truncate(out / "base-000001.rows", keeps)
    assert pack(checkpoint, out, how).resumed_rows == 0
    assert files_of(out) == files_of(tmp_path / "clean")
    with ngs.open(out) as store:
        assert store.verify() == []


@pytest.mark.parametrize("dictionary", [None, b"D" * 50], ids=["as_it_is", "zstd"])
def test_rows_are_found_again_in_small_reads_that_may_come_short(tmp_path, monkeypatch, dictionary):
    """The system reads 2 GiB at most at once; nothing is read, or held, in pieces of more than the chunk."""
    path, asked, pread = tmp_path / "base-000001.rows", [], os.pread
    rows_begun(path, dictionary, width=1000, num_rows=100).close()
    data = path.read_bytes()

    def short(fd: int, size: int, position: int) -> bytes:
        asked.append(size)
        return pread(fd, min(size, 700), position)

    monkeypatch.setattr(resumable, "_CHUNK_BYTES", 9000)
    monkeypatch.setattr(os, "pread", short)
    rows = rows_begun(path, dictionary, width=1000)
    assert rows.num_rows == 100 and path.read_bytes() == data and max(asked) <= 9000
    rows.close()
    os.truncate(path, len(data) - 41 * 1004 - 1)
    rows = rows_begun(path, dictionary, width=1000)
    assert rows.num_rows == 58 and path.read_bytes() == data[: -42 * 1004]
    rows.close()


def test_lengths_that_are_damaged_end_what_is_found(tmp_path):
    path = tmp_path / "base-000001.rows"
    rows_begun(path, b"D" * 50, num_rows=30).close()
    lengths = path.parent / "runs" / "lengths"
    for row, length in ((20, 65535), (10, 0), (0, 9)):
        data = bytearray(lengths.read_bytes())
        data[2 * row : 2 * row + 2] = length.to_bytes(2, "little")
        lengths.write_bytes(data)
        rows = rows_begun(path, b"D" * 50)
        assert rows.num_rows == row
        rows.close()


@pytest.mark.parametrize("name", ["base-000001.rows", "lengths"])
def test_rows_stay_where_what_follows_them_cannot_be_cut_off(tmp_path, monkeypatch, name):
    path = tmp_path / "base-000001.rows"
    rows_begun(path, b"D" * 50, num_rows=30).close()
    with open(path, "ab") as file:
        file.write(b"torn")

    def fail(operation: str, place: Path) -> None:
        if (operation, place.name) == ("truncate", name):
            raise OSError(errno.EIO, "injected", str(place))

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        with pytest.raises(OSError, match=f"injected.*{name}"):
            rows_begun(path, b"D" * 50)
    rows = rows_begun(path, b"D" * 50)
    assert rows.num_rows == 30 and path.stat().st_size == rows.position
    rows.close()


def test_a_row_wider_than_a_chunk_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "_CHUNK_BYTES", 10)
    rows_begun(tmp_path / "base-000001.rows", width=300, num_rows=5).close()
    rows = rows_begun(tmp_path / "base-000001.rows", width=300)
    assert rows.num_rows == 5
    rows.close()


class Trouble:
    """Lets the system fail once in the n-th of some operation, as `fails` says."""

    def __init__(self, nth: int, error: int) -> None:
        self.nth, self.error, self.count = nth, error, 0

    def fails(self, is_it: bool) -> bool:
        self.count += is_it
        return is_it and self.count == self.nth + 1

    def observe(self, operation: str, path: Path) -> None:
        if self.fails(operation == "write" and path.suffix == ".rows"):
            raise OSError(self.error, os.strerror(self.error), str(path))


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_an_error_of_the_system_takes_no_packed_row(checkpoint, tmp_path, monkeypatch, error):
    out, how = tmp_path / "out", HOWS["zstd"]
    pack(checkpoint, tmp_path / "clean", how)
    for first in (0, 300, 600):
        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", Trouble(4 if first == 0 else 3, error).observe)
            with pytest.raises(OSError if error in (errno.ENOSPC, errno.EIO) else UsageError):
                pack(checkpoint, out, how)
    assert pack(checkpoint, out, how).resumed_rows == 900
    assert files_of(out) == files_of(tmp_path / "clean")


def test_too_many_open_files_take_no_packed_row(checkpoint, tmp_path, quick_path, monkeypatch):
    """Whichever file it is that cannot be opened, ours or the checkpoint's."""
    how, open_file = HOWS["int8"], os.open
    interrupted(checkpoint, tmp_path / "begun", how, monkeypatch, 6, only_rows=True)
    pack(checkpoint, tmp_path / "clean", how)
    wanted = files_of(tmp_path / "clean")
    for nth in range(100):
        out, trouble = quick_path / f"out{nth}", Trouble(nth, errno.EMFILE)
        shutil.copytree(tmp_path / "begun", out)

        def opened(path, *options, trouble=trouble, **more):
            if trouble.fails(True):
                raise OSError(trouble.error, os.strerror(trouble.error), str(path))
            return open_file(path, *options, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", opened)
            try:
                pack(checkpoint, out, how)
            except (OSError, NgramStoreError):
                if not (out / "MANIFEST").exists():  # else only what is of no use any more could not be removed
                    assert pack(checkpoint, out, how).resumed_rows >= 500, nth
        assert {name: (out / name).read_bytes() for name in wanted} == wanted, nth
        if trouble.count <= nth:
            break
    assert 8 < nth < 99


@pytest.mark.parametrize("name", ["state.json", "base-000001.rows"])
def test_a_state_that_cannot_be_read_is_not_taken_for_another_conversion(checkpoint, tmp_path, monkeypatch, name):
    """At any time: while it is found out what is there, and while it is taken up."""
    out, how = tmp_path / "out", HOWS["int8"]
    interrupted(checkpoint, out, how, monkeypatch, 6, only_rows=True)
    read, stat = Path.read_bytes, os.stat
    for nth in range(4):
        trouble = Trouble(nth, errno.EACCES)

        def read_bytes(path, trouble=trouble):
            if trouble.fails(path.name == name):
                raise OSError(trouble.error, os.strerror(trouble.error), str(path))
            return read(path)

        def stat_of(path, trouble=trouble, **options):
            if trouble.fails(isinstance(path, os.PathLike) and Path(path).name == name):
                raise OSError(trouble.error, os.strerror(trouble.error), str(path))
            return stat(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read_bytes)
            patch.setattr(os, "stat", stat_of)
            with pytest.raises(UsageError, match="no permission"):
                pack(checkpoint, out, how)
    assert pack(checkpoint, out, how).resumed_rows == 500


def test_rows_of_a_checkpoint_that_is_written_to_meanwhile_are_thrown_away(checkpoint, tmp_path, monkeypatch):
    """The same command would mix them with the rows that are there now."""
    out, how, source = tmp_path / "out", HOWS["as_it_is"], next(checkpoint.glob("*.safetensors"))

    def touch(operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".rows":
            os.utime(source, ns=(1, path.stat().st_size))

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", touch)
        with pytest.raises(FormatError, match="was changed while"):
            pack(checkpoint, out, how)
    assert os.listdir(out) == ["LOCK"]


def test_rows_that_a_codec_refuses_leave_nothing(checkpoint, tmp_path, monkeypatch):
    """Seen in the sample or only while packing: no later try would get past them."""
    source = next(checkpoint.glob("*.safetensors"))
    source.write_bytes(source.read_bytes()[:-512] + b"\xff" * 512)
    for number, rows in enumerate((4096, 16)):
        monkeypatch.setattr("ngramstore.store.imports.report._SAMPLE_ROWS", rows)
        with pytest.raises(UsageError, match="column 0: nan"):
            pack(checkpoint, tmp_path / f"out{number}", HOWS["int8"])
        assert os.listdir(tmp_path / f"out{number}") == ["LOCK"]


def test_stored_sizes_reach_the_index_in_many_pieces(checkpoint, tmp_path, monkeypatch):
    pack(checkpoint, tmp_path / "clean", HOWS["zstd"])
    monkeypatch.setattr(resumable, "_CHUNK_ROWS", 64)
    pack(checkpoint, tmp_path / "pieces", HOWS["zstd"])
    assert files_of(tmp_path / "pieces") == files_of(tmp_path / "clean")
