"""The journal of a store that is rebuilt: the changes that can still be taken of it, and what becomes of it once they
are published.

Shapes: M changes.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ngramstore.errors import DamagedJournal, NgramStoreError
from ngramstore.files import remove_if_possible
from ngramstore.hashing import ngram_ids, row_ids
from ngramstore.store.journal.ack import AckFile
from ngramstore.store.journal.left import name_aside, set_aside
from ngramstore.store.journal.values import Changes, ValueCodec
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.repair.journal import is_there, salvage
from ngramstore.store.repair.report import RepairReport

_log = logging.getLogger("ngramstore")


class RebuildJournal:
    """`changes`: all that can be taken, ascending by ID; lines for the rest are in the report.

    A journal of which no change could be taken is kept beside a store that is repaired in place, and a line says as what.
    """

    def __init__(self, directory: Path, manifest: Manifest, room: Path, report: RepairReport) -> None:
        """room: a directory for a copy to work on."""
        self._path = directory / manifest.journal
        self._spec = manifest.spec
        self._report = report
        self._aside: Path | None = None
        self.changes = self._certain(self._salvaged(manifest.state_digest, room))

    def mark_published(self, state: bytes) -> None:
        """Note in the journal that its changes will be in that state: then it is rubbish, should we end before `clear`."""
        if self._aside is not None or not self._path.exists():
            return
        try:
            ack_file = AckFile.open(self._path)
            try:
                ack_file.write(published_as=state, sync=True)
            finally:
                ack_file.close()
        except (OSError, NgramStoreError) as error:  # it is kept then, under another name
            _log.info("%s: cannot note that its changes are published: %s", self._path, str(error))

    def clear(self) -> None:
        """Once its changes are published in its place: set aside, or removed."""
        if self._aside is not None:
            set_aside(self._path, self._aside)
        else:
            remove_if_possible(self._path)

    def _salvaged(self, state: bytes, room: Path) -> Changes:
        """What can still be read, (M,) changes."""
        width, row_bytes = self._spec.journal_width, self._spec.codec.row_bytes
        path, lost = self._path, self._report.lost
        parts: list[Changes] = []
        faults: list[str] = []
        try:
            if is_there(path):
                parts, faults = salvage(path, row_bytes=row_bytes, width=width, store_state=state, room=room)
        except DamagedJournal as error:
            faults = [error.message]
        lost += [f"unpublished changes: {fault.replace(str(path), path.name)}" for fault in faults]
        if parts:
            return parts[0]
        if faults and self._report.out == str(path.parent):
            self._aside = name_aside(path)
            lost.append(f"unpublished changes: {path.name} is kept as {self._aside.name}")
        return ValueCodec(width=width, row_bytes=row_bytes).empty(0)

    def _certain(self, changes: Changes) -> Changes:
        """Those whose tokens, or row number, hash to their ID."""
        if self._spec.is_ngram:
            is_right = changes.ids == ngram_ids(changes.tokens, changes.lengths, self._spec.seed)
        else:
            is_right = changes.ids == row_ids(changes.tokens.astype("<u4").view("<u8").reshape(-1))
        for identity in changes.ids[~is_right].tolist():
            self._report.lost.append(f"unpublished change of ID 0x{identity:016x}: its tokens do not hash to it")
        self._report.num_lost += int((~is_right).sum())
        columns = (changes.ids, changes.is_delete, changes.tokens, changes.lengths, changes.rows)
        return Changes(*(column[is_right] for column in columns))
