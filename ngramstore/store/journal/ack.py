"""ACK: how far the journal had come, so that one that went back in time is noticed.

The file ACK beside RocksDB's own files says how many appends were acknowledged and synced, on which boot of the machine,
and which state of the store they change.
RocksDB opens silently with less when its write-ahead log is deleted, emptied or cut; ACK tells that apart from a power cut.
Implements docs/journal.md, section "ACK".
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ngramstore.errors import DamagedJournal, UnsupportedVersion, WriterLocked
from ngramstore.files import NO_LOCKS, OwnsFd, fsync, fsync_directory, our_errors, publish, write_at
from ngramstore.layout import Field, Layout

ACK_NAME = "ACK"
ACK_MAGIC = b"NGSJACK\n"
ACK_VERSION = 2
ACK_SLOT_BYTES = 512  # a disk sector: one torn write damages one slot
ACK_SLOT = Layout(
    "journal ACK slot",
    (
        Field("magic", "8s", "`NGSJACK\\n`"),
        Field("version", "H", "2"),
        Field("width", "H", "tokens a value has room for"),
        Field("row_bytes", "I", "bytes of an encoded row"),
        Field("counter", "Q", "writes of this file so far; the slot is `counter % 2`"),
        Field("acknowledged", "Q", "appends that have returned"),
        Field("synced", "Q", "appends that a power cut cannot lose"),
        Field("num_changes", "Q", "changes of the acknowledged appends"),
        Field("boot", "16s", "the kernel's boot id, or zeros where there is none"),
        Field("store_state", "16s", "the published state of the store that the appends change: its digest"),
        Field("checksum", "I", "CRC-32 of the bytes before"),
    ),
)
ACK_PUBLISHED = Layout(
    "journal ACK publication",
    (
        Field("published_as", "16s", "the published state that holds all these changes: its digest, or zeros"),
        Field("checksum", "I", "CRC-32 of the slot's bytes before"),
    ),
)
"""Follows a slot at once; all else there is as it was without it, so earlier releases read the slot."""
_CHECKSUM_AT = (64, ACK_SLOT.size - 4)  # of version 1, and of this one


@dataclass(frozen=True)
class Ack:
    """The content of one slot."""

    width: int
    row_bytes: int
    counter: int = 0
    acknowledged: int = 0
    synced: int = 0
    num_changes: int = 0
    boot: bytes = bytes(16)
    store_state: bytes = bytes(16)
    published_as: bytes = bytes(16)

    @property
    def is_of_this_boot(self) -> bool:
        """Whether the machine has not been started anew since, for certain."""
        return self.boot == boot_id() != bytes(16)

    def pack(self) -> bytes:
        fields = vars(self) | {"magic": ACK_MAGIC, "version": ACK_VERSION}
        published_as = fields.pop("published_as")
        slot = ACK_SLOT.sealed(**fields)
        return (slot + ACK_PUBLISHED.sealed(zlib.crc32(slot), published_as=published_as)).ljust(ACK_SLOT_BYTES, b"\0")

    @classmethod
    def unpack(cls, slot: bytes) -> Ack | None:
        """None where the slot is torn or damaged. Raises UnsupportedVersion."""
        data = slot[: ACK_SLOT.size]
        is_whole = [zlib.crc32(data[:end]).to_bytes(4, "little") == data[end : end + 4] for end in _CHECKSUM_AT]
        if len(data) != ACK_SLOT.size or not any(is_whole):
            return None
        fields = ACK_SLOT.unpack(data)
        if fields.pop("magic") != ACK_MAGIC:
            return None
        version = int(fields.pop("version"))
        if version != ACK_VERSION or not is_whole[-1]:
            raise UnsupportedVersion(
                f"journal version {version}, this release reads {ACK_VERSION}",
                hint="publish its changes (`flush`) with the release that wrote it",
            )
        end = ACK_SLOT.size + ACK_PUBLISHED.size
        more = ACK_PUBLISHED.unpack(slot[ACK_SLOT.size : end])
        is_told = more["checksum"] == zlib.crc32(slot[: end - 4])
        fields["published_as"] = more["published_as"] if is_told else bytes(16)
        del fields["checksum"]
        return cls(**fields)  # type: ignore[arg-type]


class AckFile(OwnsFd):
    """ACK, open and locked: one process writes a journal."""

    def __init__(self, path: Path, fd: int, ack: Ack) -> None:
        self.path = path
        self.ack = ack
        self.fd = fd

    @classmethod
    def create(cls, directory: Path, *, width: int, row_bytes: int, store_state: bytes) -> None:
        """Make the directory, if need be, and in it a first ACK: durable, whole or not at all. Raises DiskFull, UsageError."""
        ack = Ack(width=width, row_bytes=row_bytes, counter=1, boot=boot_id(), store_state=store_state)
        with our_errors(directory):
            directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)  # also of one that was there: who made it may have been killed before this
        publish(directory / ACK_NAME, replace(ack, counter=0).pack() + ack.pack())

    @classmethod
    def open(cls, directory: Path) -> AckFile:
        """Raises DamagedJournal, UnsupportedVersion, WriterLocked, UsageError."""
        path = directory / ACK_NAME
        with _opened(path):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WriterLocked(f"{directory}: another writer holds the journal") from error
            return cls(path, fd, read_ack(path))
        except BaseException:
            os.close(fd)
            raise

    def write(self, *, sync: bool = False, **changed: int | bytes) -> None:
        """Replace the older slot; one that does not say so is published nowhere. Raises DiskFull."""
        changed = {"published_as": bytes(16), **changed}
        ack = replace(self.ack, counter=self.ack.counter + 1, **changed)  # type: ignore[arg-type]
        write_at(self.fd, ack.pack(), (ack.counter % 2) * ACK_SLOT_BYTES, self.path)
        if sync:
            fsync(self.fd, self.path)
        self.ack = ack


def read_ack(path: Path) -> Ack:
    """The newer good slot of ACK. Raises DamagedJournal, UnsupportedVersion, UsageError (no permission, too many open files)."""
    with _opened(path):
        data = path.read_bytes()
    if len(data) != 2 * ACK_SLOT_BYTES:
        raise DamagedJournal(f"{path}: {len(data)} bytes, expected {2 * ACK_SLOT_BYTES}")
    slots = [Ack.unpack(data[:ACK_SLOT_BYTES]), Ack.unpack(data[ACK_SLOT_BYTES:])]
    good = [ack for position, ack in enumerate(slots) if ack is not None and ack.counter % 2 == position]
    if not good:
        raise DamagedJournal(f"{path}: both slots fail their checksum")
    return max(good, key=lambda ack: ack.counter)


@contextmanager
def _opened(path: Path) -> Iterator[None]:
    """What the system says of a file that should be there, as errors of ours."""
    try:
        with our_errors(path):
            yield
    except FileNotFoundError as error:
        raise DamagedJournal(f"{path}: the file is missing") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedJournal(f"{path}: cannot be read: {error.strerror}") from error


@contextmanager
def no_writer(path: Path) -> Iterator[None]:
    """Keep writers out by a shared lock on the file that they lock, which is only read. Fine where there is no such file.

    Raises WriterLocked where one is at work, UsageError. Filesystems without locks are fine.
    """
    try:
        with our_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriterLocked(f"{path.parent} is open for writing") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)


def boot_id() -> bytes:
    """16 bytes that change at each boot of this machine; zeros where the system does not tell."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))[:16]
    except (OSError, ValueError):
        return bytes(16)
