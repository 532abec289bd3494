"""Warm and cold made sure of: files read into the page cache or dropped from it, and the share that is there counted."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def warm(paths: Iterable[Path]) -> None:
    """Read every file once from start to end."""
    buffer = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget every page of the files.

    Pages that are dirty or mapped by a process stay, so the files are synced first, and the caller closes its maps;
    `resident_share` tells whether it worked.
    """
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident_share(paths: Iterable[Path]) -> float:
    """Share of the files' pages that are in the page cache, by mincore(2): 0.0 to 1.0 (1.0 for no pages at all)."""
    pages = resident = 0
    for path in paths:
        size = path.stat().st_size
        if size == 0:
            continue
        with open(path, "rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
            held = np.frombuffer(view, np.uint8)  # its address is the only way to the map's
            flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            code = _libc.mincore(
                ctypes.c_void_p(held.ctypes.data), ctypes.c_size_t(size), flags.ctypes.data_as(ctypes.c_void_p)
            )
            del held
            if code != 0:
                raise OSError(ctypes.get_errno(), f"mincore failed on {path}")
        pages += flags.size
        resident += int((flags & 1).sum())
    return resident / pages if pages else 1.0
