"""What makes RocksDB 9.8 spin is refused before it opens: the records of its MANIFEST and of its write-ahead logs are walked.

One flipped bit in the type of a record can make its reader take it for one of a recycled log, and try again without end.
Both files have one format: blocks of 32 KiB, in them records of a 7-byte header (masked CRC-32C of type and payload,
u16 length, u8 type) and a payload; fewer than 7 bytes at the end of a block are zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ngramstore.errors import DamagedJournal

_BLOCK_BYTES = 32 << 10
_HEADER_BYTES = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_CURRENT = re.compile(rb"(MANIFEST-[0-9]{6,20})\n")


def check_rocksdb_files(directory: Path) -> None:
    """Raises DamagedJournal where RocksDB must not open `directory`. Reads the MANIFEST and the logs, changes nothing."""
    _check_manifest(_current_manifest(directory))
    for log in sorted(directory.glob("*.log")):
        if (position := find_wrong_type(log.read_bytes())) is not None:
            raise DamagedJournal(f"{log}: byte {position}: a record of an unknown type")


def find_wrong_type(log: bytes | bytearray) -> int | None:
    """Where the first record of a type we never write begins, if there is one.

    All other damage to a log is RocksDB's to find: each record carries its own checksum.
    """
    for position, kind, _ in _records(log):
        if not _FULL <= kind <= _LAST:
            return position
    return None


def _current_manifest(directory: Path) -> Path:
    current = directory / "CURRENT"
    try:
        match = _CURRENT.fullmatch(current.read_bytes())
    except FileNotFoundError as error:
        raise DamagedJournal(f"{current}: the file is missing") from error
    if match is None:
        raise DamagedJournal(f"{current}: does not name a MANIFEST")
    return directory / match[1].decode()


def _check_manifest(manifest: Path) -> None:
    """Every record is whole, of a known type, in order. RocksDB itself overlooks a wrong length at the end."""
    try:
        data = manifest.read_bytes()
    except FileNotFoundError as error:
        raise DamagedJournal(f"{manifest}: the file is missing, and CURRENT names it") from error
    is_inside, end = False, 0
    for position, kind, payload_bytes in _records(data):
        end = position + _HEADER_BYTES + payload_bytes
        if not _FULL <= kind <= _LAST or is_inside != (kind in (_MIDDLE, _LAST)):
            raise DamagedJournal(f"{manifest}: byte {position}: a record of type {kind} cannot stand here")
        if _masked(crc32c(data[position + 6 : end])) != int.from_bytes(data[position : position + 4], "little"):
            raise DamagedJournal(f"{manifest}: byte {position}: the record fails its checksum")
        is_inside = kind in (_FIRST, _MIDDLE)
    # A power cut leaves zeros behind the last synced record, or a part of one: never more than what is left of a block.
    if _BLOCK_BYTES - end % _BLOCK_BYTES < _HEADER_BYTES:
        end += _BLOCK_BYTES - end % _BLOCK_BYTES
    if len(data) - end > _BLOCK_BYTES - end % _BLOCK_BYTES and any(data[end:]):
        raise DamagedJournal(f"{manifest}: byte {end}: the record does not end in its block")


def _records(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Position, type and payload bytes of each record, up to one of zeros or one that does not fit its block or the file."""
    position = 0
    while True:
        block_left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if block_left < _HEADER_BYTES:
            position += block_left
            block_left = _BLOCK_BYTES
        header = data[position : position + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES or not any(header):
            return
        payload_bytes = header[4] | header[5] << 8
        if header[6] <= _LAST and _HEADER_BYTES + payload_bytes > min(block_left, len(data) - position):
            return
        yield position, header[6], payload_bytes
        position += _HEADER_BYTES + payload_bytes


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """CRC-32 with the Castagnoli polynomial. About 0.1 us a byte, which does for a MANIFEST of some KiB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
