"""One published state of a store, opened: the layers, newest first, and the tables that the kernels read.

A view never changes; `refresh` makes another. Files superseded meanwhile stay readable through it.

Shapes: M IDs or keys.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore, FormatError, UsageError
from ngramstore.hashing import row_ids
from ngramstore.kernels.native import index as native
from ngramstore.kernels.native import probe
from ngramstore.store.journal.known import Tier
from ngramstore.store.layers.datafile import DataFile
from ngramstore.store.layers.external import ExternalLayer
from ngramstore.store.layers.external_entry import ExternalEntry
from ngramstore.store.layers.index import Index, page_and_line
from ngramstore.store.layers.layer import Layer
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import Manifest, read_manifest
from ngramstore.store.layers.packed_layer import PackedLayer

PENDING_SERIAL = (1 << 20) - native.MAX_LINES
"""Serials from here on are of rows that lie in the writer's journal only."""
_LAST_SERIAL = PENDING_SERIAL - 3
_ATTEMPTS = 20


class View:
    """The layers of a manifest, and optionally the writer's unpublished changes on top of them."""

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        lock_index: bool = False,
        previous: View | None = None,
        next_serial: int = 0,
        trust_external: bool = False,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.lock_index = lock_index
        self.trust_external = trust_external
        self.next_serial = next_serial
        self.serial_space: object = object() if previous is None else previous.serial_space
        self.base: Layer
        if previous is not None and previous.manifest.base == manifest.base:
            self.base = previous.base
        else:
            self.base = self._open_base()
        self.overlay: PackedLayer | None = None
        self.tombstones: Index | None = None
        self._tombstones_file: DataFile | None = None
        if previous is not None and previous.overlay_state == self.overlay_state:
            self.overlay, self.tombstones = previous.overlay, previous.tombstones
            self._tombstones_file = previous._tombstones_file
        else:
            stamp = manifest.stamp(manifest.overlay_generation)
            if manifest.overlay is not None:
                self.overlay = self._open_packed(manifest.overlay, manifest.overlay_generation, is_keyed=True)
            if manifest.tombstones is not None:
                self.tombstones, self._tombstones_file = Index.open(
                    directory, manifest.tombstones, stamp, is_keyed=True, is_sized=False, lock=lock_index
                )
        self.pending: tuple[Tier, ...] = ()
        self.lengths_mask = sum(1 << n for n, stored in enumerate(manifest.length_counts) if stored)
        """Bit n set: n-grams of length n are stored."""
        self._set_tables()

    @property
    def overlay_state(self) -> tuple[object, ...]:
        """Equal in two views of a store whose overlays are the same files."""
        manifest = self.manifest
        return manifest.identity, manifest.overlay_generation, manifest.overlay, manifest.tombstones

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        lock_index: bool = False,
        previous: View | None = None,
        trust_external: bool = False,
    ) -> View:
        """The current state; a file, or a checkpoint's, that was removed meanwhile means that there is a newer one.

        Serials go up from view to view, so that row keys of two layers never mix; when there are no more (after a million
        layers) all layers are opened anew, from 0, under another `serial_space`.
        """
        shared = previous if previous is not None and previous.next_serial < _LAST_SERIAL else None
        for attempt in range(_ATTEMPTS):
            manifest = read_manifest(directory)
            if previous is not None and manifest == previous.manifest:
                return previous
            try:
                return cls(
                    directory,
                    manifest,
                    lock_index=lock_index,
                    previous=shared,
                    next_serial=shared.next_serial if shared else 0,
                    trust_external=trust_external or (previous is not None and previous.trust_external),
                )
            except (FileNotFoundError, DamagedStore, UsageError) as error:  # the last two: of rows that lay elsewhere
                if attempt < _ATTEMPTS - 1 and read_manifest(directory) != manifest:
                    continue
                if isinstance(error, FileNotFoundError):
                    raise DamagedStore(f"{error.filename} is missing; the manifest names it") from error
                raise
        raise AssertionError

    def _open_base(self) -> Layer:
        manifest, entry = self.manifest, self.manifest.base
        if not isinstance(entry, ExternalEntry):
            return self._open_packed(entry, manifest.base_generation, is_keyed=manifest.spec.is_ngram)
        return ExternalLayer(
            self.directory,
            entry,
            manifest.stamp(manifest.base_generation),
            manifest.spec,
            self._take_serial(),
            is_trusted=self.trust_external,
        )

    def _open_packed(self, entry: LayerEntry, generation: int, *, is_keyed: bool) -> PackedLayer:
        return PackedLayer(
            self.directory,
            entry,
            self.manifest.stamp(generation),
            self.manifest.spec,
            self._take_serial(),
            is_keyed=is_keyed,
            lock_index=self.lock_index,
        )

    def _take_serial(self) -> int:
        self.next_serial += 1
        return self.next_serial - 1

    def with_pending(self, tiers: tuple[Tier, ...]) -> View:
        """This view with unpublished puts and deletions on top, newest first."""
        view = copy.copy(self)
        view.pending = tiers
        view._set_tables()
        return view

    def pending_ids(self, keys_M: np.ndarray) -> np.ndarray:
        """IDs of row keys (M,) i64 of unpublished puts: (M,) u64."""
        ids_M = np.empty(len(keys_M), np.uint64)
        serials_M, ranks_M = keys_M >> native.RANK_BITS, keys_M & native.RANK_MASK
        for number, tier in enumerate(self.pending):
            here = serials_M == PENDING_SERIAL + number
            ids_M[here] = tier.put_ids[ranks_M[here]]
        return ids_M

    def base_only(self) -> View:
        """This view without its overlay and what is pending."""
        view = copy.copy(self)
        view.overlay = view.tombstones = None
        view.pending = ()
        view._set_tables()
        return view

    def _set_tables(self) -> None:
        indexes: list[tuple[Index, bool, int]] = []
        for number, tier in enumerate(self.pending):
            if tier.deletes is not None:
                indexes.append((tier.deletes, True, 0))
            if tier.puts is not None:
                indexes.append((tier.puts, False, PENDING_SERIAL + number))
        if self.tombstones is not None:
            indexes.append((self.tombstones, True, 0))
        if self.overlay is not None:
            indexes.append((self.overlay.index, False, self.overlay.serial))
        if isinstance(self.base, PackedLayer) and self.base.is_keyed:
            indexes.append((self.base.index, False, self.base.serial))
        self._probed = [index for index, _, _ in indexes]
        self.probe_table = np.zeros((len(indexes), native.NUM_COLUMNS), np.int64)
        for line, (index, is_tombstone, serial) in enumerate(indexes):
            self.probe_table[line] = index.line
            self.probe_table[line, native.IS_TOMBSTONE] = is_tombstone
            self.probe_table[line, native.SERIAL] = serial
        self.file_layers = [layer for layer in (self.base, self.overlay) if layer is not None]
        self.file_serials = tuple(layer.serial for layer in self.file_layers)
        self.file_table = np.concatenate([layer.lines for layer in self.file_layers])

    def find(self, ids_M: np.ndarray) -> np.ndarray:
        """Row keys of IDs (M,) u64 -> (M,) i64, -1 where absent. DamagedStore names a bad index page."""
        keys_M = np.empty(len(ids_M), np.int64)
        done = probe.find(self.probe_table, ids_M, keys_M)
        if done < len(ids_M):
            raise self.index_damage(int(keys_M[done]))
        return keys_M

    def find_rows(self, rows_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row-addressed: numbers (M,) i64 in range -> row keys (M,) i64 and checksum seeds (M,) u64."""
        keys_M = rows_M | (self.base.serial << native.RANK_BITS)
        seeds_M = rows_M.astype(np.uint64)
        if len(self._probed):
            ids_M = row_ids(seeds_M)
            changed_M = self.find(ids_M)
            is_changed = changed_M >= 0
            keys_M[is_changed] = changed_M[is_changed]
            seeds_M[is_changed] = ids_M[is_changed]
        return keys_M, seeds_M

    def index_damage(self, code: int) -> DamagedStore:
        """The error behind a fault code of the index kernels."""
        page, line = page_and_line(code)
        return self._probed[line].damaged(page)

    def layer_of(self, serial: int) -> Layer:
        """The open layer with this serial."""
        return next(layer for layer in self.file_layers if layer.serial == serial)

    @property
    def files(self) -> list[DataFile]:
        """All open files."""
        files = [file for layer in self.file_layers for file in layer.files]
        return [*files, *([self._tombstones_file] if self._tombstones_file else [])]

    def require_tokens(self) -> None:
        """FormatError where the store was built without its tokens."""
        if not self.manifest.spec.has_tokens:
            raise FormatError(
                f"{self.directory} was built with tokens=False: it knows the IDs of its n-grams, not their tokens",
                hint="build with tokens=True (the default) to list n-grams",
            )
