"""A journal as it is found: all of it read and checked before anything on disk changes.

What lies on disk and how damage is found: docs/journal.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedJournal, NgramStoreError
from ngramstore.store.journal.ack import ACK_NAME, Ack, no_writer, read_ack
from ngramstore.store.journal.guard import check_rocksdb_files
from ngramstore.store.journal.known import KnownIds
from ngramstore.store.journal.rocks import Rdict, RocksErrors, linked, open_rocksdb
from ngramstore.store.journal.values import STATE_KEY, State, ValueCodec

_HINT_OF_ANOTHER = (
    "was it copied here, or the store restored under it? put the journal that belongs to these files in its place, or "
    "move it away: readers do not need it; `ngramstore repair` makes a store without its changes and sets it aside"
)
_LOAD_ROWS = 512  # values decoded at a time


def check_journal(path: Path, *, row_bytes: int, width: int, store_state: bytes) -> tuple[int, str]:
    """Read and check all of a journal, changing nothing: how many IDs have changes, and what a power cut took, if it did.

    Raises as `Journal.open`; WriterLocked where a writer has it open, and keeps writers out meanwhile.
    """
    codec = ValueCodec(width=width, row_bytes=row_bytes)
    with no_writer(path / ACK_NAME), linked(path) as links:
        try:
            state, _, lost = read_all(links, codec, read_ack(links / ACK_NAME), store_state)
        except NgramStoreError as error:
            raise type(error)(error.message.replace(str(links), str(path)), hint=error.hint) from error
    return state.num_keys, lost


def read_all(path: Path, codec: ValueCodec, ack: Ack, store_state: bytes) -> tuple[State, KnownIds, str]:
    """What a journal holds, checked, and what a power cut took of it. Changes nothing on disk. Raises DamagedJournal."""
    if (ack.width, ack.row_bytes) != (codec.width, codec.row_bytes):
        raise DamagedJournal(
            f"{path / ACK_NAME}: values of {ack.width} tokens and {ack.row_bytes} row bytes, "
            f"the store has {codec.width} and {codec.row_bytes}"
        )
    state, known = State(), KnownIds()
    if ack.acknowledged or (path / "CURRENT").exists():
        check_rocksdb_files(path)
        db = open_rocksdb(path, is_same_boot=ack.is_of_this_boot, is_read_only=True)
        try:
            state, known = _load(db, codec, path)
        finally:
            db.close()
    if state.batch and ack.store_state != store_state:
        raise DamagedJournal(f"{path}: its changes were made to another state of a store", hint=_HINT_OF_ANOTHER)
    return state, known, _lost_to_a_power_cut(path, ack, state)


def _load(db: Rdict, codec: ValueCodec, path: Path) -> tuple[State, KnownIds]:
    """Read every value, check it, and compare the whole with the state record."""
    known, num_keys, fingerprint = KnownIds(), 0, 0
    state = State()
    scratch = codec.empty(_LOAD_ROWS)
    keys: list[bytes] = []
    values: list[bytes] = []

    def take() -> None:
        nonlocal num_keys, fingerprint
        changes = scratch.part(0, len(keys))
        checksums = codec.decode(keys, values, path, changes)
        known.add(changes.ids, changes.is_delete, checksums)
        num_keys += len(keys)
        fingerprint ^= int(np.bitwise_xor.reduce(checksums))
        keys.clear()
        values.clear()

    with RocksErrors(path):
        rows = db.iter()
        rows.seek_to_first()
        while rows.valid():
            key = rows.key()
            if key == STATE_KEY:
                state = State.unpack(rows.value(), path)
            else:
                keys.append(key)
                values.append(rows.value())
                if len(keys) == _LOAD_ROWS:
                    take()
            rows.next()
        rows.status()  # an iterator meets damage by becoming invalid, as if at the end
    if keys:
        take()
    if (num_keys, fingerprint) != (state.num_keys, state.fingerprint):
        raise DamagedJournal(
            f"{path}: {num_keys} IDs are there, the journal's state record says {state.num_keys}; "
            f"fingerprint {fingerprint:#x}, it says {state.fingerprint:#x}"
        )
    return state, known


def read_state(db: Rdict, path: Path) -> State:
    """What the state record of an open journal says. Raises DamagedJournal."""
    with RocksErrors(path):
        value = db.get(STATE_KEY)
    return State() if value is None else State.unpack(value, path)


def _lost_to_a_power_cut(where: Path, ack: Ack, state: State) -> str:
    """What is missing of the acknowledged appends and may be, or nothing. Raises DamagedJournal where more is."""
    if state.batch < ack.synced:
        raise DamagedJournal(f"{where}: {state.batch} appends are there, ACK says that {ack.synced} were synced")
    if state.batch >= ack.acknowledged:
        return ""
    if ack.is_of_this_boot:
        raise DamagedJournal(
            f"{where}: {state.batch} appends are there, ACK says {ack.acknowledged}; no power cut since"
        )
    return (
        "the machine went down before the last changes were flushed: "
        f"{ack.num_changes - state.num_changes} of {ack.num_changes} unflushed changes are lost"
    )
