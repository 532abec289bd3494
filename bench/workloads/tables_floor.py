"""The floor under a cold prompt of workload `tables`: which pages any reader must fetch, and a bare loop that hints and
reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native.memory import WILLNEED, posix_fadvise, pread

PAGE_BYTES = 4096


def places(root: Path, name: str, distinct: np.ndarray) -> list[tuple[Path, int]]:
    """Each page that rows of a store lie in, once, in file order: what any reader must fetch."""
    base = json.loads((root / name / "MANIFEST").read_bytes().partition(b"\n")[2])["base"]
    found: list[tuple[Path, int]] = []
    if name == "packed":
        _add_pages(found, root / name / base["rows"]["name"], PAGE_BYTES + distinct * 268, 268)
        return found
    first, sources = 0, [Path(source["path"]) for source in base["external"]["sources"]]
    for num_rows, pieces in base["external"]["segments"]:
        inside = distinct[(distinct >= first) & (distinct < first + num_rows)] - first
        for source, offset, width in pieces:
            _add_pages(found, sources[source], offset + inside * width, width)
        first += num_rows
    if base["external"]["sums"]:
        _add_pages(found, root / name / base["external"]["sums"]["name"], PAGE_BYTES + distinct * 4, 4)
    return found


def _add_pages(found: list[tuple[Path, int]], path: Path, begins: np.ndarray, width: int) -> None:
    numbers = np.unique(np.concatenate([begins // PAGE_BYTES, (begins + width - 1) // PAGE_BYTES]))
    found += [(path, int(number)) for number in numbers]


def page_reader(places: list[tuple[Path, int]]) -> Callable[[], None]:
    """A compiled call that hints all these pages, then reads them one after the other."""
    opened = {path: os.open(path, os.O_RDONLY) for path in {path for path, _ in places}}
    fds = np.array([opened[path] for path, _ in places], np.int32)
    numbers, page = np.array([number for _, number in places]), np.empty(PAGE_BYTES, np.uint8)
    _hint_and_read(fds[:1], numbers[:1], page)
    return lambda: _hint_and_read(fds, numbers, page)


@kernel
def _hint_and_read(fds, numbers, page):
    for i in range(numbers.shape[0]):
        posix_fadvise(np.int32(fds[i]), numbers[i] * 4096, 4096, np.int32(WILLNEED))
    for i in range(numbers.shape[0]):
        pread(np.int32(fds[i]), np.int64(page.ctypes.data), np.uint64(4096), numbers[i] * 4096)
