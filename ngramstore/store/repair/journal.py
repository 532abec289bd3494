"""What can still be read of a damaged journal, for `repair`.

Shapes: M changes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from functools import reduce
from operator import xor
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedJournal, DiskFull, UnsupportedVersion, UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.files import our_errors, remove, remove_if_possible, require_space
from ngramstore.store.journal.ack import ACK_NAME, read_ack
from ngramstore.store.journal.guard import check_rocksdb_files, find_wrong_type
from ngramstore.store.journal.rocks import Rdict, is_disk_full, is_kept_from_us, rocksdb_path, salvage_options
from ngramstore.store.journal.values import STATE_KEY, Changes, State, ValueCodec
from ngramstore.store.repair.raw_file import damage_of

_COPY_BYTES = 1 << 20
_COPIES = 3
"""What they take at most: the copy, the tables that RocksDB makes of its logs, and its own notes."""


def is_there(path: Path) -> bool:
    """Whether there is a journal at `path`. One that a writer was about to make when it was killed holds nothing: False.

    Raises DamagedJournal where something else is there or the disk has lost which files it has, UsageError where it is
    kept from us.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DamagedJournal(f"{path}: {damage_of(path, error)}") from error
    if not stat.S_ISDIR(mode) and not path.is_dir():  # a link to one will do
        raise DamagedJournal(f"{path}: it is not a directory")
    return not {file.name for file in list_files(path)} <= {"ACK.tmp"}


def list_files(path: Path) -> list[Path]:
    """The files of a journal, sorted; none where it is gone meanwhile. Raises as `is_there`."""
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DamagedJournal(f"{path}: {damage_of(path, error)}") from error


def salvage(
    path: Path, *, row_bytes: int, width: int, store_state: bytes, room: Path | None = None
) -> tuple[list[Changes], list[str]]:
    """What can still be read of a damaged journal, ascending by ID, and a line for each fault. Leaves `path` as it is.

    Works on a copy in the directory `room`, or beside it, so it needs some times its space again; the copy has a name
    that the next writer removes. Where the log lost records, an ID may come with an earlier change than its latest: the
    faults say so. Changes to another state than `store_state` are left out, where ACK still tells. Raises DiskFull,
    DamagedJournal where the disk has lost which files there are, and UsageError where files are there and kept from us.
    """
    path = Path(path)
    codec = ValueCodec(width=width, row_bytes=row_bytes)
    faults: list[str] = []
    if not path.is_dir():
        return [], [f"{path}: the journal is missing"]
    acknowledged, is_another = 0, False
    try:
        ack = read_ack(path / ACK_NAME)
        acknowledged = ack.acknowledged
        is_another = ack.store_state != store_state
    except (DamagedJournal, UnsupportedVersion) as error:
        faults.append(error.message)
    except OSError as error:
        faults.append(f"{path / ACK_NAME}: {damage_of(path / ACK_NAME, error)}")
    room = room or path.parent
    require_space(
        room,
        _COPIES * sum(file.stat().st_size for file in list_files(path) if file.is_file()),
        "reading a damaged journal",
    )
    with our_errors(room):
        copy = Path(tempfile.mkdtemp(dir=room, prefix=path.name + ".salvage-"))
    try:
        faults += _copy_files(path, copy)
        for file in (copy / "rocksdict-config.json", *copy.glob("LOG*")):  # RocksDB begins both anew
            remove(file)
        pairs = _salvage_pairs(path, copy, faults)
    finally:
        remove_if_possible(copy)
    if is_another and (acknowledged or STATE_KEY in pairs):
        return [], [f"{path}: its changes were made to another state of a store, and are left out"]
    state = None
    chunks: list[Changes] = []
    checksums: list[int] = []
    for key, value in pairs.items():
        try:
            if key == STATE_KEY:
                state = State.unpack(value, path)
                continue
            changes = codec.empty(1)
            sums = codec.decode([key], [value], path, changes)
        except DamagedJournal as error:
            faults.append(error.message)
            continue
        chunks.append(changes)
        checksums.append(int(sums[0]))
    num_kept = state.batch if state else 0
    if num_kept < acknowledged:
        faults.append(f"{path}: the last {acknowledged - num_kept} of {acknowledged} appends are gone")
    if state is not None and (state.num_keys, state.fingerprint) != (len(chunks), reduce(xor, checksums, 0)):
        faults.append(f"{path}: {len(chunks)} of {state.num_keys} IDs are left, some perhaps with an earlier change")
    return ([_concatenate(chunks)] if chunks else []), faults


def _copy_files(source: Path, target: Path) -> list[str]:
    """Copy what the disk gives; a line for each file that is not whole."""
    faults: list[str] = []
    for path in list_files(source):
        if path.is_file():
            with FileWriter(target / path.name) as copy:
                for piece in _pieces(path, faults):
                    copy.write(piece)
                copy.flush()
    return faults


def _pieces(path: Path, faults: list[str]) -> Iterator[bytes]:
    """The bytes of a file up to the first that is lost. Raises UsageError."""
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_COPY_BYTES):
                yield piece
    except OSError as error:
        faults.append(f"{path}: {damage_of(path, error)}")


def _salvage_pairs(path: Path, copy: Path, faults: list[str]) -> dict[bytes, bytes]:
    """Key -> value of what RocksDB still reads in the copy, keys ascending. Raises DiskFull, UsageError."""
    options = salvage_options()
    families = {"default": options}
    pairs: dict[bytes, bytes] = {}
    is_repaired = False
    try:
        check_rocksdb_files(copy)
        db = Rdict(rocksdb_path(copy), options, column_families=families)
    except Exception as error:
        faults.append(_fault(error, path, copy))
        is_repaired = True
    try:
        if is_repaired:
            _make_logs_readable(copy)
            Rdict.repair(rocksdb_path(copy), options)
            _refuse_half_a_repair(path, copy)
            db = Rdict(rocksdb_path(copy), options, column_families=families)
    except Exception as error:
        faults.append(_fault(error, path, copy))
        return pairs
    for is_backwards in (False, True):  # from both ends up to the first damaged block
        rows = db.iter()
        (rows.seek_to_last if is_backwards else rows.seek_to_first)()
        while rows.valid():
            pairs[rows.key()] = rows.value()
            (rows.prev if is_backwards else rows.next)()
        try:
            rows.status()
            break
        except Exception as error:
            if not is_backwards:
                faults.append(_fault(error, path, copy))
    del rows
    db.close()
    return dict(sorted(pairs.items()))


def _fault(error: Exception, path: Path, copy: Path) -> str:
    """What an error says of the journal. Raises DiskFull, UsageError: changes that only we cannot read are not lost."""
    if isinstance(error, (DiskFull, UsageError)):
        raise error
    text = (str(error) or type(error).__name__).splitlines()[0].replace(str(copy), str(path))
    _refuse_our_own_trouble(text, path, copy)
    return text


def _refuse_our_own_trouble(text: str, path: Path, copy: Path) -> None:
    """DiskFull or UsageError where RocksDB says that it lacked room, descriptors or permission: that is no damage."""
    if is_disk_full(text):
        raise DiskFull(f"no space left for a copy of {path} in {copy.parent}")
    if is_kept_from_us(text):
        raise UsageError(
            f"{path} cannot be read: {text.splitlines()[0]:.300}",
            hint="check its owner and mode, and the limit of open files (`ulimit -n`)",
        )


def _refuse_half_a_repair(path: Path, copy: Path) -> None:
    """As `_refuse_our_own_trouble`, of what RocksDB noted: it goes on with less than it could read, and says so only in
    its LOG."""
    log = copy / "LOG"
    if log.exists():
        lines = [
            line for line in log.read_text(errors="replace").splitlines() if is_disk_full(line) or is_kept_from_us(line)
        ]
        _refuse_our_own_trouble(lines[0] if lines else "", path, copy)


def _make_logs_readable(copy: Path) -> None:
    """Give records of an unknown type, on which RocksDB would spin, a known one: it skips those that fail their checksum."""
    for log in copy.glob("*.log"):
        data = bytearray(log.read_bytes())
        while (position := find_wrong_type(data)) is not None:
            data[position + 6] = 1
        with FileWriter(log) as file:
            file.write(data)
            file.flush()


def _concatenate(chunks: list[Changes]) -> Changes:
    columns = ("ids", "is_delete", "tokens", "lengths", "rows")
    return Changes(*(np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in columns))
