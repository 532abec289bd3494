"""RocksDB as the journal uses it: its options, and its exceptions turned into ours. Only this file imports rocksdict."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from rocksdict import AccessType, BlockBasedOptions, DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch

from ngramstore.errors import DamagedJournal, DiskFull, NgramStoreError, UsageError, WriterLocked
from ngramstore.files import FULL_DISK

_SALVAGE_FILES = 16
WRITE_BUFFER_BYTES = 16 << 20


def rocksdb_options(*, is_same_boot: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    # On one boot nothing but a torn last append may be missing. After a power cut pages of unsynced appends may be
    # missing anywhere behind the synced ones: keep what is before them, then compare with ACK.
    options.set_wal_recovery_mode(
        DBRecoveryMode.tolerate_corrupted_tail_records() if is_same_boot else DBRecoveryMode.point_in_time()
    )
    options.set_compression_type(DBCompressionType.none())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_max_manifest_file_size(256 << 10)
    options.set_recycle_log_file_num(0)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_size(16 << 10)
    options.set_block_based_table_factory(table)
    return options


def rocksdb_path(path: Path) -> str:
    """As rocksdict takes it, which hands UTF-8 to the system, whatever the locale says of names. UnicodeDecodeError
    where the name is not UTF-8."""
    return os.fsencode(path).decode("utf-8")


def open_rocksdb(path: Path, *, is_same_boot: bool, is_read_only: bool = False) -> Rdict:
    options = rocksdb_options(is_same_boot=is_same_boot)
    access = AccessType.read_only(False) if is_read_only else AccessType.read_write()
    with RocksErrors(path):
        return Rdict(rocksdb_path(path), options, column_families={"default": options}, access_type=access)


@contextmanager
def linked(path: Path) -> Iterator[Path]:
    """A new directory with links to the files of a journal, to be opened read-only: nothing in `path` itself is written.

    rocksdict writes its configuration anew wherever it opens, also for reading. Raises UsageError where there is no place for it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="ngramstore-")
    except OSError as error:
        raise UsageError(
            f"there is no place for a temporary directory: {error.strerror}", hint="set TMPDIR to a writable directory"
        ) from error
    with folder as directory:
        for name in os.listdir(path):
            if name not in ("LOCK", "LOG", "rocksdict-config.json"):
                os.symlink(path.absolute() / name, Path(directory, name))
        yield Path(directory)


def write_values(db: Rdict, keys: list[bytes], values: list[bytes]) -> None:
    """Put every key in one atomic batch, into the write-ahead log. Raises what rocksdict raises."""
    batch = WriteBatch(raw_mode=True)
    put = batch.put
    for key, value in zip(keys, values, strict=True):
        put(key, value)
    db.write(batch)


def get_values(db: Rdict, keys: list[bytes]) -> list[bytes | None]:
    """The value of each key, None where there is none. Raises what rocksdict raises."""
    return db.get(keys)  # type: ignore[arg-type, return-value]


def salvage_options() -> Options:
    """For a copy that nobody writes: read past damaged records of the log."""
    options = Options(raw_mode=True)
    options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
    options.set_max_open_files(_SALVAGE_FILES)  # else all of its tables at once
    return options


def is_disk_full(text: str) -> bool:
    """Whether an error of RocksDB says that there is no room."""
    return any(os.strerror(code) in text for code in FULL_DISK)


def is_kept_from_us(text: str) -> bool:
    """Whether an error of RocksDB says that a file is there and may not be opened: no damage."""
    return any(os.strerror(code) in text for code in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EROFS))


class RocksErrors:
    """Turns what rocksdict raises inside into our errors."""

    def __init__(self, where: object) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if type(error) is Exception:  # what rocksdict raises for every fault of RocksDB
            _raise_ours(error, self._where)


def _raise_ours(error: Exception, where: object) -> NoReturn:
    text = str(error)
    if is_disk_full(text):
        raise DiskFull(f"{where}: {text}") from error
    if "lock hold by" in text or "While lock file" in text:
        raise WriterLocked(f"{where}: {text}") from error
    if is_kept_from_us(text):
        raise NgramStoreError(f"{where}: {text}") from error
    raise DamagedJournal(f"{where}: {text}") from error
