"""Changes (puts and tombstones) to the keys and values of the journal, each value under a checksum that knows its ID.

Implements docs/journal.md, section "Keys and values".

Shapes: M changes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ngramstore.errors import DamagedJournal
from ngramstore.layout import Field, Layout

OP_PUT = 1
OP_DELETE = 2

VALUE_HEAD = Layout(
    "journal value head", (Field("op", "B", "1 put, 2 delete"), Field("num_tokens", "B", "tokens of the n-gram"))
)
VALUE_TAIL = Layout("journal value tail", (Field("checksum", "I", "CRC-32 of key, head, tokens and row"),))
STATE_KEY = b"\xff" * 9  # nine bytes: sorts after every ID, and equals none
STATE = Layout(
    "journal state",
    (
        Field("batch", "Q", "appends so far; 1 is the first"),
        Field("num_changes", "Q", "changes of all these appends"),
        Field("num_keys", "Q", "different IDs among them"),
        Field("fingerprint", "I", "XOR of the checksums of the latest value of each ID"),
        Field("checksum", "I", "CRC-32 of the key and of the fields before"),
    ),
)


@dataclass(frozen=True)
class Changes:
    """M changes in columns. Sorted by ID, each ID once, except where a caller of `Journal.get` gave another order."""

    ids: np.ndarray
    """(M,) u64."""
    is_delete: np.ndarray
    """(M,) bool."""
    tokens: np.ndarray
    """(M, width) u32, left-aligned, zero padded."""
    lengths: np.ndarray
    """(M,) u8: number of tokens."""
    rows: np.ndarray
    """(M, row_bytes) u8: the encoded rows; zeros where is_delete."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class State:
    """What the journal says of itself, written in the same atomic batch as the changes it counts."""

    batch: int = 0
    num_changes: int = 0
    num_keys: int = 0
    fingerprint: int = 0

    def pack(self) -> bytes:
        head = STATE.pack(**vars(self), checksum=0)[: STATE.offset("checksum")]
        return head + struct.pack("<I", zlib.crc32(head, zlib.crc32(STATE_KEY)))

    @classmethod
    def unpack(cls, value: bytes, where: object) -> State:
        """Raises DamagedJournal."""
        if len(value) != STATE.size:
            raise DamagedJournal(f"{where}: the journal's state record has {len(value)} bytes, expected {STATE.size}")
        fields = {name: int(number) for name, number in STATE.unpack(value).items()}
        state = cls(fields["batch"], fields["num_changes"], fields["num_keys"], fields["fingerprint"])
        if state.pack() != value:
            raise DamagedJournal(f"{where}: the journal's state record fails its checksum")
        return state


class ValueCodec:
    """Changes to values and back, for one width and one row size."""

    def __init__(self, *, width: int, row_bytes: int) -> None:
        self.width = width
        self.row_bytes = row_bytes
        self.delete_size = VALUE_HEAD.size + 4 * width + VALUE_TAIL.size
        self.put_size = self.delete_size + row_bytes
        self._tokens_end = VALUE_HEAD.size + 4 * width

    def encode(self, changes: Changes) -> tuple[list[bytes], list[bytes], np.ndarray]:
        """Changes -> keys, values and their checksums (M,) u32, in the order given."""
        keys = key_bytes(changes.ids)
        num = len(keys)
        head_MB = np.empty((num, self._tokens_end), np.uint8)
        head_MB[:, 0] = np.where(changes.is_delete, OP_DELETE, OP_PUT)
        head_MB[:, 1] = changes.lengths
        head_MB[:, 2:] = np.ascontiguousarray(changes.tokens, "<u4").view(np.uint8).reshape(num, 4 * self.width)
        bodies = byte_strings(head_MB)
        if self.row_bytes:
            rows = byte_strings(changes.rows)
            bodies = [
                head if gone else head + row
                for head, row, gone in zip(bodies, rows, changes.is_delete.tolist(), strict=True)
            ]
        crc32 = zlib.crc32
        sums = [crc32(body, crc32(key)) for key, body in zip(keys, bodies, strict=True)]
        checksums = np.array(sums, "<u4")
        tails = byte_strings(checksums.view(np.uint8).reshape(num, VALUE_TAIL.size))
        return keys, [body + tail for body, tail in zip(bodies, tails, strict=True)], checksums

    def decode(self, keys: Sequence[bytes], values: Sequence[bytes], where: object) -> tuple[Changes, np.ndarray]:
        """Keys and values -> changes in the same order, and their checksums (M,) u32. Raises DamagedJournal."""
        crc32 = zlib.crc32
        sums = [crc32(value[:-4], crc32(key)) for key, value in zip(keys, values, strict=True)]
        checksums = np.array(sums, "<u4")
        stored = np.frombuffer(b"".join([value[-4:].rjust(4, b"\0") for value in values]), "<u4")
        num_bytes = np.fromiter(map(len, values), np.int64, len(values))
        is_delete = (
            num_bytes == self.delete_size if self.row_bytes else np.array([v[:1] == b"\2" for v in values], bool)
        )
        bad = (stored != checksums) | ~((num_bytes == self.put_size) | (num_bytes == self.delete_size))
        bad |= np.fromiter(map(len, keys), np.int64, len(keys)) != 8
        if bad.any():
            first = int(bad.argmax())
            raise DamagedJournal(
                f"{where}: the value of key 0x{keys[first].hex()} fails its checksum ({int(bad.sum())} of {len(keys)} do)"
            )
        ids = np.frombuffer(b"".join(keys), ">u8").astype(np.uint64)
        heads_MB = np.frombuffer(b"".join([value[: self._tokens_end] for value in values]), np.uint8)
        heads_MB = heads_MB.reshape(len(values), self._tokens_end)
        lengths = heads_MB[:, 1].copy()
        wrong = (heads_MB[:, 0] != np.where(is_delete, OP_DELETE, OP_PUT)) | (lengths > self.width)
        if wrong.any():
            raise DamagedJournal(f"{where}: the value of ID 0x{int(ids[wrong.argmax()]):016x} has a wrong head")
        tokens = np.ascontiguousarray(heads_MB[:, VALUE_HEAD.size :]).view("<u4").astype(np.uint32)
        rows = np.zeros((len(values), self.row_bytes), np.uint8)
        if self.row_bytes:
            packed = b"".join([value[self._tokens_end : -4] for value in values])
            rows[~is_delete] = np.frombuffer(packed, np.uint8).reshape(-1, self.row_bytes)
        return Changes(ids, is_delete, tokens.reshape(len(values), self.width), lengths, rows), checksums


def key_bytes(ids: np.ndarray) -> list[bytes]:
    """(M,) u64 -> M keys of 8 bytes, big-endian, so that byte order is ID order."""
    return byte_strings(ids.astype(">u8").view(np.uint8).reshape(len(ids), 8))


def byte_strings(array_MB: np.ndarray) -> list[bytes]:
    """(M, B) u8 -> M byte strings. Not dtype S: it drops trailing zero bytes."""
    num, size = array_MB.shape
    if num == 0 or size == 0:
        return [b""] * num
    return np.ascontiguousarray(array_MB).view(f"V{size}").ravel().tolist()
