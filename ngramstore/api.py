"""The three calls most programs need: build, open, sizes."""

from __future__ import annotations

import os

from ngramstore.serve.open_options import OpenOptions
from ngramstore.serve.store import Store
from ngramstore.store.building.build import Builder
from ngramstore.store.sizes import Sizes, sizes

__all__ = ["Sizes", "build", "open", "sizes"]


build = Builder
"""Start a new store: a context manager to `add` to."""


def open(
    path: str | os.PathLike[str],
    *,
    mode: str = "r",
    cache_bytes: int = 256 << 20,
    resident: bool = False,
    lock_index: bool = False,
    threads: int = 1,
    on_damage: str = "raise",
    trust_external: bool = False,
    identity: str | None = None,
) -> Store:
    """Open a store. Opening reads the manifest and the headers, no rows.

    mode: "r", look up only: any number of processes, also on a read-only mount. "rw": the one writer.
    cache_bytes: budget of the row cache, encoded rows and 52 bytes of bookkeeping each; 0: no cache. Raise it until
    `stats()["hit_rate"]` is flat.
    resident: hold all rows in memory, without a cache and without reads. Use it where the store fits.
    lock_index: copy the index into memory and verify all of it now, instead of mapping it and verifying pages on first touch.
    threads: large look-ups, from 4,096 positions or rows on, are split over this many threads, including the caller's.
    on_damage: a damaged row raises DamagedRows after the rest of the batch is served ("raise"), or counts as "missing".
    trust_external: let the manifest name files outside its directory, as `ngramstore import` writes, and read rows from them.
    identity: refuse any other store than this one (StaleStore).

    Raises NotAStore, IncompleteStore, UnsupportedVersion, DamagedStore, StaleStore, WriterLocked, UsageError.
    """
    options = OpenOptions(
        mode=mode,
        cache_bytes=cache_bytes,
        resident=resident,
        lock_index=lock_index,
        threads=threads,
        on_damage=on_damage,
        trust_external=trust_external,
        identity=identity,
    )
    return Store(path, options)
