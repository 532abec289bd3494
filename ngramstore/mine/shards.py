"""Token shards: the tokens of a corpus as plain little-endian arrays, with the offsets where documents start.

A cache entry is a folder: `manifest.json`, and for each shard `tokens-NNNNN.u16` (or `.u32`) and `starts-NNNNN.u64`. Shards end
where documents end. Token files made elsewhere (`.bin`, `.npy`) are read where they lie.

Shapes: T position, D documents, S spans.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ngramstore.checked_json import crc_fits, with_crc
from ngramstore.errors import DamagedStore, FormatError, UnsupportedVersion, UsageError
from ngramstore.hashing import row_ids

if TYPE_CHECKING:
    from ngramstore.mine.tokenizers import Tokenizer

MANIFEST_NAME = "manifest.json"
FORMAT_NAME = "ngramstore token shards"
FORMAT_VERSION = 1
HELD_OUT_UNIT = 8192
"""Tokens. Held-out parts are whole documents, or pieces of this many tokens of longer ones."""
_HINT = "delete the folder; it is made again from the corpus"
_DTYPES = ("<u2", "<u4")


@dataclass(frozen=True)
class Shard:
    """Consecutive whole documents: where their tokens and offsets lie. Small, can be sent to another process."""

    path: Path
    dtype: str
    num_tokens: int
    num_documents: int
    header_bytes: int = 0
    starts_path: Path | None = None
    starts_array: np.ndarray | None = field(default=None, repr=False, compare=False)

    def tokens(self) -> np.ndarray:
        """All tokens, (T,) u16 or u32, mapped read-only."""
        if self.num_tokens == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.header_bytes, (self.num_tokens,))

    def starts(self) -> np.ndarray:
        """Document d is tokens[starts[d] : starts[d + 1]]: (D + 1,) u64, first 0, last T."""
        if self.starts_array is not None:
            return self.starts_array
        assert self.starts_path is not None
        return np.fromfile(self.starts_path, "<u8")

    def read(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin..end as a copy, (end - begin,) u32, without mapping the file."""
        size = np.dtype(self.dtype).itemsize
        tokens_T = np.fromfile(self.path, self.dtype, end - begin, offset=self.header_bytes + size * begin)
        if len(tokens_T) != end - begin:
            raise DamagedStore(f"{self.path}: ends before token {end}", hint="the file changed while it was read")
        return tokens_T.astype(np.uint32, copy=False)


@dataclass
class TokenShards:
    """A tokenised corpus. Any number of threads and processes may read it."""

    shards: list[Shard]
    identity: str
    """sha256 of the input and of how it was cut into documents."""
    tokenizer_id: str = ""
    """sha256 of the tokenizer; "" where it is not known."""
    tokenizer_name: str = ""
    tokenizer: Tokenizer | None = None

    @property
    def num_tokens(self) -> int:
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        return sum(shard.num_documents for shard in self.shards)

    def documents(self) -> Iterator[np.ndarray]:
        """Every document in order, (T_i,) u32, a copy each."""
        for shard in self.shards:
            tokens_T, starts_D = shard.tokens(), shard.starts().astype(np.int64)
            for d in range(shard.num_documents):
                yield np.array(tokens_T[starts_D[d] : starts_D[d + 1]], np.uint32)

    @classmethod
    def load(cls, path: str | Path) -> TokenShards:
        """Open a cache entry, checking every byte of it.

        Raises FormatError where the folder is not one, DamagedStore where a file is not as it was written.
        """
        folder = Path(path).absolute()  # shards are read later, and in other processes
        manifest = _read_manifest(folder / MANIFEST_NAME)
        shards = [_checked_shard(folder, entry) for entry in manifest["shards"]]
        return cls(shards, manifest["identity"], manifest["tokenizer_id"], manifest["tokenizer_name"])


def manifest_bytes(*, identity: str, tokenizer_id: str, tokenizer_name: str, shards: list[dict[str, Any]]) -> bytes:
    """The manifest of a cache entry, with a checksum over the rest of it."""
    body = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "identity": identity,
        "tokenizer_id": tokenizer_id,
        "tokenizer_name": tokenizer_name,
        "shards": shards,
    }
    return json.dumps(with_crc(body), indent=1).encode()


def held_out_spans(corpus: TokenShards, fraction: float) -> list[np.ndarray]:
    """What mining leaves out to be measured on: for each shard (S, 2) int64 spans [begin, end) of positions, ascending.

    Every document, and every piece of HELD_OUT_UNIT tokens of a longer one, is left out with this probability; which ones is
    a fixed function of their place in the corpus. The first is left out at any fraction above 0 (its hash is 0), and a larger
    fraction leaves out what a smaller one does, and more.
    """
    check_held_out(fraction)
    spans, unit = [], 0
    for shard in corpus.shards:
        starts_D = shard.starts().astype(np.int64)
        lengths_D = np.diff(starts_D)
        units_D = -(-lengths_D // HELD_OUT_UNIT)
        document_U = np.repeat(np.arange(len(lengths_D)), units_D)
        place_U = np.arange(len(document_U)) - np.repeat(np.cumsum(units_D) - units_D, units_D)
        begin_U = starts_D[document_U] + place_U * HELD_OUT_UNIT
        end_U = np.minimum(begin_U + HELD_OUT_UNIT, starts_D[document_U + 1])
        luck_U = row_ids(np.arange(unit, unit + len(begin_U), dtype=np.uint64)).astype(np.float64) / 2.0**64
        spans.append(np.stack([begin_U, end_U], axis=1)[luck_U < fraction])
        unit += len(begin_U)
    return spans


def num_held_out(corpus: TokenShards, fraction: float) -> int:
    """Tokens of the corpus that `held_out_spans` leaves out: near that fraction where there are many documents."""
    return int(sum((span[:, 1] - span[:, 0]).sum() for span in held_out_spans(corpus, fraction)))


def check_held_out(fraction: float) -> None:
    """UsageError for a fraction that none can be."""
    if not 0 <= fraction < 1:
        raise UsageError(f"held_out is {fraction}, it must be at least 0 and below 1")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FormatError(f"{path} does not exist: this is not a folder of token shards") from None
    except (ValueError, RecursionError) as error:
        raise DamagedStore(f"{path} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise FormatError(f"{path} is not a manifest of token shards")
    if manifest.get("version") != FORMAT_VERSION:
        raise UnsupportedVersion(f"{path}: version {manifest.get('version')!r}, this release reads {FORMAT_VERSION}")
    if not crc_fits(manifest):
        raise DamagedStore(f"{path}: the checksum differs", hint=_HINT)
    return manifest


def _checked_shard(folder: Path, entry: dict[str, Any]) -> Shard:
    tokens, starts, num = folder / entry["tokens"], folder / entry["starts"], int(entry["num_tokens"])
    if entry["dtype"] not in _DTYPES or tokens.parent != folder or starts.parent != folder:
        raise DamagedStore(f"{folder}: the manifest names {entry!r}", hint=_HINT)
    for path, size, crc in (
        (tokens, num * np.dtype(entry["dtype"]).itemsize, entry["tokens_crc"]),
        (starts, 8 * (entry["num_documents"] + 1), entry["starts_crc"]),
    ):
        if not path.is_file() or path.stat().st_size != size or file_crc(path) != crc:
            raise DamagedStore(f"{path} is not the file that the manifest names", hint=_HINT)
    shard = Shard(tokens, entry["dtype"], num, int(entry["num_documents"]), starts_path=starts)
    starts_D = shard.starts()
    if starts_D[0] != 0 or starts_D[-1] != num or (starts_D[1:] < starts_D[:-1]).any():
        raise DamagedStore(f"{starts}: offsets do not rise from 0 to {num}", hint=_HINT)
    return shard


def file_crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def inside(spans_S2: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Which of the positions from begin to end lie in one of the ascending spans: (end - begin,) bool."""
    here_S2 = spans_S2[np.searchsorted(spans_S2[:, 1], begin, "right") : np.searchsorted(spans_S2[:, 0], end)] - begin
    change_T = np.zeros(end - begin + 1, np.int32)
    np.add.at(change_T, np.maximum(here_S2[:, 0], 0), 1)
    np.add.at(change_T, np.minimum(here_S2[:, 1], end - begin), -1)
    return np.cumsum(change_T[:-1]) > 0
