"""Files: published whole or not at all, durable in the right order, locked, and clear when the disk is full."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ngramstore import file_writer, files
from ngramstore.errors import DamagedStore, DiskFull, UsageError, WriterLocked
from ngramstore.file_writer import FileWriter, aligned_bytes
from ngramstore.files import (
    our_errors,
    publish,
    publish_pieces,
    read_around_holes,
    read_exactly,
    remove,
    remove_if_possible,
    require_space,
    write_all,
)
from ngramstore.store.journal.ack import no_writer
from ngramstore.store.layers.in_use import lock_shared, remove_unless_read
from ngramstore.writer_lock import WriterLock


@pytest.fixture
def seen(monkeypatch):
    """The operations that went through `observe`, as (operation, file name)."""
    operations = []
    monkeypatch.setattr(files, "observe", lambda operation, path: operations.append((operation, path.name)))
    return operations


def fail_at(monkeypatch, operation: str, code: int) -> None:
    """Let the first such operation fail as the system would."""

    def observe(what, path):
        if what == operation:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "observe", observe)


def test_publish_replaces_and_syncs_in_order(tmp_path, seen):
    path = tmp_path / "F"
    path.write_bytes(b"old")
    publish(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["F"]
    assert seen == [("write", "F.tmp"), ("fsync", "F.tmp"), ("rename", "F"), ("fsync", tmp_path.name)]


def test_pieces_are_published_as_one_file(tmp_path, seen):
    publish_pieces(tmp_path / "F", (bytes([number]) * number for number in range(3)))
    assert (tmp_path / "F").read_bytes() == b"\1\2\2"
    assert seen[-3:] == [("fsync", "F.tmp"), ("rename", "F"), ("fsync", tmp_path.name)]


def test_a_file_is_cut_or_stays_as_it_is(tmp_path, seen, monkeypatch):
    path = tmp_path / "F"
    path.write_bytes(b"12345")
    with open(path, "r+b") as file:
        files.truncate(file.fileno(), 3, path)
        assert (path.read_bytes(), seen) == (b"123", [("truncate", "F")])
        fail_at(monkeypatch, "truncate", errno.EIO)
        with pytest.raises(OSError, match=str(path)):
            files.truncate(file.fileno(), 1, path)
    assert path.read_bytes() == b"123"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC])
def test_what_cannot_be_removed_stays_and_is_no_error(tmp_path, monkeypatch, code):
    (tmp_path / "F").write_bytes(b"old")
    fail_at(monkeypatch, "unlink", code)
    assert not remove_if_possible(tmp_path / "F")
    assert (tmp_path / "F").exists()


@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_publication_that_fails_leaves_the_old_bytes(tmp_path, monkeypatch, operation):
    path = tmp_path / "F"
    path.write_bytes(b"old")
    fail_at(monkeypatch, operation, errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        publish(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_clear_error(tmp_path, code):
    with pytest.raises(DiskFull, match="no space left") as caught, our_errors(tmp_path / "F"):
        raise OSError(code, os.strerror(code))
    assert isinstance(caught.value, OSError)
    assert str(tmp_path / "F") in str(caught.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission_is_a_usage_error(tmp_path, code):
    with pytest.raises(UsageError, match="no permission"), our_errors(tmp_path / "F"):
        raise OSError(code, os.strerror(code))


def test_other_errors_and_our_own_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), our_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")
    full = DiskFull("full")
    with pytest.raises(DiskFull) as caught, our_errors(tmp_path):
        raise full
    assert caught.value is full


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_write_that_finds_no_space_says_so():
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(DiskFull):
            files.write_all(fd, b"x", files.Path("/dev/full"))
    finally:
        os.close(fd)


def test_require_space_refuses_what_cannot_end(tmp_path):
    require_space(tmp_path, 1, "a test")
    with pytest.raises(DiskFull, match="a test needs about"):
        require_space(tmp_path, 1 << 62, "a test")


@pytest.mark.parametrize("sizes", [[0], [1], [3, 0, 5], [300_000, 7, 2_000_000, 1], [1 << 18, 1 << 18] * 3])
def test_a_writer_writes_what_it_is_given(tmp_path, sizes):
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 256, size).astype(np.uint8) for size in sizes]
    writer = FileWriter(tmp_path / "F")
    for i, piece in enumerate(pieces):
        writer.write(piece if i % 2 else piece.tobytes())
    assert writer.position == sum(sizes)
    assert writer.finish() == sum(sizes)
    assert (tmp_path / "F").read_bytes() == b"".join(piece.tobytes() for piece in pieces)


def test_what_is_open_is_never_written_over(tmp_path):
    """A file of the same name may be mapped by a reader, or be a link: the new one is another file."""
    (tmp_path / "F").write_bytes(b"of a reader")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"of somebody")
    with open(tmp_path / "F", "rb") as reader:
        for name in ("F", "link"):
            with FileWriter(tmp_path / name) as writer:
                writer.write(b"new")
                writer.finish()
            assert (tmp_path / name).read_bytes() == b"new"
        assert reader.read() == b"of a reader"
    assert (tmp_path / "elsewhere").read_bytes() == b"of somebody"


def test_a_writer_pads_rewrites_and_reads_back(tmp_path):
    with FileWriter(tmp_path / "F") as writer:
        writer.write(bytes(8))
        writer.write(np.arange(3, dtype="<u4"))
        writer.pad(16)
        assert writer.position == 32
        writer.pad(16)
        assert writer.position == 32
        writer.rewrite(2, b"ab")
        assert writer.read(0, 12) == b"\0\0ab\0\0\0\0\0\0\0\0"
        writer.write(b"end")
        assert writer.finish() == 35
    assert (tmp_path / "F").read_bytes() == b"\0\0ab" + bytes(8) + b"\1\0\0\0\2\0\0\0" + bytes(12) + b"end"


SIZES = [[0], [4096], [1, 4095, 3], [4 << 20, 4 << 20], [5 << 20, 1, 9 << 20, 4096], [4096, 8192, 7]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("is_aligned", [True, False])
def test_an_uncached_writer_writes_what_it_is_given(tmp_path, sizes, is_aligned):
    rng = np.random.default_rng(0)
    writer = FileWriter(tmp_path / "F", is_uncached=True)
    wanted = b""
    for size in sizes:
        buffer = aligned_bytes(size + 4096)[0 if is_aligned else 1 :][:size]
        buffer[:] = rng.integers(0, 256, size)
        writer.write(buffer)
        wanted += buffer.tobytes()
    assert writer.position == len(wanted)
    writer.rewrite(0, b"head"[: len(wanted)])
    writer.write(b"behind")
    assert writer.finish() == len(wanted) + 6
    assert (tmp_path / "F").read_bytes() == b"head"[: len(wanted)] + wanted[4:] + b"behind"


def test_what_an_uncached_writer_is_given_may_change_afterwards(tmp_path):
    buffer = aligned_bytes(3 * 4096)
    writer = FileWriter(tmp_path / "F", is_uncached=True)
    for value in (1, 2, 3):
        buffer[:] = value
        writer.write(buffer[: value * 4096 - value])
    writer.finish()
    assert (tmp_path / "F").read_bytes() == b"".join(bytes([value]) * (value * 4096 - value) for value in (1, 2, 3))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("num_refusing", [0, 1, 2])
@pytest.mark.parametrize("written", [0, 4096 + 512])
def test_what_a_filesystem_refuses_is_written_in_the_next_way(tmp_path, monkeypatch, code, num_refusing, written):
    """Pages dropped once written, direct writes, the page cache; also where it took a part first."""
    ways = []

    def written_by(way: str, fd: int, data: memoryview, really_write: Callable) -> int:
        ways.append(way)
        if len(set(ways)) <= num_refusing:
            if written and ways.count(way) == 1:
                return os.pwrite(fd, data[:4096], 0) and os.lseek(fd, written, os.SEEK_SET)
            raise OSError(code, "refused")
        return really_write(data)

    def write(fd: int, data: memoryview) -> int:
        way = "direct" if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT else "cached"
        return written_by(way, fd, data, lambda data: really_write(fd, data))

    def pwritev(fd: int, parts: list, position: int, flags: int) -> int:
        assert (position, flags) == (-1, 0x80)
        return written_by("dropped", fd, parts[0], lambda data: really_write(fd, data))

    really_write = os.write
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "pwritev", pwritev)
    data = np.random.default_rng(0).integers(0, 256, (9 << 20) + 5).astype(np.uint8)
    writer = FileWriter(tmp_path / "F", is_uncached=True)
    writer.write(data)
    writer.finish()
    assert list(dict.fromkeys(ways)) == [*["dropped", "direct", "cached"][: num_refusing + 1], "cached"][:3]
    assert (tmp_path / "F").read_bytes() == data.tobytes()


@pytest.mark.parametrize("pieces", [[4 << 20], [4096, 8 << 20], [(4 << 20) + 5]], ids=str)
def test_after_its_last_piece_no_writer_writes_directly(tmp_path, monkeypatch, pieces):
    """Whole blocks leave no rest; what is written over then need not be aligned."""

    def refuse(*args) -> int:
        raise OSError(errno.EOPNOTSUPP, "refused")

    monkeypatch.setattr(os, "pwritev", refuse)
    writer = FileWriter(tmp_path / "F", is_uncached=True)
    for size in pieces:
        piece = aligned_bytes(size)
        piece[:] = 7
        writer.write(piece)
    writer.rewrite(0, b"head")
    assert not fcntl.fcntl(writer.fd, fcntl.F_GETFL) & os.O_DIRECT
    writer.finish()
    assert (tmp_path / "F").read_bytes() == b"head" + b"\7" * (sum(pieces) - 4)


def test_a_python_that_knows_no_flags_of_writes_makes_direct_ones(tmp_path, monkeypatch):
    def fail(*args) -> int:
        raise NotImplementedError("pwritev: not supported")

    monkeypatch.setattr(os, "pwritev", fail)
    data = np.random.default_rng(0).integers(0, 256, (5 << 20) + 5).astype(np.uint8)
    with FileWriter(tmp_path / "F", is_uncached=True) as writer:
        writer.write(data)
        writer.finish()
    assert (tmp_path / "F").read_bytes() == data.tobytes()


def test_large_aligned_pieces_are_written_where_they_lie(tmp_path, monkeypatch):
    """Also behind a header of one page: not copied into a buffer first."""
    written = []

    def note(fd: int, data: memoryview, path: Path, flags: int = 0) -> None:
        written.append(np.frombuffer(data, np.uint8).ctypes.data)
        write_all(fd, data, path, flags)

    monkeypatch.setattr(file_writer, "write_all", note)
    pieces = [aligned_bytes(size) for size in (4 << 20, 774 * 4096, 8 << 20)]
    for value, piece in enumerate(pieces):
        piece[:] = value + 1
    with FileWriter(tmp_path / "F", is_uncached=True) as writer:
        writer.write(bytes(4096))
        for piece in pieces:
            writer.write(piece)
        writer.write(b"end")
        writer.finish()
    assert {piece.ctypes.data for piece in pieces} <= set(written)
    assert (tmp_path / "F").read_bytes() == bytes(4096) + b"".join(piece.tobytes() for piece in pieces) + b"end"


@pytest.mark.parametrize("call", ["write", "fsync", "pwritev"])
def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch, call):
    """What the system says of a descriptor does not."""

    def fail(*args) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)

    def write(writer: FileWriter) -> None:
        writer.write(bytes((5 << 20) + 1))
        writer.finish()

    writer = FileWriter(tmp_path / "the-file", is_uncached=True)
    with pytest.raises(OSError, match="the-file") as raised:
        write(writer)
    assert raised.value.errno == errno.EIO


def test_another_error_is_not_a_reason_to_write_in_another_way(tmp_path, monkeypatch):
    tried = []

    def fail(*args) -> int:
        tried.append(args)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwritev", fail)
    with FileWriter(tmp_path / "F", is_uncached=True) as writer, pytest.raises(OSError, match="broken"):
        writer.write(bytes(5 << 20))
    assert len(tried) == 1


def test_where_only_ordinary_writes_are_possible_a_writer_makes_those(tmp_path, monkeypatch):
    def refuse(fd: int, is_direct: bool) -> None:
        if is_direct:
            raise OSError(errno.EINVAL, "refused")

    monkeypatch.setattr(sys, "platform", "elsewhere")
    monkeypatch.setattr(file_writer, "_set_direct", refuse)
    with FileWriter(tmp_path / "F", is_uncached=True) as writer:
        writer.write(bytes(5 << 20))
        assert writer.finish() == 5 << 20
    assert (tmp_path / "F").read_bytes() == bytes(5 << 20)


def test_finishing_syncs_after_the_last_write(tmp_path, seen):
    writer = FileWriter(tmp_path / "F")
    writer.write(b"abc")
    writer.rewrite(0, b"A")
    writer.finish()
    assert seen == [("write", "F"), ("write", "F"), ("fsync", "F")]


def test_read_exactly_never_gives_fewer_bytes(tmp_path):
    path = tmp_path / "F"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert read_exactly(fd, 4, 3, path) == b"3456"
        assert read_exactly(fd, 0, 99, path) == b""
        with pytest.raises(DamagedStore, match="ends at byte 10, 2 bytes too early"):
            read_exactly(fd, 4, 8, path)
    finally:
        os.close(fd)


def test_remove_takes_files_trees_and_nothing(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    remove(tmp_path / "link")
    assert (tmp_path / "d" / "f").exists()
    remove(tmp_path / "d")
    remove(tmp_path / "d")
    assert os.listdir(tmp_path) == []


def test_one_writer_at_a_time(tmp_path):
    first = WriterLock(tmp_path / "LOCK")
    with pytest.raises(WriterLocked, match=str(os.getpid())):
        WriterLock(tmp_path / "LOCK")
    first.release()
    first.release()
    WriterLock(tmp_path / "LOCK").release()


def test_a_lock_that_was_released_names_nobody(tmp_path):
    """A verify holds it shared, and writes nothing."""
    path = tmp_path / "LOCK"
    WriterLock(path).release()
    with no_writer(path), pytest.raises(WriterLocked, match="held by a writer, or by a verify") as caught:
        WriterLock(path)
    assert str(os.getpid()) not in caught.value.message
    path.write_text("4194304\n")  # of a process that was killed
    with no_writer(path), pytest.raises(WriterLocked, match="4194304, or if that has ended by a verify"):
        WriterLock(path)
    lock = WriterLock(path)
    for _ in range(2):  # one that was refused takes the name of nobody
        with pytest.raises(WriterLocked, match=f"held by process {os.getpid()}, or if that has ended by a verify"):
            WriterLock(path)
    if (child := os.fork()) == 0:
        del lock
        os._exit(0)
    os.waitpid(child, 0)
    assert path.read_text() == f"{os.getpid()}\n", "a fork names its parent still"
    lock.release()


def test_the_system_releases_the_lock_of_a_dead_process(tmp_path):
    code = f"import os; from pathlib import Path; from ngramstore.writer_lock import WriterLock; WriterLock(Path({str(tmp_path / 'LOCK')!r})); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    WriterLock(tmp_path / "LOCK").release()


def test_a_file_that_is_read_is_not_removed(tmp_path):
    path = tmp_path / "F"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    lock_shared(fd)
    remove_unless_read(path)
    assert path.exists()
    os.close(fd)
    remove_unless_read(path)
    assert not path.exists()
    remove_unless_read(path)  # gone already


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_superseded_file_that_cannot_be_opened_stays_and_is_no_error(tmp_path, monkeypatch, code):
    (tmp_path / "F").write_bytes(b"x")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "open", refuse)
        remove_unless_read(tmp_path / "F")
    assert (tmp_path / "F").exists()


def fail_to_read(monkeypatch, code: int, first: int, end: int) -> None:
    """From here on the system has an error for bytes first to end of every file, and gives what lies before and behind."""
    real = os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if first <= at < end:
            raise OSError(code, os.strerror(code))
        return real(fd, min(size, first - at) if at < first else size, at)

    monkeypatch.setattr(os, "pread", pread)


def test_a_byte_that_cannot_be_read_is_damage_that_names_it(tmp_path, monkeypatch):
    path = tmp_path / "F"
    path.write_bytes(bytes(9000))
    fail_to_read(monkeypatch, errno.EIO, 4096, 8192)
    with open(path, "rb") as file:
        assert read_exactly(file.fileno(), 4096, 0, path) == bytes(4096)
        with pytest.raises(DamagedStore, match=r"F: byte 4,096 cannot be read: Input/output error"):
            read_exactly(file.fileno(), 5000, 10, path)
        fail_to_read(monkeypatch, errno.ENOMEM, 0, 9000)
        with pytest.raises(OSError, match="allocate"):
            read_exactly(file.fileno(), 5000, 10, path)


def test_reading_goes_on_behind_pages_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "F"
    data = np.random.default_rng(0).integers(1, 256, 20_000).astype(np.uint8).tobytes()
    path.write_bytes(data)
    fail_to_read(monkeypatch, errno.EIO, 4096, 12288)
    with open(path, "rb") as file:
        wanted = data[:4096] + bytes(8192) + data[12288:]
        for begin, end, holes in (
            (0, 20_000, [(4096, 12288)]),
            (5000, 25_000, [(5000, 12288)]),
            (100, 9000, [(4096, 9000)]),
            (12288, 20_000, []),
            (7, 7, []),
        ):
            assert read_around_holes(file.fileno(), end - begin, begin) == (wanted[begin:end], holes)


@pytest.mark.parametrize("code", [0, errno.ENOTSUP])
def test_where_the_drive_can_be_asked_to_empty_its_cache_it_is(tmp_path, monkeypatch, code):
    """macOS: its fsync leaves data there."""
    asked, synced = [], []

    def ask(fd, command):
        asked.append((os.readlink(f"/proc/self/fd/{fd}"), command))
        if code:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", ask)
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    publish(tmp_path / "F", b"new")
    both = [str(tmp_path / "F.tmp"), str(tmp_path)]
    assert asked == [(path, 51) for path in both]
    assert synced == (both if code else [])
