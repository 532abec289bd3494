"""What a build was asked for, checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ngramstore.codec.registry import codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.options import choose, is_whole
from ngramstore.store.layers.manifest import ADDRESSINGS, MAX_METADATA_BYTES, Spec

_MAX_MEMORY_BYTES = 1 << 48  # no machine has more


def checked_spec(
    dim: int,
    max_n: int | None,
    codec: Any,
    addressing: str,
    tokens: bool,
    seed: int,
    metadata: Mapping[str, Any] | None,
) -> Spec:
    """The Spec of a new store, or a UsageError for the first thing that cannot be."""
    choose("addressing", addressing, ADDRESSINGS)
    if not is_whole(dim) or dim < 1:
        raise UsageError(f"dim must be a positive integer, got {dim!r}")
    if addressing == "ngram" and max_n is None:
        raise UsageError("max_n is missing", hint="give the length of the longest n-gram, 1 to 16")
    if addressing == "row":
        for name, value, usual in (("max_n", max_n, None), ("tokens", tokens, True), ("seed", seed, 0)):
            if value != usual:
                raise UsageError(f"{name}={value!r} has no meaning for rows addressed by number")
    if max_n is not None and (not is_whole(max_n) or not 1 <= max_n <= MAX_N):
        raise UsageError(f"max_n must be 1 to {MAX_N}, got {max_n!r}")
    if not is_whole(seed) or not 0 <= seed < 1 << 64:
        raise UsageError(f"seed must be an integer 0 .. 2**64 - 1, got {seed!r}")
    try:
        plain = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"metadata must be a mapping that JSON can hold: {error}") from error
    if (size := len(json.dumps(plain, indent=1))) > MAX_METADATA_BYTES:
        raise UsageError(f"metadata takes {size:,} bytes as JSON, at most {MAX_METADATA_BYTES:,} are possible")
    chosen = codec_from_spec(codec, int(dim))
    try:
        json.dumps(chosen.spec(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"codec {codec!r} has an option that JSON cannot hold: {error}") from error
    return Spec(
        addressing=addressing,
        dim=int(dim),
        max_n=int(max_n or 1),
        codec=chosen,
        seed=int(seed),
        has_tokens=bool(tokens) and addressing == "ngram",
        metadata=plain,
    )


def checked_memory_bytes(memory_bytes: Any) -> int:
    """A memory budget, or UsageError."""
    if not is_whole(memory_bytes) or not 1 <= memory_bytes <= _MAX_MEMORY_BYTES:
        raise UsageError(f"memory_bytes is {memory_bytes!r}", hint="give a number of bytes, such as 1 << 30")
    return int(memory_bytes)
