"""Row keys -> dequantized rows in the caller's buffer: cache, cold reads, journal rows, and what to do about damage.

Shapes: M wanted rows, U unique rows to read, D row width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ngramstore.codec.compress import RowDecompressor
from ngramstore.errors import DamagedRows, DamagedStore, FormatError
from ngramstore.kernels.native import cache as native_cache
from ngramstore.kernels.native import rows as native
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.serve.row_cache import Fetched, RowCache
from ngramstore.store.layer import Layer
from ngramstore.store.view import PENDING_SERIAL, View

_STAGING_BYTES = 16 << 20
_MAX_CHUNK_ROWS = 1 << 16  # of small rows: the reads of a whole prefill in one or two orderings of the file
FEW_ROWS = 8  # so few are copied out under the lock: 4 us a call less than pinning
_FAULT = {
    native.CUT_SHORT: "the file ends inside it, or cannot be read there",
    native.BAD_CHECKSUM: "it fails its checksum",
    native.BAD_INDEX_PAGE: "the index does not say where it is",
}
PendingRows = Callable[[np.ndarray], np.ndarray]
"""Encoded rows (U, B) u8 of the IDs (U,) u64 of unpublished puts."""
CopyOut = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""(source u8, byte offsets (M,), out (M, ...)): a codec's `scatter`, or `copy_encoded`."""


def keep_in_cache(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> None:
    """Copies nothing: rows are wanted in the cache only. Such look-ups are not counted."""


def copy_encoded(source: np.ndarray, offsets_M: np.ndarray, out_MB: np.ndarray) -> None:
    """out[m] = the stored bytes at offsets[m], zeros where -1: rows that stay encoded."""
    there = offsets_M >= 0
    out_MB[~there] = 0
    out_MB[there] = source[offsets_M[there][:, None] + np.arange(out_MB.shape[1])]


class RowSource:
    """Serves rows of one view. Threads: any number; counters are exact under the lock."""

    def __init__(
        self, view: View, cache: RowCache | None, resident: Resident | None, pending: PendingRows | None
    ) -> None:
        self.view = self._view = view
        self.cache = self._cache = cache
        self._resident = resident
        self._pending = pending
        self._codec = view.manifest.spec.codec
        self._in_memory = pending is not None or resident is not None
        spec = view.manifest.spec
        self.seed = np.uint64(spec.seed)
        self.few_max_n = spec.max_n if spec.is_ngram and cache is not None and not self._in_memory else 0
        self._slot_bytes = self._codec.row_bytes + CHECKSUM_BYTES
        self._chunk = max(64, min(_MAX_CHUNK_ROWS, _STAGING_BYTES // self._slot_bytes))

    def fill(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MD: np.ndarray, counts: Counts, copy_out: CopyOut
    ) -> dict[int, str]:
        """out[m] = row of keys[m], zeros where -1. Returns what is wrong with damaged rows, by position; those are zeros."""
        if len(keys_M) <= self._chunk:
            is_few = (
                len(keys_M) <= FEW_ROWS
                and copy_out is not keep_in_cache
                and self._cache is not None
                and not self._in_memory
            )
            if is_few and self._cache.take_few(keys_M, copy_out, out_MD):  # type: ignore[union-attr]
                return {}
            return self._fill_chunk(keys_M, seeds_M, out_MD, counts, copy_out)
        damage: dict[int, str] = {}
        for at in range(0, len(keys_M), self._chunk):
            part = slice(at, at + self._chunk)
            for position, fault in self._fill_chunk(
                keys_M[part], seeds_M[part], out_MD[part], counts, copy_out
            ).items():
                damage[at + position] = fault
        return damage

    def _fill_chunk(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MD: np.ndarray, counts: Counts, copy_out: CopyOut
    ) -> dict[int, str]:
        faults: dict[int, str] = {}

        def fetch(keys_U: np.ndarray, seeds_U: np.ndarray) -> Fetched:
            return self._fetch(keys_U, seeds_U, faults, counts)

        def scatter(source: np.ndarray, offsets_M: np.ndarray) -> None:
            copy_out(source, offsets_M, out_MD)

        if self._in_memory:
            in_files = self._scatter_from_memory(keys_M, out_MD, copy_out)
            if in_files is None:
                return {}
            rest = np.empty((len(in_files), out_MD.shape[1]), out_MD.dtype)
            inner = RowSource(self._view, self._cache, None, None)
            wrong = inner._fill_chunk(keys_M[in_files], seeds_M[in_files], rest, counts, copy_out)
            out_MD[in_files] = rest
            return {int(in_files[position]): fault for position, fault in wrong.items()}
        left: tuple[Fetched, np.ndarray] | None
        if self._cache is None:
            left = self._without_cache(keys_M, seeds_M, fetch)
        else:
            left = self._cache.take(keys_M, seeds_M, fetch, scatter, is_counted=copy_out is not keep_in_cache)
            if left is None and not faults:
                return {}
        if left is not None:
            fetched, waits_M = left
            at_M = np.where(waits_M >= 0, fetched.at[np.maximum(waits_M, 0)] if len(fetched.at) else -1, -1)
            if self._cache is None:
                scatter(fetched.data, at_M)
            else:
                places = np.flatnonzero(waits_M >= 0)
                rest = np.empty((len(places), out_MD.shape[1]), out_MD.dtype)
                copy_out(fetched.data, at_M[places], rest)
                out_MD[places] = rest
        if not faults:
            return {}
        return {m: faults[key] for m, key in enumerate(keys_M.tolist()) if key in faults}

    def _scatter_from_memory(self, keys_M: np.ndarray, out_MD: np.ndarray, copy_out: CopyOut) -> np.ndarray | None:
        """Rows that need no file; returns the positions that do, None if there are none."""
        serials_M = np.where(keys_M >= 0, keys_M >> RANK_BITS, -1)
        offsets_M = np.full(len(keys_M), -1)
        if self._resident is not None and self._resident.is_one_whole_layer and self._pending is None:
            offsets_M = np.where(keys_M >= 0, (keys_M & ((1 << RANK_BITS) - 1)) * self._codec.row_bytes, -1)
            copy_out(self._resident.rows[0], offsets_M, out_MD)
            return None
        done = serials_M == -1
        out_MD[done] = 0
        row_bytes = self._codec.row_bytes

        def copy(source: np.ndarray, offsets: np.ndarray, places: np.ndarray) -> None:
            rows = np.empty((len(places), out_MD.shape[1]), out_MD.dtype)
            copy_out(source, offsets, rows)
            out_MD[places] = rows
            done[places] = True

        if self._pending is not None:
            places = np.flatnonzero(serials_M >= PENDING_SERIAL)
            if len(places):
                rows = self._pending(self._view.pending_ids(keys_M[places]))
                copy(rows.reshape(-1), np.arange(len(places)) * row_bytes, places)
        if self._resident is not None:
            serials_M[np.isin(keys_M, self._resident.damaged)] = -2  # no source has them: left to the files
            for serial, rows in zip(self._resident.serials, self._resident.rows, strict=True):
                places = np.flatnonzero(serials_M == serial)
                if len(places):
                    copy(rows, (keys_M[places] & ((1 << RANK_BITS) - 1)) * row_bytes, places)
        left = np.flatnonzero(~done)
        return left if len(left) else None

    @staticmethod
    def _without_cache(
        keys_M: np.ndarray, seeds_M: np.ndarray, fetch: Callable[[np.ndarray, np.ndarray], Fetched]
    ) -> tuple[Fetched, np.ndarray]:
        count = len(keys_M)
        waits_M = np.empty(count, np.int32)
        keys_U, seeds_U = np.empty(count, np.int64), np.empty(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        unique = native_cache.distinct(seen, keys_M, seeds_M, waits_M, keys_U, seeds_U)
        return fetch(keys_U[:unique], seeds_U[:unique]), waits_M

    def _fetch(self, keys_U: np.ndarray, seeds_U: np.ndarray, faults: dict[int, str], counts: Counts) -> Fetched:
        """Read, check and decompress U rows; damaged ones go to `faults` by key and get place -1."""
        count, slot_bytes, row_bytes = len(keys_U), self._slot_bytes, self._codec.row_bytes
        staging = np.empty(count * slot_bytes, np.uint8)
        lengths, status = np.zeros(count, np.int64), np.empty(count, np.uint8)
        num_bad = native.read_rows(self._view.file_table, keys_U, seeds_U, slot_bytes, True, staging, lengths, status)
        self._view.base.check_unchanged()
        base = self._view.base
        num_sums = count if base.is_checked else int(np.count_nonzero(keys_U >> RANK_BITS != base.serial))
        counts.add_read(count, int(lengths.sum()) + num_sums * CHECKSUM_BYTES)
        at = np.arange(count, dtype=np.int64) * slot_bytes
        if num_bad:
            for u in np.flatnonzero(status).tolist():
                faults[int(keys_U[u])] = _FAULT[int(status[u])]
                at[u] = -1
        serials = keys_U >> RANK_BITS
        for layer in self._view.file_layers:
            if layer.rows.decompressor is not None:
                packed = np.flatnonzero((serials == layer.serial) & (at >= 0) & (lengths < row_bytes))
                if len(packed):
                    slots = staging.reshape(count, slot_bytes)
                    for u, fault in _unpack(layer.rows.decompressor, staging, at, lengths, packed, slots).items():
                        faults[int(keys_U[u])] = fault
                        at[u] = -1
        return Fetched(staging, at)

    def damage_error(self, damage: dict[int, str], keys_M: np.ndarray, names_M: np.ndarray) -> DamagedRows:
        """One error for all damaged rows of a call: what `fill` said, and what the caller knows each position by."""
        positions: dict[int, int] = {}
        for m in damage:
            positions.setdefault(int(keys_M[m]), m)
        keys = list(positions)
        serial, rank = keys[0] >> RANK_BITS, keys[0] & ((1 << RANK_BITS) - 1)
        layer = self._view.layer_of(serial)
        try:
            place = f"at byte {int(layer.places(rank, 1)[0][0]):,}"
        except DamagedStore as error:
            place = f"cannot be found ({error.message})"  # the index file and the byte in it
        ranks = [key & ((1 << RANK_BITS) - 1) for key in keys]
        return DamagedRows(
            f"{layer.path_of(rank)}: row {rank:,} {place}: {damage[positions[keys[0]]]}"
            + (f" (and {len(keys) - 1} more rows of this call: {ranks[1:9]})" if len(keys) > 1 else ""),
            keys=[int(names_M[m]) for m in positions.values()],
        )


def _unpack(
    decompressor: RowDecompressor,
    staging: np.ndarray,
    at_U: np.ndarray,
    lengths_U: np.ndarray,
    packed: np.ndarray,
    slots: np.ndarray,
) -> dict[int, str]:
    """Frames -> rows in their own slots; what is wrong with those that are no frames, by place in the batch."""
    rows = np.empty((len(packed), decompressor.row_bytes), np.uint8)
    try:
        decompressor.decompress(staging, at_U[packed], lengths_U[packed], rows)
    except FormatError as error:
        if len(packed) == 1:
            return {int(packed[0]): error.message}
        faults: dict[int, str] = {}
        for one in packed:  # a bad one must not take the others along
            faults |= _unpack(decompressor, staging, at_U, lengths_U, np.array([one]), slots)
        return faults
    slots[packed, : decompressor.row_bytes] = rows
    return {}


class Resident:
    """All rows of a view's files in memory, encoded: no reads, no cache, no bookkeeping.

    A damaged row raises DamagedRows; with `allow_damage` its key is in `damaged`, and it is left to the files to tell.
    """

    def __init__(self, view: View, previous: Resident | None = None, *, allow_damage: bool = False) -> None:
        self.serials = [layer.serial for layer in view.file_layers]
        known = dict(zip(previous.serials, previous.rows, strict=True)) if previous else {}
        bad: list[int] = previous.damaged.tolist() if previous else []
        self.rows: list[np.ndarray] = [
            known[layer.serial] if layer.serial in known else _load(layer, bad if allow_damage else None)
            for layer in view.file_layers
        ]
        self.damaged: np.ndarray = np.array(bad, np.int64)

    @property
    def is_one_whole_layer(self) -> bool:
        """No overlay, no damaged row: a row's place follows from its rank."""
        return len(self.rows) == 1 and not len(self.damaged)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(rows.nbytes for rows in self.rows)


def _load(layer: Layer, damaged: list[int] | None) -> np.ndarray:
    """All encoded rows of a layer, one after the other: (N * B,) u8; row keys of damaged ones go to `damaged`, if given."""
    rows = np.empty((layer.num_rows, layer.rows.row_bytes), np.uint8)
    step = max(64, _STAGING_BYTES // layer.rows.row_bytes)
    for at in range(0, layer.num_rows, step):
        count = min(step, layer.num_rows - at)
        bad: list[int] | None = None if damaged is None else []
        rows[at : at + count] = layer.read_encoded(at, count, bad=bad)
        if damaged is not None and bad:
            damaged.extend(layer.serial << RANK_BITS | rank for rank in bad)
    return rows.reshape(-1)


class Counts:
    """What a handle has done since it was opened: exact, under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.positions = 0
        self.found = 0
        self.rows_read = 0
        self.bytes_read = 0

    def add_call(self, positions: int, found: int) -> None:
        """One look-up call of so many positions, of which so many were found."""
        with self._lock:
            self.calls += 1
            self.positions += positions
            self.found += found

    def add_read(self, rows: int, num_bytes: int) -> None:
        """Rows read from files."""
        with self._lock:
            self.rows_read += rows
            self.bytes_read += num_bytes

    def as_dict(self) -> dict[str, int]:
        """For `stats`."""
        with self._lock:
            return {
                "calls": self.calls,
                "positions": self.positions,
                "found": self.found,
                "rows_read": self.rows_read,
                "bytes_read": self.bytes_read,
            }
