"""The three calls most programs need: build, open, sizes."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from ngramstore.errors import UsageError
from ngramstore.serve.options import OpenOptions
from ngramstore.serve.store import Store
from ngramstore.store.build import Builder
from ngramstore.store.sizes import Sizes, sizes

__all__ = ["Sizes", "build", "open", "sizes"]


build = Builder
"""Start a new store: a context manager to `add` to."""


def open(path: str | os.PathLike[str], **options: Any) -> Store:
    """Open a store. Options, keyword only, are those of `ngramstore.serve.options.OpenOptions`:

    mode="r" | "rw", cache_bytes=256 MiB, resident=False, lock_index=False, threads=1, on_damage="raise" | "missing",
    identity=None, trust_external=False.

    Opening reads the manifest and the headers, no rows. Raises NotAStore, IncompleteStore, UnsupportedVersion,
    DamagedStore, WriterLocked, UsageError.
    """
    unknown = sorted(options.keys() - {field.name for field in fields(OpenOptions)})
    if unknown:
        raise UsageError(
            f"open has no option {unknown[0]!r}",
            hint=f"it has {', '.join(field.name for field in fields(OpenOptions))}",
        )
    return Store(path, OpenOptions(**options))
