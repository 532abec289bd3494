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
from ngramstore.kernels.native.dequantize import NUM_PLAN, scatter
from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.serve.row_cache import Fetched, RowCache
from ngramstore.serve.split import Workers
from ngramstore.store.layer import Layer
from ngramstore.store.view import PENDING_SERIAL, View

_STAGING_BYTES = 16 << 20
_MAX_CHUNK_ROWS = 1 << 16  # of small rows: the reads of a whole prefill in one or two orderings of the file
_FAULT = {
    native.CUT_SHORT: "the file ends inside it, or cannot be read there",
    native.BAD_CHECKSUM: "it fails its checksum",
    native.BAD_INDEX_PAGE: "the index does not say where it is",
}
_IN_ORDER = np.empty(0, np.int64)
PendingRows = Callable[[np.ndarray], np.ndarray]
"""Encoded rows (U, B) u8 of the IDs (U,) u64 of unpublished puts."""
KEEP: np.ndarray = np.zeros(NUM_PLAN, np.int64)
"""A plan that copies nothing: rows are wanted in the cache only. Such look-ups are not counted."""


class RowSource:
    """Serves rows of one view. Threads: any number; counters are exact under the lock."""

    def __init__(
        self,
        view: View,
        cache: RowCache | None,
        resident: Resident | None,
        pending: PendingRows | None,
        workers: Workers,
    ) -> None:
        self._workers = workers
        self.view = self._view = view
        self.cache = self._cache = cache
        self._resident = resident
        self._pending = pending
        self._codec = view.manifest.spec.codec
        self._in_memory = pending is not None or resident is not None
        self._chunk = max(64, min(_MAX_CHUNK_ROWS, _STAGING_BYTES // (self._codec.row_bytes + CHECKSUM_BYTES)))

    def fill(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MD: np.ndarray, counts: Counts, plan: np.ndarray
    ) -> dict[int, str]:
        """out[m] = row of keys[m] by `plan`, zeros where -1: u8 or numbers, C-contiguous.

        Returns what is wrong with damaged rows, by position; those are zeros.
        """
        out_MB = out_MD.view(np.uint8)
        parts = self._workers.parts(len(keys_M)) if plan is not KEEP else [slice(0, len(keys_M))]
        if len(parts) == 1:
            return self._fill_part(keys_M, seeds_M, out_MB, counts, plan)
        found = self._workers.run(
            lambda part: self._fill_part(keys_M[part], seeds_M[part], out_MB[part], counts, plan), parts
        )
        return {part.start + m: what for part, faults in zip(parts, found, strict=True) for m, what in faults.items()}

    def _fill_part(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MB: np.ndarray, counts: Counts, plan: np.ndarray
    ) -> dict[int, str]:
        if self._in_memory:
            places = self._fill_from_memory(keys_M, out_MB, plan)
            if len(places) and self._cache is not None:
                rest = RowSource(self._view, self._cache, None, None, self._workers)
                return rest._fill_some(places, keys_M, seeds_M, out_MB, counts, plan)
        elif self._cache is not None:
            places = self._cache.serve(plan, keys_M, out_MB)
        else:
            out_MB[keys_M < 0] = 0
            places = np.flatnonzero(keys_M >= 0)
        return self._read(places, keys_M, seeds_M, out_MB, counts, plan) if len(places) else {}

    def _fill_some(
        self,
        places: np.ndarray,
        keys_M: np.ndarray,
        seeds_M: np.ndarray,
        out_MB: np.ndarray,
        counts: Counts,
        plan: np.ndarray,
    ) -> dict[int, str]:
        """`fill` for some positions of a batch."""
        rest = np.empty((len(places), out_MB.shape[1]), np.uint8)
        wrong = self._fill_part(keys_M[places], seeds_M[places], rest, counts, plan)
        if plan is not KEEP:
            out_MB[places] = rest
        return {int(places[position]): fault for position, fault in wrong.items()}

    def _read(
        self,
        places: np.ndarray,
        keys_M: np.ndarray,
        seeds_M: np.ndarray,
        out_MB: np.ndarray,
        counts: Counts,
        plan: np.ndarray,
    ) -> dict[int, str]:
        """Rows of some positions from the files: each key is read once, kept in the cache, and copied out from where it was read."""
        count = len(places)
        waits_X, keys_U, seeds_U = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        num_keys = native_cache.distinct(seen, keys_M[places], seeds_M[places], waits_X, keys_U, seeds_U)
        damage: dict[int, str] = {}
        for first in range(0, num_keys, self._chunk):
            last = min(num_keys, first + self._chunk)
            faults: dict[int, str] = {}
            fetched = self._fetch(keys_U[first:last], seeds_U[first:last], faults, counts)
            if self._cache is not None:
                self._cache.insert(fetched, keys_U[first:last])
            is_here = slice(None) if num_keys <= self._chunk else (waits_X >= first) & (waits_X < last)
            to, of = places[is_here], waits_X[is_here] - first
            if plan is not KEEP:
                scatter(plan, fetched.data, fetched.at[of], to, out_MB)
            if faults:
                damage |= {
                    m: faults[key] for m, key in zip(to.tolist(), keys_M[to].tolist(), strict=True) if key in faults
                }
        return damage

    def _fill_from_memory(self, keys_M: np.ndarray, out_MB: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """Rows that need no file; returns the positions that do."""
        row_bytes = self._codec.row_bytes
        resident, pending = self._resident, self._pending
        if resident is not None and resident.is_one_whole_layer and pending is None:
            offsets_M = np.where(keys_M >= 0, (keys_M & RANK_MASK) * row_bytes, -1)
            if plan is not KEEP:
                scatter(plan, resident.rows[0], offsets_M, _IN_ORDER, out_MB)
            return _IN_ORDER
        serials_M = np.where(keys_M >= 0, keys_M >> RANK_BITS, -1)
        done = serials_M == -1
        if plan is not KEEP:
            out_MB[done] = 0

        def copy(source: np.ndarray, offsets: np.ndarray, places: np.ndarray) -> None:
            done[places] = True
            if plan is not KEEP:
                scatter(plan, source, offsets, places, out_MB)

        if pending is not None:
            places = np.flatnonzero(serials_M >= PENDING_SERIAL)
            if len(places):
                rows = pending(self._view.pending_ids(keys_M[places]))
                copy(rows.reshape(-1), np.arange(len(places)) * row_bytes, places)
        if resident is not None:
            serials_M[np.isin(keys_M, resident.damaged)] = -2  # no source has them: left to the files
            for serial, rows in zip(resident.serials, resident.rows, strict=True):
                places = np.flatnonzero(serials_M == serial)
                if len(places):
                    copy(rows, (keys_M[places] & RANK_MASK) * row_bytes, places)
        return np.flatnonzero(~done)

    def _fetch(self, keys_U: np.ndarray, seeds_U: np.ndarray, faults: dict[int, str], counts: Counts) -> Fetched:
        """Read, check and decompress U rows; damaged ones go to `faults` by key and get place -1."""
        count, row_bytes = len(keys_U), self._codec.row_bytes
        slot_bytes = row_bytes + CHECKSUM_BYTES
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
        serial, rank = keys[0] >> RANK_BITS, keys[0] & RANK_MASK
        layer = self._view.layer_of(serial)
        try:
            place = f"at byte {int(layer.places(rank, 1)[0][0]):,}"
        except DamagedStore as error:
            place = f"cannot be found ({error.message})"  # the index file and the byte in it
        ranks = [key & RANK_MASK for key in keys]
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
    """What a handle has done since it was opened: exact. `shared` is added to by kernels, the rest under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.shared = np.zeros(5, np.int64)
        """Calls, positions, found, rows and bytes read of look-ups that one kernel served."""
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
            calls, positions, found, rows_read, bytes_read = self.shared.tolist()
            return {
                "calls": self.calls + calls,
                "positions": self.positions + positions,
                "found": self.found + found,
                "rows_read": self.rows_read + rows_read,
                "bytes_read": self.bytes_read + bytes_read,
            }
