"""A run: a file of (key, count) pairs in ascending key order, written once, checked while it is read.

Runs are what counting leaves on disk and what merging reads; they live in a work directory and are gone when mining ends.

Shapes: N pairs.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore
from ngramstore.file_writer import FileWriter
from ngramstore.files import remove_if_possible
from ngramstore.layout import Field, Layout
from ngramstore.mine.publish import published

RUN_MAGIC = b"NGRUN\x00\r\n"
RUN_VERSION = 1
RUN_HEADER = Layout(
    "run",
    (
        Field("magic", "8s", 'the bytes "NGRUN", 0, CR, LF'),
        Field("version", "I", "1"),
        Field("data_crc", "I", "CRC-32 of all pairs"),
        Field("num_pairs", "Q", "number of pairs; each is key u64, count u64"),
        Field("reserved", "I", "0"),
        Field("header_crc", "I", "CRC-32 of the 28 bytes before it"),
    ),
)
PAIR_BYTES = 16
_HINT = "mine again with restart=True (`ngramstore mine --restart`)"


class RunWriter:
    """Writes pairs; `run_writer` makes one."""

    def __init__(self, file: FileWriter) -> None:
        self._file = file
        self._file.write(bytes(RUN_HEADER.size))
        self._crc = 0
        self.num_pairs = 0

    def add(self, keys_N: np.ndarray, counts_N: np.ndarray) -> None:
        """Append pairs; keys must go on ascending from call to call."""
        pairs_N2 = np.empty((len(keys_N), 2), "<u8")
        pairs_N2[:, 0] = keys_N
        pairs_N2[:, 1] = counts_N
        self._crc = zlib.crc32(pairs_N2.data, self._crc)
        self._file.write(pairs_N2)
        self.num_pairs += len(keys_N)

    def finish(self) -> None:
        """Write the header, which says how many pairs there are and what they add up to."""
        self._file.rewrite(0, _header(self._crc, self.num_pairs))


@contextmanager
def run_writer(path: Path, *, sync: bool = True) -> Iterator[RunWriter]:
    """A writer whose run appears whole (and synced, unless it is short-lived) when the block ends without an error."""
    with published(Path(path), sync=sync, sync_directory=False) as file:
        writer = RunWriter(file)
        yield writer
        writer.finish()


@contextmanager
def scratch_runs(out_path: Path, purpose: str) -> Iterator[Callable[[], Path]]:
    """Names beside out_path, one a call, for runs that are deleted when the block ends; after a kill the work directory does it.

    No two blocks share a name: a worker may live a moment longer than the run it works for, beside the next one.
    """
    token = secrets.token_hex(8)
    made: list[Path] = []

    def make() -> Path:
        made.append(out_path.with_name(f"{out_path.name}.{purpose}-{token}-{len(made):05d}"))
        return made[-1]

    try:
        yield make
    finally:
        for path in made:
            remove_if_possible(path)


class RunReader:
    """Reads a run in order, a bounded number of pairs at a time.

    Raises DamagedStore on a wrong header or size at once, on wrong pairs when the last block has been read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                head = file.read(RUN_HEADER.size)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise DamagedStore(f"{path}: this run is missing", hint=_HINT) from None
        if len(head) != RUN_HEADER.size:
            raise DamagedStore(f"{path}: {len(head)} bytes are too few for a run", hint=_HINT)
        fields = RUN_HEADER.unpack(head)
        self._crc, self.num_pairs = int(fields["data_crc"]), int(fields["num_pairs"])
        if head != _header(self._crc, self.num_pairs):
            raise DamagedStore(f"{path}: the header of this run is damaged", hint=_HINT)
        if size != RUN_HEADER.size + PAIR_BYTES * self.num_pairs:
            raise DamagedStore(f"{path}: {size} bytes, but the header says {self.num_pairs} pairs", hint=_HINT)

    def blocks(self, num_pairs: int) -> Iterator[np.ndarray]:
        """All pairs in order, (n, 2) u64 with n <= num_pairs at a time."""
        crc, left = 0, self.num_pairs
        with open(self.path, "rb") as file:
            file.seek(RUN_HEADER.size)
            while left:
                pairs_N2 = np.fromfile(file, "<u8", 2 * min(left, num_pairs)).reshape(-1, 2)
                crc = zlib.crc32(pairs_N2.data, crc)
                left -= len(pairs_N2)
                if not len(pairs_N2) or (not left and crc != self._crc):
                    raise DamagedStore(f"{self.path}: the pairs of this run are damaged", hint=_HINT)
                yield pairs_N2


def _header(data_crc: int, num_pairs: int) -> bytes:
    return RUN_HEADER.sealed(magic=RUN_MAGIC, version=RUN_VERSION, data_crc=data_crc, num_pairs=num_pairs, reserved=0)
