"""The writer's journal: puts and tombstones not yet published, in RocksDB, with everything RocksDB overlooks checked.

One append is one atomic write batch: it survives kill -9 at once and a power cut after `sync()`.
What lies on disk and how damage is found: docs/journal.md.

Shapes: M changes.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from ngramstore.errors import DamagedJournal, DiskFull, NgramStoreError, StoreClosed, UsageError, WrongProcess
from ngramstore.files import fsync_directory, remove
from ngramstore.store.journal.ack import ACK_NAME, AckFile, boot_id
from ngramstore.store.journal.known import KnownIds, Tier
from ngramstore.store.journal.reading import read_all, read_state
from ngramstore.store.journal.rocks import Rdict, RocksErrors, get_values, open_rocksdb, rocksdb_path, write_values
from ngramstore.store.journal.values import STATE_KEY, Changes, State, ValueCodec, key_bytes

__all__ = ["Changes", "Journal"]

_log = logging.getLogger("ngramstore")

MAX_APPEND_BYTES = 1 << 30
"""One append is one batch in memory, in the log and in RocksDB's write buffer."""
_GET_ROWS = 512  # keys a batch get: larger ones are slower, the values then leave the processor's cache


class Journal:
    """Changes on disk, one value an ID, the latest one. One thread at a time; one process."""

    def __init__(
        self, path: Path, codec: ValueCodec, ack_file: AckFile, *, db: Rdict, state: State, known: KnownIds
    ) -> None:
        self.path = path
        self._codec = codec
        self._ack_file = ack_file
        self._db: Rdict | None = db
        self._state = state
        self._known = known
        self._pid = os.getpid()
        self._failure: str | None = None
        self.is_behind = False  # True: RocksDB may have an append that `ids` and `find` do not tell of
        _open_journals.add(self)

    @classmethod
    def open(cls, path: Path, *, row_bytes: int, width: int, store_state: bytes, create: bool = True) -> Journal:
        """Open the journal in directory `path`, all of it read and checked; a new one where there is none and `create`.

        `store_state` is the digest (16 bytes) of the published state that its changes are made to. Changes to another
        one, of another store or of another history of this one, are damage; an empty journal is taken over.
        Nothing on disk changes unless everything checks out. After a power cut, appends that were never synced may be
        gone: that is logged, not raised. Raises DamagedJournal, DiskFull, UnsupportedVersion, WriterLocked.
        """
        path = Path(path)
        codec = ValueCodec(width=width, row_bytes=row_bytes)
        try:
            rocksdb_path(path)
        except UnicodeDecodeError:
            raise UsageError(
                f"{str(path)!r} is not UTF-8: RocksDB cannot keep a journal there",
                hint="rename the directory, or reach it through a link; reading works",
            ) from None
        if not (path / ACK_NAME).exists() and not _files_but_temporary(path):
            if not create:
                raise DamagedJournal(f"{path}: the journal is missing")
            AckFile.create(path, width=width, row_bytes=row_bytes, store_state=store_state)
        ack_file = AckFile.open(path)
        db: Rdict | None = None
        try:
            ack = ack_file.ack
            state, known, lost = read_all(path, codec, ack, store_state)
            if lost:
                _log.warning("%s: %s", path, lost)
            db = open_rocksdb(path, is_same_boot=ack.is_of_this_boot)
            if read_state(db, path) != state:
                raise DamagedJournal(f"{path}: the journal changed between two reads")
            ack_file.write(
                sync=ack.store_state != store_state,  # else a power cut may leave an append and the old owner
                acknowledged=state.batch,
                num_changes=state.num_changes,
                boot=boot_id(),
                store_state=store_state,
            )
        except BaseException:
            if db is not None:
                db.close()
            ack_file.close()
            raise
        return cls(path, codec, ack_file, db=db, state=state, known=known)

    def append(self, changes: Changes) -> None:
        """Write changes as one atomic batch; `changes.ids` ascending, each once.

        Kill -9 cannot lose it once this returns; a power cut cannot after the next `sync()`. An append that raises
        leaves all of it or none, and the journal has to be opened again. Raises DiskFull, UsageError.
        """
        db = self._writable_db()
        if len(changes) == 0:
            return
        self._check_changes(changes)
        keys, values, checksums = self._codec.encode(changes)
        old_M, is_old_M = self._known.checksums(changes.ids)
        fingerprint = int(np.bitwise_xor.reduce(checksums) ^ np.bitwise_xor.reduce(old_M))  # 0 where there was none
        state = State(
            batch=self._state.batch + 1,
            num_changes=self._state.num_changes + len(changes),
            num_keys=self._state.num_keys + int(len(changes) - is_old_M.sum()),
            fingerprint=self._state.fingerprint ^ fingerprint,
        )
        with self._failure_noted():
            self.is_behind = True  # until it is known whole: Ctrl-C may come once RocksDB has it, memory may run out
            with RocksErrors(self.path):
                write_values(db, [*keys, STATE_KEY], [*values, state.pack()])
            self._state = state  # it is there, whatever becomes of its acknowledgement
            self._known.add(changes.ids, changes.is_delete, checksums)
            self.is_behind = False
            self._ack_file.write(acknowledged=state.batch, num_changes=state.num_changes)

    def sync(self) -> None:
        """Make every append so far safe from a power cut. Raises DiskFull."""
        db = self._writable_db()
        with self._failure_noted():
            with RocksErrors(self.path):
                db.flush_wal(True)
            self._ack_file.write(synced=self._state.batch, sync=True)

    def mark_published_as(self, store_state: bytes) -> None:
        """Note, durable, that all changes will be in that published state; the next append takes it back. Raises DiskFull."""
        self._writable_db()
        with self._failure_noted():
            self._ack_file.write(published_as=store_state, sync=True)

    def get(self, ids: np.ndarray) -> Changes:
        """The latest change of each of M IDs, in their order: (M,) u64. Raises DamagedJournal for one that is absent."""
        return self._get(np.asarray(ids, np.uint64))[0]

    def scan(self, max_bytes: int = 64 << 20) -> Iterator[Changes]:
        """Every change, ascending by ID, in chunks of about `max_bytes`. Raises DamagedJournal before its last chunk ends.

        The journal must not be appended to meanwhile.
        """
        ids, _ = self.ids()
        rows = max(1, max_bytes // (self._codec.put_size + 8))
        fingerprint, batch = 0, self._state.batch
        for start in range(0, len(ids), rows):
            changes, checksums = self._get(ids[start : start + rows])
            fingerprint ^= int(np.bitwise_xor.reduce(checksums))
            if self._state.batch != batch:
                raise UsageError("the journal was appended to during a scan", hint="finish the scan first")
            if start + rows >= len(ids) and fingerprint != self._state.fingerprint:
                raise DamagedJournal(f"{self.path}: the values are not the latest ones (their fingerprint differs)")
            yield changes

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Every ID, ascending, and whether its latest change deletes: (M,) u64 and (M,) bool, read-only."""
        self._open_db()
        return self._known.arrays()

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The IDs as they lie in memory, newest first: what a look-up probes."""
        self._open_db()
        return self._known.tiers

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of M IDs are here, and which of those are deleted: (M,) u64 -> two (M,) bool. Does not touch the disk."""
        self._open_db()
        return self._known.find(np.asarray(ids, np.uint64))

    def __len__(self) -> int:
        return self._state.num_keys

    def close(self) -> None:
        """Close; again is harmless. All data stays, synced or not. In a fork: lets go and touches nothing."""
        db, self._db = self._db, None
        if db is None or os.getpid() != self._pid:
            return
        try:
            with RocksErrors(self.path):
                db.close()
        finally:
            self._ack_file.close()

    def destroy(self) -> None:
        """Close and remove the directory with all that is in it. Raises UsageError where that is not allowed."""
        if os.getpid() != self._pid:
            raise _wrong_process(self.path)
        try:
            self.close()
        except NgramStoreError as error:  # closing writes a table; what is removed may fail to be written
            _log.info("%s: removed although closing failed: %s", self.path, error.message)
        remove(self.path)
        fsync_directory(self.path.parent)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def let_go(self) -> None:
        """Write nothing more, where others write to these files or have put theirs in their place: closing RocksDB
        writes, also dropping its handle does, which is therefore kept for ever. What was appended is in the log."""
        if self._db is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
            self._ack_file.close()

    def _open_db(self) -> Rdict:
        if os.getpid() != self._pid:
            raise _wrong_process(self.path)
        if self._db is None:
            raise StoreClosed(f"{self.path}: the journal is closed")
        return self._db

    def _writable_db(self) -> Rdict:
        db = self._open_db()
        if self._failure is not None:
            raise StoreClosed(f"{self.path}: an earlier write failed ({self._failure})")
        return db

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        """Around each write: after one that fails there are no others."""
        try:
            yield
        except BaseException as error:
            self._failure = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, DiskFull):
                self.is_behind = False  # RocksDB shows nothing of an append that it had no room for
            raise

    def _get(self, ids: np.ndarray) -> tuple[Changes, np.ndarray]:
        db = self._open_db()
        changes, checksums = self._codec.empty(len(ids)), np.empty(len(ids), np.uint32)
        for start in range(0, len(ids), _GET_ROWS):
            keys = key_bytes(ids[start : start + _GET_ROWS])
            with RocksErrors(f"{self.path}: one of {_id_range(keys)}"):
                values = get_values(db, keys)
            if None in values:
                raise DamagedJournal(f"{self.path}: ID 0x{keys[values.index(None)].hex()} is missing")
            stop = start + len(keys)
            part = changes.part(start, stop)
            checksums[start:stop] = self._codec.decode(keys, values, self.path, part)  # type: ignore[arg-type]
        return changes, checksums

    def _check_changes(self, changes: Changes) -> None:
        num, width, row_bytes = len(changes), self._codec.width, self._codec.row_bytes
        shapes = (changes.is_delete.shape, changes.tokens.shape, changes.lengths.shape, changes.rows.shape)
        wanted = ((num,), (num, width), (num,), (num, row_bytes))
        if shapes != wanted:
            raise UsageError(f"{num} changes with arrays of shapes {shapes}, expected {wanted}")
        if num > 1 and not (changes.ids[1:] > changes.ids[:-1]).all():
            raise UsageError("the IDs of one append must ascend, each once")
        if int(changes.lengths.max()) > width:
            raise UsageError(f"an n-gram of {int(changes.lengths.max())} tokens, the journal has room for {width}")
        if num * self._codec.put_size > MAX_APPEND_BYTES:
            raise UsageError(
                f"one append of {num} changes, {num * self._codec.put_size} bytes; the limit is {MAX_APPEND_BYTES}",
                hint="an append is one atomic batch held in memory: split it",
            )


_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    """The parent goes on with its files."""
    for journal in _open_journals:
        journal.let_go()


os.register_at_fork(after_in_child=_let_go_in_fork)


def _wrong_process(path: Path) -> WrongProcess:
    return WrongProcess(f"{path}: the journal was opened in another process")


def _files_but_temporary(path: Path) -> list[str]:
    try:
        return [name for name in os.listdir(path) if name != ACK_NAME + ".tmp"]
    except FileNotFoundError:
        return []


def _id_range(keys: list[bytes]) -> str:
    return f"{len(keys)} IDs from 0x{keys[0].hex()} to 0x{keys[-1].hex()}"
