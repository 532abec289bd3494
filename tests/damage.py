"""Small stores of every kind, headers that lie, and a process that damages files in place, bit by bit, and asks again.

The damage is done in a child: a signal or a hang there is a failure of the test, not the end of the run. It notes each place
before it touches it, so that the parent can say which one was the last.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zstandard
from helpers import QUICK, NGram, all_ngrams, build_ngrams, rows_of, start_python

import ngramstore as ngs
from ngramstore.codec import compress
from ngramstore.layout import PAGE_BYTES, Layout

START_LIMIT_S = 280.0  # a new machine compiles first
TIME_LIMIT_S = 60.0
NUM_ROWS = 70
Ranges = list[tuple[int, int, int]]
"""Bits, or lengths: (first, stop, step) each."""


def make_ngrams(path: Path, **options) -> None:
    """Base, overlay and tombstones."""
    stored = {ngram: i for i, ngram in enumerate(all_ngrams(2, (0, 1, 2, 3, 300, 70_000, 2**32 - 1)))}
    stored |= {(5, 5, i): 60 + i for i in range(12)}  # 68: more than a block
    build_ngrams(path, stored, **{"dim": 6, "max_n": 3, "compression": "none", **options})
    with ngs.open(path, mode="rw") as writer:
        writer.put([(1, 2, 3), (1,), (9, 9, 9)], rows_of([101, 102, 103], writer.dim))
        writer.delete([(0,), (3, 3), (70_000, 1)])


def make_zstd(path: Path) -> None:
    """Frames without a dictionary; an overlay is never compressed."""
    build_ngrams(path, {(i, i % 7): i for i in range(NUM_ROWS)}, dim=16, max_n=2, compression="zstd")


def make_dictionary(path: Path) -> None:
    """Frames with one. Builds train theirs on 512 rows and more, for 16 KiB; this one is small."""

    def train(sample_MB: np.ndarray) -> bytes:
        return zstandard.train_dictionary(512, [row.tobytes() for row in np.repeat(sample_MB, 16, axis=0)]).as_bytes()

    with mock.patch.object(compress, "train_dictionary", train):
        make_zstd(path)


def make_rows(path: Path, compression: str, replaced: tuple[int, ...]) -> None:
    with ngs.build(path, dim=16, addressing="row", codec="f32", compression=compression) as builder:
        builder.add_rows(rows_of(np.arange(NUM_ROWS), 16))
    if replaced:
        with ngs.open(path, mode="rw") as writer:
            writer.put(replaced, rows_of(np.arange(len(replaced)) + 200, 16))


STORES: dict[str, Callable[[Path], None]] = {
    "raw": make_ngrams,
    "zstd": make_zstd,
    "dictionary": make_dictionary,
    "rows": lambda path: make_rows(path, "none", (3, 65, 69)),
    "rows zstd": lambda path: make_rows(path, "zstd", ()),
}
_BASE = ("MANIFEST", "LOCK", "base-000001.index", "base-000001.rows")
FILES: dict[str, tuple[str, ...]] = {
    "raw": (
        *_BASE,
        "base-000001.tokens",
        *(f"overlay-000002.{suffix}" for suffix in ("index", "rows", "tokens")),
        "tombstones-000002.index",
    ),
    "zstd": (*_BASE, "base-000001.tokens"),
    "dictionary": (*_BASE, "base-000001.tokens"),
    "rows": (*_BASE, "overlay-000002.index", "overlay-000002.rows"),
    "rows zstd": _BASE,
}
"""What each kind is made of, to have a test for each file."""


def forge_header(file: Path, layout: Layout, **changed: int) -> int:
    """Let the header of a data file say something else, under a checksum that is right, which is returned.

    A number stands for the bytes of `content` too.
    """
    data = file.read_bytes()
    fields = layout.unpack(data[: layout.size])
    for name, value in changed.items():
        fields[name] = value.to_bytes(16, "little") if isinstance(fields[name], bytes) else value
    page = layout.pack(**fields) + data[layout.size : PAGE_BYTES - 4]
    crc = zlib.crc32(page)
    file.write_bytes(page + crc.to_bytes(4, "little") + data[PAGE_BYTES:])
    return crc


NGRAMS: list[NGram] = [
    *all_ngrams(2, (0, 1, 2, 3, 9, 300, 70_000, 2**32 - 1)),
    *((i, i % 7) for i in range(NUM_ROWS + 5)),
]
TEXT = [0, 1, 2, 3, 300, 70_000, 2**32 - 1, 1, 2, 3, 9, 9, 9, 7, 0, 5, 5, 1, 9, 2]
"""What STORES are asked: n-grams, stored and absent ones, and a text in which some of theirs occur."""


class Questions:
    """What a store addressed by n-gram is asked: exact n-grams, and the longest matches in a text."""

    def __init__(self, ngrams: Sequence[Sequence[int]] = NGRAMS, text: Sequence[int] = TEXT) -> None:
        self.lengths = np.array([len(ngram) for ngram in ngrams], np.int64)
        self.tokens = np.zeros((len(ngrams), self.lengths.max(initial=1)), np.uint32)
        for line, ngram in zip(self.tokens, ngrams, strict=True):
            line[: len(ngram)] = ngram
        self.text = np.array(text, np.uint32)


_OF_STORES = Questions()


@dataclass
class Answers:
    """All that a store says, to be compared; and how many n-grams and matches, or rows by number, it found."""

    said: tuple[object, ...]
    arrays: list[bytes]
    num_found: int
    num_matched: int


def answers(path: Path, questions: Questions = _OF_STORES) -> Answers:
    """A store's numbers; stored n-grams, absent ones and longest matches, or all rows; the listing."""
    with ngs.open(path, cache_bytes=0, trust_external=True) as store:
        manifest = store._manifest
        said = (store.dim, store.max_n, len(store), store.spec, store.identity, manifest)
        if store.spec.is_ngram:
            fits = questions.lengths <= store.max_n
            rows, found = store.get((questions.tokens[fits], questions.lengths[fits]))
            hit = store.lookup(questions.text)
            arrays = [rows, found, hit.rows, hit.length]
            num_found, num_matched = int(found.sum()), int(hit.found.sum())
        else:
            arrays = [store.rows(np.arange(len(store)))]
            num_found = num_matched = len(store)
        if store.spec.has_tokens or not store.spec.is_ngram:
            for batch in store.batches():
                arrays += batch
    return Answers(said, [array.tobytes() for array in arrays], num_found, num_matched)


@dataclass
class Outcome:
    """What came of a series of damages to one file. `wrong`: those that gave neither an error nor the same answers."""

    refused: int = 0
    same: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{self.refused:,} refused ({kinds}), {self.same:,} gave the same answers"


class _Series:
    """In the child: one file, damaged again and again."""

    def __init__(self, path: Path, name: str, questions: Questions, noted: mmap.mmap) -> None:
        self.path, self.file, self.questions, self.noted = path, path / name, questions, noted
        self.good = answers(path, questions)
        self.outcome = Outcome()
        self.kinds: Counter[str] = Counter()

    def ask(self, number: int, what: str) -> None:
        """The file is damaged; `number` says where, for the parent."""
        self.noted[:8] = (number + 1).to_bytes(8, "little")
        outcome = self.outcome
        try:
            is_same = answers(self.path, self.questions) == self.good
        except ngs.errors.NgramStoreError as error:
            outcome.refused += 1
            self.kinds[type(error).__name__] += 1
            text = str(error)
            if str(self.path) not in text or (self.file.name not in text and self.file.name != "MANIFEST"):
                outcome.wrong.append(f"{what}: the error does not name the file: {text}")
        except Exception as error:
            outcome.wrong.append(f"{what}: {error!r}")
        else:
            outcome.same += 1
            if not is_same:
                outcome.wrong.append(f"{what}: other answers, and no error")

    def flips(self, ranges: Ranges) -> None:
        fd = os.open(self.file, os.O_RDWR)
        for bit in _numbers(ranges):
            byte = os.pread(fd, 1, bit >> 3)
            os.pwrite(fd, bytes([byte[0] ^ 1 << (bit & 7)]), bit >> 3)
            self.ask(bit, f"bit {bit & 7} of byte {bit >> 3}")
            os.pwrite(fd, byte, bit >> 3)
        os.close(fd)

    def cuts(self, ranges: Ranges) -> None:
        """The longest first: each cut is one of what is left."""
        data = self.file.read_bytes()
        with open(self.file, "ab") as file:
            file.write(b"\0")
        self.ask(len(data) + 1, "one byte longer")
        for length in sorted(set(_numbers(ranges)), reverse=True):
            os.truncate(self.file, length)
            self.ask(length, f"cut to {length} bytes")
        self.file.write_bytes(data)

    def end(self) -> Outcome:
        """The file is whole again, and so is the store."""
        if answers(self.path, self.questions) != self.good:
            self.outcome.wrong.append("the store is not what it was before")
        self.outcome.kinds = dict(self.kinds)
        del self.outcome.wrong[20:]
        return self.outcome


def _numbers(ranges: Ranges) -> Iterable[int]:
    return (number for first, stop, step in ranges for number in range(first, stop, step))


def serve(place: str) -> None:
    """The child: a line with what to do in, a line with the outcome out."""
    with open(place, "r+b") as file:
        noted = mmap.mmap(file.fileno(), 8)
    for line in iter(input, ""):
        print(json.dumps(vars(_damage(json.loads(line), noted))), flush=True)


def _damage(asked: dict[str, Any], noted: mmap.mmap) -> Outcome:
    try:
        series = _Series(Path(asked["path"]), asked["name"], Questions(asked["ngrams"], asked["text"]), noted)
    except ngs.errors.NgramStoreError as error:
        return Outcome(wrong=[f"the store cannot be read before it is damaged: {error}"])
    if not series.good.num_found or not series.good.num_matched:
        return Outcome(
            wrong=["none of the n-grams is stored, or none is in the text: damage to rows would not be seen"]
        )
    series.flips(asked["flips"])
    series.cuts(asked["cuts"])
    return series.end()


class Damager:
    """A child that damages one file after the other; started again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._place = tempfile.NamedTemporaryFile(dir=QUICK)  # noqa: SIM115 - lives as long as this object
        self._place.write(bytes(8))
        self._place.flush()

    def damage(
        self,
        path: Path,
        name: str,
        *,
        flips: Ranges,
        cuts: Ranges,
        ngrams: Iterable[Iterable[int]] = NGRAMS,
        text: Iterable[int] = TEXT,
    ) -> Outcome:
        """Flip these bits and cut to these lengths one at a time, and make it a byte longer.

        ngrams, text: what to ask of a store that is none of STORES; some of the n-grams must be stored, and be in the text.
        """
        if self._process is None:
            code = f"import sys\nfrom damage import serve\nserve({self._place.name!r})"
            self._process = start_python(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process = self._process
        os.pwrite(self._place.fileno(), bytes(8), 0)
        asked = {"path": str(path), "name": name, "flips": flips, "cuts": cuts}
        asked |= {
            "ngrams": [[int(token) for token in ngram] for ngram in ngrams],
            "text": [int(token) for token in text],
        }
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        last, since = -1, time.monotonic()
        data = b""
        while not data.endswith(b"\n"):
            if not select.select([process.stdout], [], [], 1.0)[0]:
                if self._last() != last:
                    last, since = self._last(), time.monotonic()
                limit = START_LIMIT_S if last < 0 else TIME_LIMIT_S
                if time.monotonic() - since < limit:
                    continue
                self.close()
                return Outcome(wrong=[f"no answer in {limit} s at bit or length {last}"])
            piece = os.read(process.stdout.fileno(), 1 << 20)
            if not piece:
                code = process.wait()
                why = signal.Signals(-code).name if code < 0 else code
                self.close()
                return Outcome(wrong=[f"the process died at bit or length {self._last()}: {why}"])
            data += piece
        return Outcome(**json.loads(data))

    def _last(self) -> int:
        """The place that the child noted last, -1 while it gets ready."""
        return int.from_bytes(os.pread(self._place.fileno(), 8, 0), "little") - 1

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
