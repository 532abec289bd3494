"""One flipped bit is found from the checksum that fails, and flipped back, in whatever is under a CRC-32."""

from __future__ import annotations

import errno
import os
import random
import zlib

import pytest
from helpers import build_ngrams, flip, published

from ngramstore.store.repair.check import verify
from ngramstore.store.repair.mending import mended_crc
from ngramstore.store.repair.repair import repair

STORED = {(1,): 1, (2,): 2, (1, 2): 3}


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_each_single_flip_is_mended(size):
    good = random.Random(size).randbytes(size)
    crc = zlib.crc32(good)
    assert mended_crc(good, crc) == good
    for bit in range(8 * size):
        bad = bytearray(good)
        bad[bit >> 3] ^= 1 << (bit & 7)
        assert mended_crc(bytes(bad), crc) == good


@pytest.mark.parametrize("size", [1 << 15, (1 << 20) + 7])
def test_a_flip_is_mended_in_long_bytes_too(size):
    good = random.Random(size).randbytes(size)
    for bit in (0, 7, 8, 4 * size, 8 * size - 1):
        bad = bytearray(good)
        bad[bit >> 3] ^= 1 << (bit & 7)
        assert mended_crc(bytes(bad), zlib.crc32(good)) == good


def test_two_flips_are_not_mended():
    rng = random.Random(7)
    good = rng.randbytes(1000)
    for _ in range(50):
        bad = bytearray(good)
        for bit in rng.sample(range(8000), 2):
            bad[bit >> 3] ^= 1 << (bit & 7)
        assert mended_crc(bytes(bad), zlib.crc32(good)) is None
    assert mended_crc(b"", 5) is None


def test_one_bit_of_a_manifest_of_any_size_is_mended(quick_path):
    path = quick_path / "store"
    build_ngrams(path, STORED, metadata={"words": ["x" * 100] * 4000})
    good = (path / "MANIFEST").read_bytes()
    assert 400_000 < len(good) < 1 << 20
    line = good.index(b"\n")
    for at in (2, line - 10, line, line + 1, len(good) // 2, len(good) - 1):
        flip(path / "MANIFEST", at, 3)
        assert [(fault.offset, fault.what) for fault in verify(path)] == [(at, "one bit is flipped")]
        (path / "MANIFEST").write_bytes(good)
    flip(path / "MANIFEST", len(good) // 3)
    assert repair(path).lost == []
    assert published(path) == STORED


def test_a_manifest_that_grew_to_no_end_is_not_read_to_it(quick_path):
    path = quick_path / "store"
    build_ngrams(path, STORED)
    os.truncate(path / "MANIFEST", 1 << 40)
    assert [fault.file for fault in verify(path)] == ["MANIFEST"]


def test_a_manifest_with_an_unreadable_page_is_a_fault_that_names_it(quick_path, monkeypatch):
    path = quick_path / "store"
    build_ngrams(path, STORED, metadata={"words": "x" * 10_000})
    inode, real = (path / "MANIFEST").stat().st_ino, os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        if os.fstat(fd).st_ino == inode and 4096 <= at < 8192:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, min(size, 4096 - at) if os.fstat(fd).st_ino == inode and at < 4096 else size, at)

    monkeypatch.setattr(os, "pread", pread)
    assert [str(fault) for fault in verify(path)] == ["MANIFEST at byte 4096: cannot be read: Input/output error"]
