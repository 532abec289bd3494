"""The three functions most programs need: build, open, sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ngramstore.errors import UsageError
from ngramstore.serve.options import OpenOptions
from ngramstore.serve.store import Store
from ngramstore.store.build import Builder
from ngramstore.store.sizes import Sizes, sizes

__all__ = ["Sizes", "build", "open", "sizes"]


def build(
    path: str | os.PathLike[str],
    *,
    dim: int,
    max_n: int | None = None,
    codec: str | Mapping[str, Any] = "int8",
    addressing: str = "ngram",
    compression: str = "auto",
    duplicates: str = "error",
    tokens: bool = True,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    memory_bytes: int | None = None,
    threads: int | None = None,
    restart: bool = False,
    progress: bool = False,
) -> Builder:
    """Start a new store; use the result as a context manager and `add` to it. Nothing is readable until the block ends.

    dim: row width D. max_n: longest n-gram K, 1 to 16 (not for addressing="row"). codec: "f32", "f16", "bf16", "int8",
    "int4", "e4m3", or a mapping with options. compression: "auto" stores zstd frames where they save 5 % of a sample,
    "zstd" always, "none" never. duplicates: "error" or "last" wins. tokens=False leaves out the n-grams themselves (8 to
    12 B a row): no `items`, no collision checks on later puts. seed: of the IDs; another one after a HashCollision.
    metadata: anything JSON can hold, kept in the manifest. memory_bytes: what the sort may hold, by default a
    quarter of the free memory; the rest spills to disk inside `path`. threads: that compress (None: up to 4); the bytes are the same. restart: throw away a build that was
    killed here. progress: a bar on stderr.

    Raises UsageError, IncompleteStore, WriterLocked, HashCollision, DuplicateKey, DiskFull.
    """
    return Builder(
        path,
        dim=dim,
        max_n=max_n,
        codec=codec,
        addressing=addressing,
        compression=compression,
        duplicates=duplicates,
        tokens=tokens,
        seed=seed,
        metadata=metadata,
        memory_bytes=memory_bytes,
        threads=threads,
        restart=restart,
        progress=progress,
    )


def open(path: str | os.PathLike[str], **options: Any) -> Store:
    """Open a store. Options, keyword only, are those of `ngramstore.serve.options.OpenOptions`:

    mode="r" | "rw", cache_bytes=256 MiB, resident=False, lock_index=False, on_damage="raise" | "missing", identity=None,
    trust_external=False.

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
