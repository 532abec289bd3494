"""Row keys -> dequantized rows in the caller's buffer: cache, cold reads, journal rows, and what to do about damage.

Shapes: M wanted rows, U unique rows to read, D row width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ngramstore.codec.compress import RowDecompressor
from ngramstore.errors import DamagedRows, DamagedStore, FormatError
from ngramstore.kernels.native import rows as native
from ngramstore.kernels.native.arrivals import keep_and_write
from ngramstore.kernels.native.dequantize import scatter
from ngramstore.kernels.native.distinct import distinct
from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.serve.counts import Counts
from ngramstore.serve.resident import Resident
from ngramstore.serve.row_cache import NO_CACHE, NO_WRITER, NOWHERE, RowCache
from ngramstore.serve.split import Workers
from ngramstore.store.layers.external import IN_PLACE_HINT
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


@dataclass(frozen=True)
class _Fetched:
    """U rows read for a batch: row u begins at data[at[u]]; at -1: it could not be read."""

    data: np.ndarray
    at: np.ndarray


@dataclass(frozen=True)
class _Compressed:
    """A layer whose rows are compressed where that saves something."""

    serial: int
    decompressor: RowDecompressor


class RowSource:
    """Serves rows of one view. What is read is added to the caller's `Counts`. Threads: any number."""

    def __init__(
        self,
        view: View,
        cache: RowCache | None,
        resident: Resident | None,
        pending: PendingRows | None,
        workers: Workers,
    ) -> None:
        self._workers = workers
        self.view = view
        self.cache = cache
        self._state = NO_CACHE if cache is None else cache.state
        self.resident = resident
        self._pending = pending
        self._codec = view.manifest.spec.codec
        self._in_memory = pending is not None or resident is not None
        self._compressed = [
            _Compressed(layer.serial, layer.rows.decompressor)
            for layer in view.file_layers
            if layer.rows.decompressor is not None
        ]
        self._slot_bytes = self._codec.row_bytes + CHECKSUM_BYTES
        self._chunk = max(64, min(_MAX_CHUNK_ROWS, _STAGING_BYTES // self._slot_bytes))

    def fill(self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MD: np.ndarray, counts: Counts) -> dict[int, str]:
        """out[m] = row of keys[m] as the type of `out` says (u8: as stored), zeros where -1; C-contiguous.

        Returns what is wrong with damaged rows, by position; those are zeros.
        """
        plan, out_MB = self._codec.plan(out_MD.dtype.char), out_MD.view(np.uint8)
        parts = self._workers.parts(len(keys_M))
        if len(parts) == 1:
            return self._fill_part(keys_M, seeds_M, out_MB, counts, plan)
        found = self._workers.run(
            lambda part: self._fill_part(keys_M[part], seeds_M[part], out_MB[part], counts, plan), parts
        )
        return {part.start + m: what for part, faults in zip(parts, found, strict=True) for m, what in faults.items()}

    def bring(self, keys_M: np.ndarray, seeds_M: np.ndarray, counts: Counts) -> dict[int, str]:
        """Bring the rows of M different keys from files into the cache, which there must be; of those it has, the use is noted.

        Rows that are not published yet are left out. Returns what is wrong with damaged rows, by position.
        """
        assert self.cache is not None
        in_files = np.flatnonzero((keys_M >= 0) & (keys_M >> RANK_BITS < PENDING_SERIAL))
        places = in_files[self.cache.absent(keys_M[in_files])]
        return self._read(places, keys_M, seeds_M, NOWHERE, counts, NO_WRITER)

    def read_absent(
        self, places: np.ndarray, keys_M: np.ndarray, seeds_M: np.ndarray, out_MD: np.ndarray, counts: Counts
    ) -> dict[int, str]:
        """Rows at some positions, which are not in the cache; returns what is wrong with damaged ones, by position."""
        plan = self._codec.plan(out_MD.dtype.char)
        return self._read(places, keys_M, seeds_M, out_MD.view(np.uint8), counts, plan)

    def _fill_part(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MB: np.ndarray, counts: Counts, plan: np.ndarray
    ) -> dict[int, str]:
        if not self._in_memory:
            return self._fill_from_files(keys_M, seeds_M, out_MB, counts, plan)
        places = self._fill_from_memory(keys_M, out_MB, plan)
        if not len(places):
            return {}
        if self.cache is None:
            return self._read(places, keys_M, seeds_M, out_MB, counts, plan)
        rest = np.empty((len(places), out_MB.shape[1]), np.uint8)
        wrong = self._fill_from_files(keys_M[places], seeds_M[places], rest, counts, plan)
        out_MB[places] = rest
        return {int(places[position]): fault for position, fault in wrong.items()}

    def _fill_from_files(
        self, keys_M: np.ndarray, seeds_M: np.ndarray, out_MB: np.ndarray, counts: Counts, plan: np.ndarray
    ) -> dict[int, str]:
        """Rows of the cache, and those that are not there from the files."""
        if self.cache is not None:
            places = self.cache.serve(plan, keys_M, out_MB)
        else:
            out_MB[keys_M < 0] = 0
            places = np.flatnonzero(keys_M >= 0)
        return self._read(places, keys_M, seeds_M, out_MB, counts, plan) if len(places) else {}

    def _read(
        self,
        places: np.ndarray,
        keys_M: np.ndarray,
        seeds_M: np.ndarray,
        out_MB: np.ndarray,
        counts: Counts,
        plan: np.ndarray,
    ) -> dict[int, str]:
        """Rows of some positions from the files: each key is read once, kept in the cache, if there is one, and written out from
        where it was read. A plan without a row writer writes nothing. Returns what is wrong, by position.
        """
        count = len(places)
        which_X, keys_U, seeds_U = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        num_keys = distinct(seen, keys_M[places], seeds_M[places], which_X, keys_U, seeds_U)
        damage: dict[int, str] = {}
        for first in range(0, num_keys, self._chunk):
            last = min(num_keys, first + self._chunk)
            if num_keys <= self._chunk:
                to, which = places, which_X
            else:
                is_here = (which_X >= first) & (which_X < last)
                to, which = places[is_here], which_X[is_here] - first
            faults: dict[int, str] = {}
            fetched = self._fetch(keys_U[first:last], seeds_U[first:last], faults, counts)
            keep_and_write(self._state, fetched.data, fetched.at, keys_U[first:last], plan, which, to, out_MB)
            if faults:
                damage |= {
                    m: faults[key] for m, key in zip(to.tolist(), keys_M[to].tolist(), strict=True) if key in faults
                }
        return damage

    def _fill_from_memory(self, keys_M: np.ndarray, out_MB: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """Rows that need no file; returns the positions that do."""
        row_bytes = self._codec.row_bytes
        resident, pending = self.resident, self._pending
        if resident is not None and resident.is_one_whole_layer and pending is None:
            offsets_M = np.where(keys_M >= 0, (keys_M & RANK_MASK) * row_bytes, -1)
            scatter(plan, resident.rows[0], offsets_M, _IN_ORDER, out_MB)
            return _IN_ORDER
        serials_M = np.where(keys_M >= 0, keys_M >> RANK_BITS, -1)
        done = serials_M == -1
        out_MB[done] = 0

        def copy(source: np.ndarray, offsets: np.ndarray, places: np.ndarray) -> None:
            done[places] = True
            scatter(plan, source, offsets, places, out_MB)

        if pending is not None:
            places = np.flatnonzero(serials_M >= PENDING_SERIAL)
            if len(places):
                rows = pending(self.view.pending_ids(keys_M[places]))
                copy(rows.reshape(-1), np.arange(len(places)) * row_bytes, places)
        if resident is not None:
            serials_M[np.isin(keys_M, resident.damaged)] = -2  # no source has them: left to the files
            for serial, rows in zip(resident.serials, resident.rows, strict=True):
                places = np.flatnonzero(serials_M == serial)
                if len(places):
                    copy(rows, (keys_M[places] & RANK_MASK) * row_bytes, places)
        return np.flatnonzero(~done)

    def _fetch(self, keys_U: np.ndarray, seeds_U: np.ndarray, faults: dict[int, str], counts: Counts) -> _Fetched:
        """Read, check and decompress U rows; damaged ones go to `faults` by key and get place -1."""
        count, slot_bytes = len(keys_U), self._slot_bytes
        staging = np.empty(count * slot_bytes, np.uint8)
        lengths, status = np.zeros(count, np.int64), np.empty(count, np.uint8)
        num_bad, num_frames, num_bytes = native.read_rows(
            self.view.file_table, keys_U, seeds_U, slot_bytes, staging, lengths, status
        )
        if num_bad < 0:
            raise AssertionError(f"rows of layers {np.unique(keys_U >> RANK_BITS)} asked of {self.view.file_serials}")
        self.view.base.check_unchanged()
        counts.add_read(count, num_bytes)
        at = np.arange(0, len(staging), slot_bytes)
        if num_bad:
            row_bytes = self._codec.row_bytes
            for u in np.flatnonzero(status).tolist():
                row_B = self._read_again(int(keys_U[u])) if status[u] == native.CUT_SHORT else None
                if row_B is not None:
                    staging[at[u] : at[u] + row_bytes], lengths[u] = row_B, row_bytes
                    continue
                faults[int(keys_U[u])] = _FAULT[int(status[u])]
                at[u] = -1
        fetched = _Fetched(staging, at)
        if num_frames == count and len(self._compressed) == 1:  # usual: nothing is copied back to where it was read
            try:
                rows = self._compressed[0].decompressor.decompress(staging, at, lengths)
                return _Fetched(rows.reshape(-1), np.arange(0, rows.size, self._codec.row_bytes))
            except FormatError:
                pass  # which of them it is, below
        if num_frames:
            self._unpack_in_place(fetched, lengths, keys_U, faults)
        return fetched

    def _read_again(self, key: int) -> np.ndarray | None:
        """A row that `read_rows` could not read whole, checked and unpacked: (B,) u8; None: nor can it be read so.

        On some filesystems a signal makes a read fail. Python reads again then, our kernels do not.
        """
        try:
            return self.view.layer_of(key >> RANK_BITS).read_encoded(key & RANK_MASK, 1)[0]
        except (FormatError, OSError):
            return None

    def _unpack_in_place(
        self, fetched: _Fetched, lengths_U: np.ndarray, keys_U: np.ndarray, faults: dict[int, str]
    ) -> None:
        """Rows where there were frames; `lengths` are those of the files. What is no frame goes to `faults` and gets place -1."""
        is_frame = (lengths_U < self._codec.row_bytes) & (fetched.at >= 0)
        slots = fetched.data.reshape(len(keys_U), -1)
        for layer in self._compressed:
            frames = np.flatnonzero(is_frame & (keys_U >> RANK_BITS == layer.serial))
            if len(frames):
                for u, fault in _decompress(layer.decompressor, fetched, lengths_U, frames, slots).items():
                    faults[int(keys_U[u])] = fault
                    fetched.at[u] = -1

    def damage_error(self, damage: dict[int, str], keys_M: np.ndarray, names_M: np.ndarray) -> DamagedRows:
        """One error for all damaged rows of a call: what `fill` said, and what the caller knows each position by."""
        positions: dict[int, int] = {}
        for m in damage:
            positions.setdefault(int(keys_M[m]), m)
        keys = list(positions)
        serial, rank = keys[0] >> RANK_BITS, keys[0] & RANK_MASK
        layer = self.view.layer_of(serial)
        try:
            place = f"at byte {int(layer.places(rank, 1)[0][0]):,}"
        except DamagedStore as error:
            place = f"cannot be found ({error.message})"  # the index file and the byte in it
        ranks = [key & RANK_MASK for key in keys]
        return DamagedRows(
            f"{layer.path_of(rank)}: row {rank:,} {place}: {damage[positions[keys[0]]]}"
            + (f" (and {len(keys) - 1} more rows of this call: {ranks[1:9]})" if len(keys) > 1 else ""),
            keys=[int(names_M[m]) for m in positions.values()],
            hint=IN_PLACE_HINT if self.view.manifest.sources else None,
        )


def _decompress(
    decompressor: RowDecompressor, fetched: _Fetched, lengths_U: np.ndarray, frames: np.ndarray, slots: np.ndarray
) -> dict[int, str]:
    """Frames -> rows in their own slots; what is wrong with those that are no frames, by place in the batch."""
    try:
        rows = decompressor.decompress(fetched.data, fetched.at[frames], lengths_U[frames])
    except FormatError as error:
        if len(frames) == 1:
            return {int(frames[0]): error.message}
        faults: dict[int, str] = {}
        for one in frames:  # a bad one must not take the others along
            faults |= _decompress(decompressor, fetched, lengths_U, np.array([one]), slots)
        return faults
    slots[frames, : decompressor.row_bytes] = rows
    return {}
