"""Changes (puts and tombstones) to the keys and values of the journal, each value under a checksum that knows its ID.

Implements docs/journal.md, section "Keys and values".

Shapes: M changes.
"""

from __future__ import annotations

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

    def part(self, start: int, stop: int) -> Changes:
        """A view of the changes start..stop."""
        columns = (self.ids, self.is_delete, self.tokens, self.lengths, self.rows)
        return Changes(*(column[start:stop] for column in columns))


@dataclass(frozen=True)
class State:
    """What the journal says of itself, written in the same atomic batch as the changes it counts."""

    batch: int = 0
    num_changes: int = 0
    num_keys: int = 0
    fingerprint: int = 0

    def pack(self) -> bytes:
        return STATE.sealed(zlib.crc32(STATE_KEY), **vars(self))

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
        assert 1 <= width <= 255 and row_bytes > 0  # a put and a delete are told apart by their size too
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
        rows = byte_strings(changes.rows)
        if changes.is_delete.any():
            rows = [b"" if gone else row for row, gone in zip(rows, changes.is_delete.tolist(), strict=True)]
        bodies = [head + row for head, row in zip(bodies, rows, strict=True)]
        crc32 = zlib.crc32
        sums = [crc32(body, crc32(key)) for key, body in zip(keys, bodies, strict=True)]
        checksums = np.array(sums, "<u4")
        tails = byte_strings(checksums.view(np.uint8).reshape(num, VALUE_TAIL.size))
        return keys, [body + tail for body, tail in zip(bodies, tails, strict=True)], checksums

    def decode(self, keys: Sequence[bytes], values: Sequence[bytes], where: object, out: Changes) -> np.ndarray:
        """Keys and values, in any order, into the M places of `out`; returns their checksums (M,) u32.

        Raises DamagedJournal, naming the first key whose value is not what was written.
        """
        num_bytes = np.fromiter(map(len, values), np.int64, len(values))
        is_delete = num_bytes == self.delete_size
        is_bad = ~is_delete & (num_bytes != self.put_size)
        is_bad |= np.fromiter(map(len, keys), np.int64, len(keys)) != 8
        if is_bad.any():
            raise _damaged_value(keys[int(is_bad.argmax())], where)
        crc32 = zlib.crc32
        sums = [crc32(value[:-4], crc32(key)) for key, value in zip(keys, values, strict=True)]
        checksums = np.array(sums, np.uint32)
        out.ids[:] = np.frombuffer(b"".join(keys), ">u8")
        out.is_delete[:] = is_delete
        for op, size in ((OP_PUT, self.put_size), (OP_DELETE, self.delete_size)):
            places = np.flatnonzero(num_bytes == size)
            if len(places) == 0:
                continue
            picked = values if len(places) == len(values) else [values[place] for place in places.tolist()]
            packed_MB = np.frombuffer(b"".join(picked), np.uint8).reshape(len(places), size)
            to = slice(None) if len(places) == len(values) else places
            tokens_MB, lengths = packed_MB[:, VALUE_HEAD.size : self._tokens_end], packed_MB[:, 1]
            stored = np.ascontiguousarray(packed_MB[:, -4:]).view("<u4")[:, 0]
            is_bad[to] = (stored != checksums[to]) | (packed_MB[:, 0] != op) | (lengths > self.width)
            out.lengths[to] = lengths
            out.tokens[to] = np.ascontiguousarray(tokens_MB).view("<u4")
            out.rows[to] = packed_MB[:, self._tokens_end : -4] if op == OP_PUT else 0
        if is_bad.any():
            raise _damaged_value(keys[int(is_bad.argmax())], where)
        return checksums

    def empty(self, num: int) -> Changes:
        """Room for `num` changes, with anything in it."""
        return Changes(
            np.empty(num, np.uint64),
            np.empty(num, bool),
            np.empty((num, self.width), np.uint32),
            np.empty(num, np.uint8),
            np.empty((num, self.row_bytes), np.uint8),
        )


def _damaged_value(key: bytes, where: object) -> DamagedJournal:
    return DamagedJournal(f"{where}: the value of ID 0x{key.hex()} is not what was written (its checksum differs)")


def key_bytes(ids: np.ndarray) -> list[bytes]:
    """(M,) u64 -> M keys of 8 bytes, big-endian, so that byte order is ID order."""
    return byte_strings(ids.astype(">u8").view(np.uint8).reshape(len(ids), 8))


def byte_strings(array_MB: np.ndarray) -> list[bytes]:
    """(M, B) u8 -> M byte strings. Not dtype S: it drops trailing zero bytes."""
    num, size = array_MB.shape
    if num == 0 or size == 0:
        return [b""] * num
    return np.ascontiguousarray(array_MB).view(f"V{size}").ravel().tolist()
