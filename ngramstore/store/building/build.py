"""Bulk build: rows in any order, from anywhere, into a new store that is readable only when it is complete.

The order on disk is by ID, so the build sorts: `runs.py` does it within a memory budget, and `packing.py` ends the
build. Until the manifest is published the directory holds a file BUILDING, and opening it raises IncompleteStore.

Shapes: M rows of a call, D row width, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import ngramstore
from ngramstore.codec import compress
from ngramstore.errors import StoreClosed, UsageError, WrongProcess
from ngramstore.files import make_directory, our_errors, publish, remove, require_space
from ngramstore.hashing import ngram_ids
from ngramstore.layout import MAX_ROW_BYTES
from ngramstore.options import checked_threads, choose
from ngramstore.store.building.directory import claim_directory, clear_directory
from ngramstore.store.building.packing import Packing, needed_bytes
from ngramstore.store.building.runs import RunSorter
from ngramstore.store.building.spec import checked_memory_bytes, checked_spec
from ngramstore.store.layers.manifest import BUILDING_NAME, LOCK_NAME
from ngramstore.store.layers.names import RUNS_NAME
from ngramstore.store.layers.rows_writer import default_threads
from ngramstore.store.layers.stages import Stages
from ngramstore.system_memory import default_memory_bytes
from ngramstore.windows import NgramArrays, Ngrams, as_array, as_integers, as_ngrams, blank_from
from ngramstore.writer_lock import WriterLock

_log = logging.getLogger("ngramstore")
_ENCODE_BYTES = 1 << 20  # floats of one call from here on are encoded in threads


class Builder:
    """A new store being built (`ngramstore.build` is this class): a context manager to `add` to; nothing is readable until its
    block ends.

    dim: row width D. max_n: longest n-gram K, 1 to 16 (it, tokens and seed: not for addressing="row"). codec: "f32",
    "f16", "bf16", "int8", "int4", "e4m3", or a mapping with options. compression: "auto" stores zstd frames where they
    save 5 % of a sample, "zstd" always, "none" never. duplicates: "error" or "last" wins. tokens=False leaves out the
    n-grams themselves (8 to
    12 B a row): no `items`, no collision checks on later puts. seed: of the IDs; use another one after a HashCollision.
    metadata: anything JSON can hold, kept in the manifest. memory_bytes: memory for the build, by default a quarter of the
    free memory; the rest spills to disk inside `path`. threads: that pack rows (None: one per core, up to 4); the bytes are
    the same. restart: throw away a build that was killed here. progress: a bar on stderr.

    Raises UsageError, IncompleteStore, WriterLocked, HashCollision, DuplicateKey, DiskFull.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dim: int,
        max_n: int | None = None,
        codec: str | Mapping[str, Any] = "int8",
        addressing: str = "ngram",
        compression: str = "auto",
        duplicates: str = "error",
        tokens: bool = True,
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
        memory_bytes: int | None = None,
        threads: int | None = None,
        restart: bool = False,
        progress: bool = False,
    ) -> None:
        self.spec = checked_spec(dim, max_n, codec, addressing, tokens, seed, metadata)
        choose("compression", compression, ("auto", "none", "zstd"))
        choose("duplicates", duplicates, ("error", "last"))
        if self.spec.codec.row_bytes > MAX_ROW_BYTES:
            raise UsageError(f"a row takes {self.spec.codec.row_bytes:,} bytes, at most {MAX_ROW_BYTES:,} are possible")
        compress.refuse_too_long(compression, self.spec.codec.row_bytes)
        self._memory_bytes = checked_memory_bytes(default_memory_bytes() if memory_bytes is None else memory_bytes)
        self._threads = checked_threads(default_threads() if threads is None else threads)
        self.path = Path(path).absolute()  # the build goes on wherever the process changes to
        self._compression = compression
        self._duplicates = duplicates
        self._progress = progress
        self._encoders: ThreadPoolExecutor | None = None
        self._next_row = 0
        self._pid = os.getpid()
        self._stages = Stages()
        self._sorter = RunSorter(
            self.path / RUNS_NAME, self.spec.codec.row_bytes, self.spec.max_n, self._memory_bytes, self._stages
        )  # before the directory is made: its memory may not be had
        self._made_directory = claim_directory(self.path, restart)
        self._lock: WriterLock | None = WriterLock(self.path / LOCK_NAME)
        try:
            claim_directory(self.path, restart)  # again, now that nobody else can have come in between
        except BaseException:
            self._release()
            raise
        try:
            clear_directory(self.path)
            publish(
                self.path / BUILDING_NAME,
                (json.dumps({"release": ngramstore.__version__, "pid": os.getpid()}) + "\n").encode(),
            )
            make_directory(self.path / RUNS_NAME)
        except BaseException:
            self.abort()
            raise

    def check_space(self, num_rows: int) -> None:
        """DiskFull now, not after `num_rows` rows, if the disk cannot hold them; over memory_bytes they take it twice."""
        require_space(self.path, needed_bytes(self.spec, self._sorter, num_rows, self._duplicates), "the build")

    def add(self, ngrams: Ngrams, rows: ArrayLike) -> None:
        """M n-grams (a list of tuples, an array (M, n), or (array (M, max_n), lengths)) and their rows (M, D), any float type.

        The rows of one call are encoded together, on top of memory_bytes: give many in parts.
        Raises UsageError: wrong shapes, NaN or infinite values (row and column named), tokens that are not u32.
        DiskFull: some of the rows may be in by then, so the build takes no more (StoreClosed): begin it again.
        """
        tokens, lengths = self._ngrams(ngrams)
        self._take(tokens, lengths, self._encode(rows, len(lengths)), is_ours=True)

    def add_encoded(self, ngrams: Ngrams, rows: np.ndarray) -> None:
        """As `add`, with rows already encoded by the store's codec: (M, row_bytes) u8, as `codec.pack` makes them. Kept
        bit for bit.

        Rows are copied, unless their array cannot change: a read-only array, or a read-only map of a file. Those are read when
        they are needed, until the build ends: leave the file alone for as long.
        """
        tokens, lengths = self._ngrams(ngrams)
        self._take(tokens, lengths, self._encoded(rows, len(lengths)), is_ours=False)

    def add_rows(self, rows: ArrayLike, numbers: ArrayLike | None = None) -> None:
        """Addressing "row": M rows (M, D), any float type, with their numbers, (M,) integers, by default the next ones.

        Every number 0 .. N-1 once in all, in any order. Raises as `add`, and DiskFull, StoreClosed, WrongProcess.
        """
        self._check_open()
        array = as_array(rows, "rows")
        self._take_numbered(numbers, self._encode(array, len(array) if array.ndim else 0), is_ours=True)

    def add_encoded_rows(self, rows: np.ndarray, numbers: ArrayLike | None = None) -> None:
        """As `add_rows`, with rows already encoded: (M, row_bytes) u8. See `add_encoded`."""
        self._check_open()
        array = np.asanyarray(rows)
        self._take_numbered(numbers, self._encoded(array, len(array) if array.ndim else 0), is_ours=False)

    def finish(self) -> None:
        """Sort, write and publish the store. The context manager calls it; where it fails, `abort` is what is left to do.

        Raises UsageError (nothing added, a row number left out), HashCollision, DuplicateKey, DiskFull, StoreClosed,
        WrongProcess.
        """
        self._check_open()
        begin = time.perf_counter()
        self._sorter.seal()
        with our_errors(self.path):
            Packing(
                path=self.path,
                spec=self.spec,
                sorter=self._sorter,
                stages=self._stages,
                compression=self._compression,
                duplicates=self._duplicates,
                threads=self._threads,
                memory_bytes=self._memory_bytes,
                progress=self._progress,
            ).publish()
        self._stages.add("finish", time.perf_counter() - begin)
        self._release()

    def stats(self) -> dict[str, Any]:
        """Rows taken, how many of them had to be copied, the memory budget, and where the time went: seconds by stage.

        "finish" is all of `finish`, and holds the stages behind it. "pack" adds up the threads that gather, compress and
        checksum rows; "wait for pack" is what `finish` waited for them.
        """
        return {
            "rows": self._sorter.num_rows,
            "rows_copied": self._sorter.num_copied,
            "memory_bytes": self._memory_bytes,
            "seconds": self._stages.seconds(),
        }

    def abort(self) -> None:
        """Give up and remove what was written. In a fork: touches nothing."""
        if self._lock is None or os.getpid() != self._pid:
            return
        try:
            clear_directory(self.path)
            remove(self.path / LOCK_NAME)
        except (OSError, UsageError) as error:  # the file BUILDING goes last: what is left is known to be incomplete
            _log.warning("%s: the build was given up, but not all of it could be removed: %s", self.path, str(error))
        finally:
            self._release()
        if self._made_directory:
            try:
                self.path.rmdir()
            except OSError:
                pass  # somebody put a file of their own there: it stays

    def __enter__(self) -> Builder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lock is not None:  # else it was finished or given up inside
                self.finish()
                return
        except BaseException:
            self.abort()
            raise
        self.abort()

    def _check_open(self) -> None:
        if self._lock is None:
            raise StoreClosed(f"the build of {self.path} has ended", hint="start another build")
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"the build of {self.path} belongs to process {self._pid}, this is {os.getpid()}",
                hint="add rows in the process that began the build",
            )
        if self._sorter.is_torn:
            raise StoreClosed(
                f"{self.path}: an earlier add failed part way, and some of its rows may be in the build",
                hint="begin the build again",
            )

    def _ngrams(self, ngrams: Ngrams) -> NgramArrays:
        self._check_open()
        if not self.spec.is_ngram:
            raise UsageError("this build addresses rows by number", hint="use add_rows(rows)")
        tokens, lengths = as_ngrams(ngrams, self.spec.max_n)
        return blank_from(tokens, lengths), lengths

    def _encode(self, rows: ArrayLike, count: int) -> list[np.ndarray]:
        """The rows in stored form, in one or more pieces."""
        array = as_array(rows, "rows")
        if array.shape != (count, self.spec.dim):
            raise UsageError(f"rows have shape {array.shape}, wanted ({count}, {self.spec.dim})")
        first = self._sorter.num_rows
        with self._stages.timed("encode"):
            if self._threads == 1 or array.nbytes < _ENCODE_BYTES:
                return [self.spec.codec.encode(array, first_row=first)]
            if self._encoders is None:
                self._encoders = ThreadPoolExecutor(self._threads, "ngramstore-encode")
            step = -(-count // self._threads)
            pieces = [
                self._encoders.submit(self.spec.codec.encode, array[at : at + step], first_row=first + at)
                for at in range(0, count, step)
            ]
            wait(pieces)
            return [piece.result() for piece in pieces]  # the first row that cannot be stored is the one that is named

    def _encoded(self, rows: np.ndarray, count: int) -> list[np.ndarray]:
        rows = np.asanyarray(rows)  # a map of a file stays one
        if rows.dtype != np.uint8 or rows.shape != (count, self.spec.codec.row_bytes):
            raise UsageError(
                f"encoded rows are {rows.dtype} {rows.shape}, wanted uint8 ({count}, {self.spec.codec.row_bytes})"
            )
        return [rows]

    def _take(self, tokens: np.ndarray, lengths: np.ndarray, pieces: list[np.ndarray], *, is_ours: bool) -> None:
        with self._stages.timed("hash"):
            ids = ngram_ids(tokens, lengths, self.spec.seed)
        self._sorter.add_pieces(ids, pieces, tokens, lengths, is_ours=is_ours)

    def _take_numbered(self, numbers: ArrayLike | None, pieces: list[np.ndarray], *, is_ours: bool) -> None:
        if self.spec.is_ngram:
            raise UsageError("this build addresses rows by n-gram", hint="use add(ngrams, rows)")
        count = sum(map(len, pieces))
        if numbers is None:
            ids = np.arange(self._next_row, self._next_row + count, dtype=np.uint64)
        else:
            ids = as_integers(numbers, "row numbers")
            if ids.shape != (count,) or (count and ids.min() < 0):
                raise UsageError(f"row numbers must be {count} integers from 0 up, got {ids.dtype} {ids.shape}")
            ids = ids.astype(np.uint64)
        tokens, lengths = np.zeros((count, self.spec.max_n), np.uint32), np.zeros(count, np.uint8)
        self._sorter.add_pieces(ids, pieces, tokens, lengths, is_ours=is_ours)
        self._next_row += count  # last: what was not taken has no number

    def _release(self) -> None:
        if self._encoders is not None:
            self._encoders.shutdown()
            self._encoders = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
