"""The spool of an export: every batch of encoded rows on disk as soon as it is computed, so that a killed export goes on.

One file that only grows, beside the store, and is removed with the export's end. docs/scone.md, "Resuming an export", draws its
bytes. Its head is synced, before the build leaves a file that says it has begun; records are not: one that a power cut
tore fails its checksum and is computed again, with all that follow it.

Shapes: M rows of a batch, B bytes of an encoded row.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ngramstore.errors import FormatError, UnsupportedVersion, UsageError, WriterLocked
from ngramstore.files import fsync, fsync_directory, our_errors, remove, write_all

MAGIC, VERSION = b"NGXPT\0\r\n", 1
_HEADER = struct.Struct("<8sIII")
"""Magic, version, bytes of the job, CRC-32 of the job; then the job, JSON in UTF-8."""
_RECORD = struct.Struct("<III")
"""Rows M, CRC-32 of the M * B bytes that follow, CRC-32 of these 8 bytes."""


class Spool:
    """The finished batches of one export. `job` says which: JSON values that must be equal for its rows to be the same.

    Opening makes the file where there is none, and locks it until it is closed. Raises UsageError where it is of another job,
    FormatError where it is no spool, WriterLocked where another export has it. Threads: one. Processes: one.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], row_bytes: int) -> None:
        self.path, self._row_bytes = path, row_bytes
        self._file = _locked(path, os.O_RDWR | os.O_CREAT)
        try:
            self.is_new = os.fstat(self._file.fileno()).st_size == 0
            if self.is_new:
                text = json.dumps(job, sort_keys=True).encode()
                head = _HEADER.pack(MAGIC, VERSION, len(text), zlib.crc32(text))
                write_all(self._file.fileno(), head + text, path)
                fsync(self._file.fileno(), path)
                fsync_directory(path.parent)
            self._begin = _require_same_job(self._file, path, job)
        except BaseException:
            self._file.close()
            raise

    def batches(self) -> Iterator[np.ndarray]:
        """The encoded rows (M, B) u8 of every whole batch in order; what follows the last whole one is cut off."""
        size, good = self.path.stat().st_size, self._begin
        while True:
            self._file.seek(good)
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                break
            num_rows, crc, head_crc = _RECORD.unpack(head)
            end = good + _RECORD.size + num_rows * self._row_bytes
            if zlib.crc32(head[:8]) != head_crc or num_rows == 0 or end > size:
                break
            rows_MB = np.fromfile(self._file, np.uint8, num_rows * self._row_bytes)
            if zlib.crc32(rows_MB.data) != crc:
                break
            yield rows_MB.reshape(num_rows, self._row_bytes)
            good = end
        self._file.truncate(good)
        self._file.seek(good)

    def add(self, encoded_MB: np.ndarray) -> None:
        """Append a batch, at least one row; after `batches` has ended only."""
        data = np.ascontiguousarray(encoded_MB).data.cast("B")
        head = struct.pack("<II", len(encoded_MB), zlib.crc32(data))
        write_all(self._file.fileno(), head + struct.pack("<I", zlib.crc32(head)), self.path)
        write_all(self._file.fileno(), data, self.path)

    def remove(self) -> None:
        """The export has ended: delete the file."""
        remove(self.path)
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def discard_spool(store: str | os.PathLike[str]) -> None:
    """Delete what an export into `store` left. WriterLocked where it is still at work."""
    path = spool_path(store)
    try:
        with _locked(path, os.O_RDWR):
            remove(path)
    except FileNotFoundError:
        pass


def _locked(path: Path, flags: int) -> BinaryIO:
    """The file, open and locked for this process until it is closed. Raises WriterLocked, FileNotFoundError."""
    with our_errors(path):
        while True:
            file = open(os.open(path, flags | os.O_CLOEXEC, 0o644), "r+b", buffering=0)  # noqa: SIM115
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
            except BlockingIOError:
                file.close()
                raise WriterLocked(
                    f"{path}: another export into this store is at work", hint="wait for its end"
                ) from None
            except FileNotFoundError:  # removed between the opening and the lock
                pass
            file.close()


def spool_path(store: str | os.PathLike[str]) -> Path:
    """Where the spool of an export into `store` lies: beside it, on the same disk."""
    store = Path(store).absolute()
    return store.with_name(store.name + ".export")


def _require_same_job(file: BinaryIO, path: Path, job: Mapping[str, Any]) -> int:
    """Offset of the first record, the header read and compared."""
    with our_errors(path):
        file.seek(0)
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[: len(MAGIC)] != MAGIC:
            raise FormatError(
                f"{path} is in the way: it is not what an export leaves", hint="move it, or add --restart"
            )
        _, version, num_bytes, crc = _HEADER.unpack(head)
        if version != VERSION:
            raise UnsupportedVersion(f"{path} is an export's spool of version {version}, this release reads {VERSION}")
        text = file.read(num_bytes) if num_bytes <= os.fstat(file.fileno()).st_size else b""
    if len(text) != num_bytes or zlib.crc32(text) != crc:
        raise FormatError(f"the header of {path} is damaged", hint="add --restart to export from the beginning")
    saved = json.loads(text)
    for name in job:
        if saved.get(name) != json.loads(json.dumps(job[name])):
            raise UsageError(
                f"{path} is left of an export with another {name}: {saved.get(name)!r}, this one has {job[name]!r}",
                hint="add --restart (restart=True) to throw it away, or choose another store",
            )
    return _HEADER.size + num_bytes
