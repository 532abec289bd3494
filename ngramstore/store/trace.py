"""A trace: which rows were asked for and how often, the most wanted first. A small file to warm other processes from.

Format: docs/tracing.md, section File. A row is named as the store finds it: by its number, or by the ID of its n-gram.

Shapes: K rows of a trace.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore, NotAStore, UnsupportedVersion, UsageError
from ngramstore.files import our_errors, publish_unlocked
from ngramstore.layout import Field, Layout
from ngramstore.options import is_whole

TRACE_VERSION = 1
TRACE_MAGIC = b"ngtrace\x1a"
_CRC_BYTES = 4
_ADDRESSINGS = ("row", "ngram")
"""By the number that stands in the file: not to be reordered."""
_HINT = "record it again: `ngramstore trace`, or `Store.trace`"

TRACE_HEADER = Layout(
    "trace header",
    (
        Field("magic", "8s", "`ngtrace\\x1a`"),
        Field("version", "H", "1"),
        Field("addressing", "H", "0: keys are row numbers, 1: keys are IDs of n-grams"),
        Field("reserved", "I", "0"),
        Field("space", "Q", "rows of the store, or the seed of its IDs: another one is another store"),
        Field("num_lookups", "Q", "look-ups that were recorded"),
        Field("num_keys", "Q", "rows of the trace, K"),
    ),
)


@dataclass(frozen=True)
class Trace:
    """keys (K,) u64 and counts (K,) u64, by falling count, then by key; counts of a bounded recording are lower bounds.

    addressing: "row" (keys are row numbers of a store of `space` rows) or "ngram" (IDs under the seed `space`).
    """

    addressing: str
    space: int
    num_lookups: int
    keys: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        if self.addressing not in _ADDRESSINGS or len(self.keys) != len(self.counts):
            raise UsageError(
                f"a trace of addressing {self.addressing!r}, {len(self.keys)} keys, {len(self.counts)} counts"
            )

    @classmethod
    def of(cls, addressing: str, space: int, num_lookups: int, keys: np.ndarray, counts: np.ndarray) -> Trace:
        """A trace of keys in any order."""
        keys, counts = np.asarray(keys, np.uint64), np.asarray(counts, np.uint64)
        order = np.lexsort((keys, ~counts))
        return cls(addressing, space, num_lookups, keys[order], counts[order])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read and check a file. Raises NotAStore (no trace), UnsupportedVersion, DamagedStore, UsageError (no file to
        be read)."""
        path = Path(path)
        try:
            with our_errors(path):
                data = path.read_bytes()
        except FileNotFoundError:
            raise UsageError(f"there is no file {str(path)!r}", hint="`ngramstore trace` writes traces") from None
        if data[:8] != TRACE_MAGIC:
            raise NotAStore(
                f"{path} is not a trace: it begins with {data[:8]!r}", hint="`ngramstore trace` writes traces"
            )
        if len(data) < TRACE_HEADER.size + _CRC_BYTES:
            raise DamagedStore(
                f"{path} has {len(data)} bytes, a trace has {TRACE_HEADER.size + _CRC_BYTES} at least", hint=_HINT
            )
        head = TRACE_HEADER.unpack(data[: TRACE_HEADER.size])
        if head["version"] != TRACE_VERSION:
            raise UnsupportedVersion(f"{path}: trace version {head['version']!r}, this release reads {TRACE_VERSION}")
        count = int(head["num_keys"])
        if len(data) != TRACE_HEADER.size + 16 * count + _CRC_BYTES:
            raise DamagedStore(f"{path} has {len(data):,} bytes, its header says {count:,} rows", hint=_HINT)
        if zlib.crc32(data[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            raise DamagedStore(f"{path} fails its checksum", hint=_HINT)
        if int(head["addressing"]) >= len(_ADDRESSINGS) or head["reserved"] != 0:
            raise DamagedStore(f"{path}: impossible header {head}", hint=_HINT)
        both = np.frombuffer(data, "<u8", 2 * count, TRACE_HEADER.size).astype(np.uint64)
        return cls(
            _ADDRESSINGS[int(head["addressing"])],
            int(head["space"]),
            int(head["num_lookups"]),
            both[:count],
            both[count:],
        )

    @staticmethod
    def join(traces: Iterable[Trace]) -> Trace:
        """One trace of several of one store, as of its processes: counts and look-ups add up.

        Raises UsageError where there is none, or the stores differ.
        """
        both = list(traces)
        if not both:
            raise UsageError("there are no traces to join", hint="give one at least")
        first = both[0]
        for other in both:
            if (other.addressing, other.space) != (first.addressing, first.space):
                raise UsageError(
                    f"traces of two stores: {first.addressing} {first.space}, {other.addressing} {other.space}"
                )
        keys, places = np.unique(np.concatenate([trace.keys for trace in both]), return_inverse=True)
        counts = np.zeros(len(keys), np.uint64)
        np.add.at(counts, places, np.concatenate([trace.counts for trace in both]))
        return Trace.of(first.addressing, first.space, sum(trace.num_lookups for trace in both), keys, counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: the old bytes or the new ones, whatever happens. Raises UsageError, DiskFull."""
        path = Path(path)
        if not path.parent.is_dir():
            raise UsageError(f"there is no directory {str(path.parent)!r} for the trace", hint="make it first")
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a directory, not a place for a trace", hint="name a file in it")
        head = TRACE_HEADER.pack(
            magic=TRACE_MAGIC,
            version=TRACE_VERSION,
            addressing=_ADDRESSINGS.index(self.addressing),
            reserved=0,
            space=self.space,
            num_lookups=self.num_lookups,
            num_keys=len(self.keys),
        )
        body = head + self.keys.astype("<u8").tobytes() + self.counts.astype("<u8").tobytes()
        publish_unlocked(path, body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little"))

    def top(self, num_keys: int) -> Trace:
        """The most wanted rows only. Raises UsageError for a number below 0."""
        _require_count(num_keys)
        return Trace(self.addressing, self.space, self.num_lookups, self.keys[:num_keys], self.counts[:num_keys])

    def share(self, num_keys: int) -> float:
        """Share of the recorded look-ups that the `num_keys` most wanted rows answer: 0.0 to 1.0. Raises UsageError for
        a number below 0."""
        _require_count(num_keys)
        return float(self.counts[:num_keys].sum()) / self.num_lookups if self.num_lookups else 0.0

    def rows_for(self, share: float) -> int | None:
        """How many of the most wanted rows answer this share of the look-ups; None where the trace's rows do not."""
        wanted = math.ceil(share * self.num_lookups - 1e-6)  # 0.9 * 10 is 9 look-ups, not 10
        if wanted <= 0:
            return 0
        place = int(np.searchsorted(np.cumsum(self.counts), wanted))
        return place + 1 if place < len(self.keys) else None


def _require_count(num_keys: int) -> None:
    if not is_whole(num_keys) or num_keys < 0:
        raise UsageError(f"a number of rows is 0 or more, got {num_keys!r}", hint="give a whole number")
