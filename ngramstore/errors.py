"""Every error of ours, in one tree: what went wrong, where, and what to do next.

NgramStoreError
|-- UsageError            the caller's argument is wrong (also a ValueError)
|   `-- MissingExtra      an optional package is not installed (also an ImportError)
|-- StoreClosed           used after close()
|-- WrongProcess          opened in one process, used in its fork
|-- WriterLocked          another writer holds the store
|-- ReadOnlyStore         opened for reading, asked to write
|-- DiskFull              the disk cannot hold what was asked (also an OSError)
|-- HashCollision         two n-grams have one 64-bit ID; names the seed to try next
|-- DuplicateKey          one n-gram twice in a build that refuses duplicates
|-- LookupTimeout         rows did not arrive in the time allowed (also a TimeoutError)
|-- StaleStore            the store changed under the handle in a way it cannot follow
`-- FormatError           the bytes on disk are not what docs/format.md says
    |-- NotAStore         no manifest: some other file or directory
    |-- IncompleteStore   a build that never reached its end
    |-- UnsupportedVersion
    |-- DamagedStore      a file is missing, cut, or not the one the manifest names
    |   `-- DamagedRows   single rows fail their checksum; .keys lists them
    `-- DamagedJournal    the writer's journal lost or changed records
A missing n-gram is not an error: look-ups answer with a `found` mask.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramStoreError(Exception):
    """Root of every error this package raises on purpose. `hint` says what to do next."""

    default_hint = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        super().__init__(f"{message}\n  hint: {self.hint}" if self.hint else message)


class UsageError(NgramStoreError, ValueError):
    """The caller's argument is wrong; the message shows the value."""


class MissingExtra(UsageError, ImportError):
    """An optional package is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed",
            hint=f"install the extra {extra!r}: pip install 'ngramstore[{extra}]', or in a checkout "
            f"pip install -c constraints.txt '.[{extra}]'",
        )


class StoreClosed(NgramStoreError):
    """The handle was used after close()."""

    default_hint = "open the store again with ngramstore.open(path)"


class WrongProcess(NgramStoreError):
    """The handle was opened in another process and inherited by a fork."""

    default_hint = "open the store in the child process; a pickled handle does so by itself"


class WriterLocked(NgramStoreError):
    """Another writer holds the store; there is one writer at a time."""

    default_hint = "wait for it, or for a store open it for reading (any number of readers may)"


class ReadOnlyStore(NgramStoreError):
    """A change was asked of a handle opened for reading."""

    default_hint = 'open the store with mode="rw"'


class DiskFull(NgramStoreError, OSError):
    """The disk cannot hold what was asked; the store is whole, in its old state or the new one."""

    default_hint = "free some space; of new stores, smaller codecs take less (`ngramstore sizes` estimates each)"


class HashCollision(NgramStoreError):
    """Two different n-grams have the same 64-bit ID under the store's seed."""

    @classmethod
    def between(cls, left: Sequence[int], right: Sequence[int], seed: int) -> HashCollision:
        """The error for these two, with the seed to try next."""
        return cls(
            f"the n-grams {tuple(left)} and {tuple(right)} have the same 64-bit ID under seed {seed}",
            hint=f"build again with seed={(seed + 1) % 2**64}",
        )


class DuplicateKey(NgramStoreError):
    """The same n-gram was added twice to a build that refuses duplicates."""

    default_hint = 'remove the duplicate, or build with duplicates="last" (`--duplicates last`)'


class LookupTimeout(NgramStoreError, TimeoutError):
    """A look-up on a worker thread did not end in the time allowed; what it still writes, nobody reads."""

    default_hint = "check the disk that holds the store, or allow more time (timeout_s)"


class StaleStore(NgramStoreError):
    """The path now holds a different store than the one this handle was opened on; of a writer: its directory was moved
    or replaced."""

    default_hint = "open the path again"


class FormatError(NgramStoreError):
    """The bytes on disk are not what docs/format.md says."""

    default_hint = "check that the file is what you think it is, whole and unchanged"


class NotAStore(FormatError):
    """There is no ngramstore manifest here."""

    default_hint = "check the path; a store is a directory that holds a file named MANIFEST"


class IncompleteStore(FormatError):
    """A build, import, backup or repair started here and never finished; nothing in it can be read."""

    default_hint = (
        "run the same command again to resume an export; a build begins again with restart=True "
        "(`ngramstore build --restart`), or delete the directory"
    )


class UnsupportedVersion(FormatError):
    """The store was written in a format this release does not read."""

    default_hint = "upgrade ngramstore to a release that reads it (docs/format.md, section Versions)"


class DamagedStore(FormatError):
    """A file of the store is missing, cut short, or not the one the manifest names."""

    default_hint = "run `ngramstore verify` for the whole list of faults, then `ngramstore repair` or restore a backup"


class DamagedRows(DamagedStore):
    """Single rows fail their checksum. The rest of the batch is fine.

    `keys`: what to look for, one per damaged row (n-gram IDs, or row numbers).
    """

    default_hint = (
        'open with on_damage="missing" to get such rows as not found, or run `ngramstore repair`: n-grams are dropped, '
        "numbered rows become zeros"
    )

    def __init__(self, message: str, *, keys: Sequence[int], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.keys = list(keys)


class DamagedJournal(FormatError):
    """The writer's journal lost or changed records that were not yet flushed."""

    default_hint = "readers are not affected; run `ngramstore repair` to keep what can be read of the journal"
