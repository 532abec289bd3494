"""The vocabulary file: one header, then facts, lengths, counts, tokens (docs/mining.md, section The vocabulary file).

Every byte is under a checksum. Nothing is allocated before the sizes in the header agree with the size of the file.

Shapes: M n-grams, K longest n-gram, N all tokens of all n-grams.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import DamagedStore, FormatError, UnsupportedVersion, UsageError
from ngramstore.hashing import MAX_N
from ngramstore.layout import Field, Layout
from ngramstore.mine.publish import published

VOCAB_MAGIC = b"NGVOC\x00\r\n"
VOCAB_VERSION = 1
VOCAB_HEADER = Layout(
    "vocabulary",
    (
        Field("magic", "8s", 'the bytes "NGVOC", 0, CR, LF'),
        Field("version", "I", "1"),
        Field("max_n", "I", "K, the longest length there may be, 2 to 16"),
        Field("num_ngrams", "Q", "M, number of n-grams"),
        Field("num_tokens", "Q", "N, sum of their lengths"),
        Field("facts_bytes", "I", "size of the facts: a JSON object in UTF-8"),
        Field("facts_crc", "I", "CRC-32 of the facts"),
        Field("lengths_crc", "I", "CRC-32 of the lengths"),
        Field("counts_crc", "I", "CRC-32 of the counts"),
        Field("tokens_crc", "I", "CRC-32 of the tokens"),
        Field("header_crc", "I", "CRC-32 of the 52 bytes before it"),
    ),
)
_HINT = "mine the vocabulary again, or restore a copy"


def write_vocab(
    path: Path, tokens_MK: np.ndarray, lengths_M: np.ndarray, counts_M: np.ndarray, facts: dict[str, Any]
) -> None:
    """Write a vocabulary file, whole or not at all. The same arguments give the same bytes."""
    is_token_MK = np.arange(tokens_MK.shape[1]) < lengths_M[:, None]
    sections = (
        json.dumps(facts, sort_keys=True, indent=1).encode(),
        lengths_M.astype("u1").tobytes(),
        counts_M.astype("<u8").tobytes(),
        tokens_MK[is_token_MK].astype("<u4").tobytes(),
    )
    crcs = [zlib.crc32(section) for section in sections]
    fields: dict[str, int | bytes] = {"magic": VOCAB_MAGIC, "version": VOCAB_VERSION, "max_n": tokens_MK.shape[1]}
    fields |= {"num_ngrams": len(lengths_M), "num_tokens": len(sections[3]) // 4, "facts_bytes": len(sections[0])}
    fields |= dict(zip(("facts_crc", "lengths_crc", "counts_crc", "tokens_crc"), crcs, strict=True))
    with published(path) as file:
        for data in (VOCAB_HEADER.sealed(**fields), *sections):
            file.write(data)


def read_vocab(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Tokens (M, K) u32 left-aligned and zero-padded, lengths (M,) u8, counts (M,) u64, facts.

    Raises UsageError where there is no file, FormatError where it is none of ours, UnsupportedVersion, and DamagedStore
    where any byte is not as it was written.
    """
    if not path.is_file():
        raise UsageError(f"no vocabulary file at {str(path)!r}", hint="`ngramstore mine` writes one")
    with open(path, "rb") as file:
        head = file.read(VOCAB_HEADER.size)
        if head[: len(VOCAB_MAGIC)] != VOCAB_MAGIC:
            raise FormatError(f"{path} is not a vocabulary file: it begins with {head[:8]!r}")
        if len(head) < VOCAB_HEADER.size:
            raise DamagedStore(f"{path}: cut short after {len(head)} bytes", hint=_HINT)
        fields: dict[str, Any] = VOCAB_HEADER.unpack(head)
        if fields["version"] != VOCAB_VERSION:
            raise UnsupportedVersion(f"{path}: version {fields['version']}, this release reads {VOCAB_VERSION}")
        if zlib.crc32(head[:-4]) != fields["header_crc"]:
            raise DamagedStore(f"{path}: the checksum of the header differs", hint=_HINT)
        num, num_tokens, max_n = fields["num_ngrams"], fields["num_tokens"], fields["max_n"]
        sizes = (fields["facts_bytes"], num, 8 * num, 4 * num_tokens)
        have = os.fstat(file.fileno()).st_size
        if have != VOCAB_HEADER.size + sum(sizes) or not 2 <= max_n <= MAX_N:
            raise DamagedStore(f"{path}: {have} bytes for M={num} N={num_tokens} K={max_n}", hint=_HINT)
        parts = []
        for name, size in zip(("facts", "lengths", "counts", "tokens"), sizes, strict=True):
            data = file.read(size)
            if len(data) != size or zlib.crc32(data) != fields[f"{name}_crc"]:
                raise DamagedStore(f"{path}: the checksum of the {name} differs", hint=_HINT)
            parts.append(data)
    lengths_M = np.frombuffer(parts[1], "u1")
    if num and (lengths_M.min() < 1 or lengths_M.max() > max_n or int(lengths_M.sum(dtype=np.int64)) != num_tokens):
        raise DamagedStore(f"{path}: lengths do not add up to N={num_tokens}", hint=_HINT)
    tokens_MK = np.zeros((num, max_n), np.uint32)
    tokens_MK[np.arange(max_n) < lengths_M[:, None]] = np.frombuffer(parts[3], "<u4")
    try:
        facts = json.loads(parts[0])
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise DamagedStore(f"{path}: the facts are not a JSON object", hint=_HINT)
    return tokens_MK, lengths_M, np.frombuffer(parts[2], "<u8"), facts
