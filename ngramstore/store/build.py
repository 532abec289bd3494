"""Bulk build: rows in any order, from anywhere, into a new store that is readable only when it is complete.

The order on disk is by ID, so the build sorts: `runs.py` does it within a memory budget. Until the manifest is published
the directory holds a file BUILDING, and opening it raises IncompleteStore.

Shapes: M rows of a call, D row width, B bytes of an encoded row, N tokens of the longest n-gram (K).
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

import ngramstore
from ngramstore.codec import compress
from ngramstore.codec.quantize import codec_from_spec
from ngramstore.errors import DuplicateKey, HashCollision, IncompleteStore, StoreClosed, UsageError
from ngramstore.files import (
    WriterLock,
    clear_errors,
    fsync_directory,
    make_directory,
    publish,
    remove,
    remove_if_possible,
    require_space,
)
from ngramstore.hashing import MAX_N, ngram_ids
from ngramstore.kernels.native import index as native_index
from ngramstore.layout import CHECKSUM_BYTES, MAX_ROW_BYTES
from ngramstore.store.index import Index
from ngramstore.store.layer import Batch, LayerWriter
from ngramstore.store.manifest import (
    ADDRESSINGS,
    BUILDING_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    MAX_METADATA_BYTES,
    Manifest,
    Spec,
)
from ngramstore.store.memory import default_memory_bytes
from ngramstore.store.runs import RunSorter
from ngramstore.windows import Ngrams, as_ngrams, blank_from

_OURS = re.compile(
    r"(base|overlay|tombstones)-[0-9]+\.(index|rows|tokens|sums)|journal-[0-9]+|MANIFEST(\.tmp)?|BUILDING(\.tmp)?|LOCK|runs"
)
_log = logging.getLogger("ngramstore")
_SAMPLE_ROWS = 4096


class Builder:
    """Writes a new store; use it as a context manager. `ngramstore.build` explains the arguments."""

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
        self.spec = _checked_spec(dim, max_n, codec, addressing, tokens, seed, metadata)
        _choose("compression", compression, ("auto", "none", "zstd"))
        _choose("duplicates", duplicates, ("error", "last"))
        if self.spec.codec.row_bytes > MAX_ROW_BYTES:
            raise UsageError(f"a row takes {self.spec.codec.row_bytes:,} bytes, at most {MAX_ROW_BYTES:,} are possible")
        if compression == "zstd" and self.spec.codec.row_bytes > compress.MAX_COMPRESSED_ROW_BYTES:
            raise UsageError(f"rows of {self.spec.codec.row_bytes:,} bytes cannot be compressed; 65,535 is the limit")
        self.path = Path(path)
        self._compression = compression
        self._duplicates = duplicates
        self._threads = threads or min(4, os.cpu_count() or 1)
        self._progress = progress
        self._next_row = 0
        self._made_directory = claim_directory(self.path, restart)
        self._lock: WriterLock | None = WriterLock(self.path / LOCK_NAME)
        try:
            claim_directory(self.path, restart)  # again, now that nobody else can have come in between
            clear_directory(self.path)
            publish(
                self.path / BUILDING_NAME,
                (json.dumps({"release": ngramstore.__version__, "pid": os.getpid()}) + "\n").encode(),
            )
            make_directory(self.path / "runs")
        except BaseException:
            self._release()
            raise
        memory = default_memory_bytes() if memory_bytes is None else memory_bytes
        self._sorter = RunSorter(self.path / "runs", self.spec.codec.row_bytes, self.spec.max_n, memory)

    def add(self, ngrams: Ngrams, rows: ArrayLike) -> None:
        """M n-grams (a list of tuples, an array (M, n), or (array (M, max_n), lengths)) and their rows (M, D), any float type.

        Raises UsageError: wrong shapes, NaN or infinite values (row and column named), tokens that are not u32.
        """
        tokens, lengths = self._ngrams(ngrams)
        self._take(tokens, lengths, self._encode(rows, len(lengths)))

    def add_encoded(self, ngrams: Ngrams, rows: np.ndarray) -> None:
        """As `add`, with rows already encoded by the store's codec: (M, B) u8 (`codec.pack` makes them). Kept bit for bit."""
        tokens, lengths = self._ngrams(ngrams)
        self._take(tokens, lengths, self._encoded(rows, len(lengths)))

    def add_rows(self, rows: ArrayLike, numbers: ArrayLike | None = None) -> None:
        """Addressing "row": M rows (M, D) with their numbers, by default the next ones. Every number 0 .. N-1 once in all."""
        array = np.asarray(rows)
        self._take_numbered(numbers, self._encode(array, len(array) if array.ndim else 0))

    def add_encoded_rows(self, rows: np.ndarray, numbers: ArrayLike | None = None) -> None:
        """As `add_rows`, with rows already encoded: (M, B) u8."""
        self._take_numbered(numbers, self._encoded(rows, len(rows)))

    def finish(self) -> None:
        """Sort, write and publish the store. The context manager calls it."""
        self._check_open()
        sorter, spec = self._sorter, self.spec
        sorter.seal()
        with clear_errors(self.path):
            num_rows = self._num_distinct()
            if num_rows == 0:
                raise UsageError("nothing was added to the build", hint="add at least one n-gram and its row")
            require_space(self.path, num_rows * (spec.codec.row_bytes + CHECKSUM_BYTES + 8), "finishing the build")
            dictionary = self._dictionary(num_rows)
            writer = LayerWriter(
                self.path,
                "base",
                1,
                spec,
                num_rows,
                is_keyed=spec.is_ngram,
                dictionary=dictionary,
                threads=self._threads,
            )
            try:
                with tqdm(total=num_rows, desc="pack", unit="row", unit_scale=True, disable=not self._progress) as bar:
                    for batch in _last_of_equal(sorter.sorted_batches()):
                        writer.add(batch)
                        bar.update(len(batch))
                manifest = Manifest(
                    spec=spec,
                    identity=self._identity(writer.content_digest),
                    generation=1,
                    release=ngramstore.__version__,
                    base=None,  # type: ignore[arg-type]
                    base_generation=1,
                    num_rows=num_rows,
                    length_counts=tuple(writer.length_counts.tolist()) if spec.is_ngram else (),
                    suffix_closed=False,
                    journal="journal-000001",
                )
                base = writer.finish(manifest.stamp(1))
            finally:
                writer.close()
            manifest = manifest.next(generation=1, base=base, suffix_closed=self._is_suffix_closed(base, manifest))
            fsync_directory(self.path)
            manifest.write(self.path)
            remove_if_possible(self.path / "runs")
            remove_if_possible(self.path / BUILDING_NAME)
        self._release()

    def abort(self) -> None:
        """Give up and remove what was written."""
        if self._lock is None:
            return
        try:
            clear_directory(self.path)
            remove(self.path / LOCK_NAME)
        except OSError as error:  # the file BUILDING goes last: what is left is known to be incomplete
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
        if kind is not None:
            self.abort()
            return
        try:
            self.finish()
        except BaseException:
            self.abort()
            raise

    def _check_open(self) -> None:
        if self._lock is None:
            raise StoreClosed(f"the build of {self.path} has ended", hint="start another build")

    def _ngrams(self, ngrams: Ngrams) -> tuple[np.ndarray, np.ndarray]:
        self._check_open()
        if not self.spec.is_ngram:
            raise UsageError("this build addresses rows by number", hint="use add_rows(rows)")
        tokens, lengths = as_ngrams(ngrams, self.spec.max_n)
        return blank_from(tokens, lengths), lengths

    def _encode(self, rows: ArrayLike, count: int) -> np.ndarray:
        array = np.asarray(rows)
        if array.shape != (count, self.spec.dim):
            raise UsageError(f"rows have shape {array.shape}, wanted ({count}, {self.spec.dim})")
        return self.spec.codec.encode(array, first_row=self._sorter.num_rows)

    def _encoded(self, rows: np.ndarray, count: int) -> np.ndarray:
        if rows.dtype != np.uint8 or rows.shape != (count, self.spec.codec.row_bytes):
            raise UsageError(
                f"encoded rows are {rows.dtype} {rows.shape}, wanted uint8 ({count}, {self.spec.codec.row_bytes})"
            )
        return rows

    def _take(self, tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> None:
        self._sorter.add(Batch(ngram_ids(tokens, lengths, self.spec.seed), rows, tokens, lengths))

    def _take_numbered(self, numbers: ArrayLike | None, rows: np.ndarray) -> None:
        self._check_open()
        if self.spec.is_ngram:
            raise UsageError("this build addresses rows by n-gram", hint="use add(ngrams, rows)")
        if numbers is None:
            ids = np.arange(self._next_row, self._next_row + len(rows), dtype=np.uint64)
        else:
            ids = np.asarray(numbers)
            if ids.dtype.kind not in "iu" or ids.shape != (len(rows),) or (ids.size and ids.min() < 0):
                raise UsageError(f"row numbers must be {len(rows)} integers from 0 up, got {ids.dtype} {ids.shape}")
            ids = ids.astype(np.uint64)
        self._next_row += len(rows)
        self._sorter.add(
            Batch(ids, rows, np.zeros((len(rows), self.spec.max_n), np.uint32), np.zeros(len(rows), np.uint8))
        )

    def _num_distinct(self) -> int:
        """Rows that will be stored; DuplicateKey or HashCollision before anything is written."""
        distinct = 0
        for ids, tokens_at in self._sorter.sorted_ids():
            equal = np.flatnonzero(ids[1:] == ids[:-1])
            if len(equal) and self.spec.is_ngram:
                self._check_equal(tokens_at(equal), tokens_at(equal + 1))
            elif len(equal) and self._duplicates == "error":
                raise DuplicateKey(f"row {ids[equal[0]]} was added twice")
            if not self.spec.is_ngram and len(ids):
                kept = np.append(ids[:-1][ids[1:] != ids[:-1]], ids[-1])
                gaps = np.flatnonzero(kept != np.arange(distinct, distinct + len(kept), dtype=np.uint64))
                if len(gaps):
                    raise UsageError(
                        f"row {distinct + int(gaps[0])} was never added", hint="row numbers must be 0 .. N-1"
                    )
            distinct += len(ids) - len(equal)
        return distinct

    def _check_equal(self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> None:
        same = (left[1] == right[1]) & (left[0] == right[0]).all(axis=1)
        if not same.all():
            i = int(np.flatnonzero(~same)[0])
            raise collision(_ngram(left, i), _ngram(right, i), self.spec.seed)
        if self._duplicates == "error":
            raise DuplicateKey(f"the n-gram {_ngram(left, 0)} was added twice")

    def _dictionary(self, num_rows: int) -> bytes | None:
        """The zstd dictionary of the rows, or None to store them as they are."""
        row_bytes = self.spec.codec.row_bytes
        if self._compression == "none" or row_bytes > compress.MAX_COMPRESSED_ROW_BYTES:
            return None
        sample = self._sample(num_rows)
        dictionary = compress.train_dictionary(sample[::2])
        is_worth_it = compress.saving(sample[1::2], dictionary) >= compress.WORTH_SAVING
        return dictionary if is_worth_it or self._compression == "zstd" else None

    def _sample(self, num_rows: int) -> np.ndarray:
        """The first rows in ID order: IDs are hashes, so that is a random choice, and the same for any order of adding."""
        rows: list[np.ndarray] = []
        for batch in self._sorter.sorted_batches():
            rows.append(batch.rows[: _SAMPLE_ROWS - sum(map(len, rows))])
            if sum(map(len, rows)) >= min(num_rows, _SAMPLE_ROWS):
                break
        return np.concatenate(rows)

    def _is_suffix_closed(self, base: Any, manifest: Manifest) -> bool:
        spec = self.spec
        if not spec.is_ngram:
            return False
        stored = np.flatnonzero(manifest.length_counts)
        if len(stored) <= 1:
            return True
        index, file = Index.open(
            self.path, base.index, manifest.stamp(1), is_keyed=True, is_sized=base.is_compressed, lock=False
        )
        closed = all(
            suffixes_are_stored(index, tokens, lengths, int(stored[0]), spec.seed)
            for tokens, lengths in self._sorter.token_batches()
        )
        file.close()
        return closed

    def _identity(self, content: bytes) -> str:
        """A UUID made from what the store holds, so that equal builds give equal bytes."""
        spec = self.spec
        names = [spec.addressing, spec.dim, spec.max_n, spec.codec.spec(), spec.seed, spec.metadata, content.hex()]
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "ngramstore:" + json.dumps(names, sort_keys=True)))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def suffixes_are_stored(index: Index, tokens_MN: np.ndarray, lengths_M: np.ndarray, shortest: int, seed: int) -> bool:
    """Whether each n-gram longer than `shortest` has its (n-1)-token suffix in the index."""
    longer = lengths_M > shortest
    ids = ngram_ids(tokens_MN[longer, 1:], lengths_M[longer] - 1, seed)
    keys = np.empty(len(ids), np.int64)
    done = native_index.find(index.layer[None], ids, keys)
    if done < len(ids):
        raise index.damaged(int(-2 - keys[done]) // 8)
    return bool((keys >= 0).all())


def collision(left: tuple[int, ...], right: tuple[int, ...], seed: int) -> HashCollision:
    """The error for two n-grams with one ID."""
    return HashCollision(
        f"the n-grams {left} and {right} have the same 64-bit ID under seed {seed}",
        hint=f"build again with seed={seed + 1}",
    )


def _ngram(pair: tuple[np.ndarray, np.ndarray], i: int) -> tuple[int, ...]:
    return tuple(pair[0][i, : pair[1][i]].tolist())


def _last_of_equal(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Drop all but the last of rows with equal IDs, also across batches."""
    held: Batch | None = None
    for batch in batches:
        if len(batch) == 0:
            continue
        if held is not None and held.ids[0] != batch.ids[0]:
            yield held
        last = len(batch) - 1
        keep = batch.ids[1:] != batch.ids[:-1]
        front = batch.take(slice(0, last))
        if last:
            yield front if keep.all() else front.take(keep)
        held = batch.take(slice(last, last + 1))
    if held is not None:
        yield held


def _checked_spec(
    dim: int,
    max_n: int | None,
    codec: Any,
    addressing: str,
    tokens: bool,
    seed: int,
    metadata: Mapping[str, Any] | None,
) -> Spec:
    _choose("addressing", addressing, ADDRESSINGS)
    if not isinstance(dim, (int, np.integer)) or dim < 1:
        raise UsageError(f"dim must be a positive integer, got {dim!r}")
    if addressing == "ngram" and max_n is None:
        raise UsageError("max_n is missing", hint="give the length of the longest n-gram, 1 to 16")
    if addressing == "row" and max_n is not None:
        raise UsageError(f"max_n={max_n} has no meaning for rows addressed by number")
    if max_n is not None and (not isinstance(max_n, (int, np.integer)) or not 1 <= max_n <= MAX_N):
        raise UsageError(f"max_n must be 1 to {MAX_N}, got {max_n!r}")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 64:
        raise UsageError(f"seed must be an integer 0 .. 2**64 - 1, got {seed!r}")
    try:
        plain = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"metadata must be a mapping that JSON can hold: {error}") from error
    if (size := len(json.dumps(plain, indent=1))) > MAX_METADATA_BYTES:
        raise UsageError(f"metadata takes {size:,} bytes as JSON, at most {MAX_METADATA_BYTES:,} are possible")
    return Spec(
        addressing=addressing,
        dim=int(dim),
        max_n=int(max_n or 1),
        codec=codec_from_spec(codec, int(dim)),
        seed=int(seed),
        has_tokens=bool(tokens) and addressing == "ngram",
        metadata=plain,
    )


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name} is {value!r}", hint=f"choose one of {', '.join(known)}")


def claim_directory(path: Path, restart: bool) -> bool:
    """Make or take over the directory; True if it was made."""
    with clear_errors(path):
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file", hint="a store is a directory; choose another path")
        if not path.exists():
            make_directory(path)
            return True
        if (path / MANIFEST_NAME).exists():
            raise UsageError(f"{path} already holds a store", hint="choose another path, or delete the directory first")
        if (path / BUILDING_NAME).exists():
            if not restart:
                raise IncompleteStore(f"an earlier build in {path} never finished")
            return False
        strangers = [name for name in os.listdir(path) if name not in (LOCK_NAME, BUILDING_NAME + ".tmp")]
        if (
            strangers
        ):  # also files of ours: without BUILDING they are not what a build left, but a store without its manifest
            raise UsageError(f"{path} is not empty (it holds {strangers[0]!r})", hint="build into a new directory")
    return False


def clear_directory(path: Path) -> None:
    """Remove every file of ours but the lock, the manifest first, BUILDING last; files of others stay."""
    for name in sorted(os.listdir(path), key=lambda name: (name != MANIFEST_NAME, name == BUILDING_NAME)):
        if _OURS.fullmatch(name) and name != LOCK_NAME:
            remove(path / name)
