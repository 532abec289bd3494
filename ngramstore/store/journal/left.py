"""Journals that lie beside the one the manifest names: rubbish where their changes are published, else kept under another name.

A publication leaves its journal behind if it is killed before it removes it; ACK says then which state the changes became.
One that does not say so was made to another state: the files of the store were replaced under it.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from ngramstore.errors import DamagedJournal, FormatError, NgramStoreError
from ngramstore.files import fsync_directory, remove_if_possible, rename
from ngramstore.store.journal.ack import ACK_NAME, read_ack
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.layers.names import JOURNAL

_log = logging.getLogger("ngramstore")
_SALVAGED = re.compile(r"journal-[0-9]{6,20}\.salvage-[a-z0-9_]+")
_BEFORE_ACK = re.compile(
    r"ACK\.tmp|CURRENT|IDENTITY|LOCK|LOG(\.old\.[0-9]+)?|(MANIFEST|OPTIONS)-[0-9]{6,20}(\.dbtmp)?|rocksdict-config\.json"
    r"|[0-9]{6,20}\.(log|sst|blob|dbtmp)"
)
"""What a journal may hold that was being made, or removed."""


def clear_left_journals(directory: Path, manifest: Manifest, known: set[str]) -> None:
    """Remove what the manifest does not name; set aside what holds changes that are not published. A warning names what
    had to stay.

    `known`: names of journals that are published for certain and not gone; grows, as later states do not tell any more.
    """
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if name == manifest.journal or not (name in known or is_journal(path) or _SALVAGED.fullmatch(name)):
            continue
        if name in known or _SALVAGED.fullmatch(name) or not _may_be_unpublished(path, manifest.state_digest):
            known.add(name)
            if remove_if_possible(path):
                known.discard(name)
        else:
            _set_aside_if_possible(path)


def is_journal(path: Path) -> bool:
    """Whether that is one of ours: named like one, and with ACK or nothing but files of RocksDB. Others name
    directories so too."""
    if not JOURNAL.fullmatch(path.name):
        return False
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # not known: it is kept, under another name
    return ACK_NAME in names or all(map(_BEFORE_ACK.fullmatch, names))


def name_aside(path: Path) -> Path:
    """Where a journal goes that is to be kept, and that no writer shall take for one of its own."""
    target, count = path.with_name(f"set-aside-{path.name}"), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"set-aside-{path.name}-{count}")
    return target


def set_aside(path: Path, target: Path) -> None:
    """Rename a journal, durable. Raises UsageError where that is not allowed."""
    rename(path, target)
    fsync_directory(path.parent)


def refuse_later_journals(directory: Path, manifest: Manifest) -> None:
    """DamagedJournal where changes lie that were made to a later state: an older copy of the store was put back under them.

    Raises UsageError where one is kept from us.
    """
    for name in sorted(os.listdir(directory)):
        found = JOURNAL.fullmatch(name)
        if found is None or int(found[1]) <= int(manifest.journal.partition("-")[2]):
            continue
        if not (directory / name / ACK_NAME).exists():
            continue  # it was being made
        try:
            num_changes = str(read_ack(directory / name / ACK_NAME).num_changes)
        except FormatError:
            num_changes = "an unknown number of"
        if num_changes != "0":
            raise DamagedJournal(
                f"{directory / name}: {num_changes} changes were made to a later state than the files here",
                hint="the store was restored under them: put the files of that state back, or move this journal away",
            )


def _may_be_unpublished(path: Path, state: bytes) -> bool:
    """Whether a journal holds changes, and nothing says that `state` has them."""
    try:
        os.stat(path / ACK_NAME)
        ack = read_ack(path / ACK_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return False  # it was being made, or removed
    except (OSError, NgramStoreError):
        return True
    return ack.num_changes > 0 and ack.published_as != state


def _set_aside_if_possible(path: Path) -> None:
    target = name_aside(path)
    try:
        set_aside(path, target)
    except (OSError, NgramStoreError) as error:
        _log.warning("%s holds changes to another state of the store and cannot be renamed: %s", path, str(error))
        return
    _log.warning(
        "%s held changes that are not in this state of the store: they are kept as %s. Put the files of their state back and "
        "rename it, or delete it",
        path,
        target.name,
    )
