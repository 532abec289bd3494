"""An open store and its state: mode, views, caches, closing, forks, pickling. What look-ups and changes stand on."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ngramstore.errors import StaleStore, StoreClosed, UsageError, WrongProcess
from ngramstore.serve.counts import Counts
from ngramstore.serve.few import Few, FewRows, forget_in_forks
from ngramstore.serve.many import Many
from ngramstore.serve.options import OpenOptions
from ngramstore.serve.resident import Resident
from ngramstore.serve.row_cache import RowCache
from ngramstore.serve.row_source import RowSource
from ngramstore.serve.split import Workers
from ngramstore.serve.trace import Recorder
from ngramstore.store.changes.writer import Writer
from ngramstore.store.layers.manifest import Spec
from ngramstore.store.view import View

if TYPE_CHECKING:
    from typing_extensions import Self


_ALONE = Workers(1)


class Handle:
    """Opens and closes a store, and says what it is. `Store` is the whole of it."""

    def __init__(self, path: str | os.PathLike[str], options: OpenOptions) -> None:
        self.path = Path(path).absolute()
        self.options = options
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.RLock()
        self._counts = Counts()
        self._workers = Workers(options.threads)
        self._reading = _Reading(self)
        self._recorder: Recorder | None = None
        where = {"lock_index": options.lock_index, "trust_external": options.trust_external}
        self._writer = Writer(self.path, **where) if options.mode == "rw" else None
        self._pending_view: View | None = None
        try:
            self._view = View.open(self.path, previous=self._writer.view if self._writer else None, **where)
            self._manifest = self._view.manifest
            if options.identity is not None and self.identity != options.identity:
                raise StaleStore(f"{self.path} holds store {self.identity}, wanted {options.identity}")
            self._cache: RowCache | None = None
            self._resident: Resident | None = None
            self._source: RowSource | None = None
            self._few: Few | None = None
            self._few_rows: FewRows | None = None
            self._many: Many | None = None
            self._use(self._view)
            forget_in_forks(self)
        except BaseException:
            if self._writer is not None:
                self._writer.close()
            raise

    @property
    def spec(self) -> Spec:
        """What never changes: addressing, dim, max_n, codec, seed, metadata."""
        return self._manifest.spec

    @property
    def dim(self) -> int:
        """Row width D."""
        return self.spec.dim

    @property
    def max_n(self) -> int:
        """Longest n-gram K the store takes."""
        return self.spec.max_n

    @property
    def metadata(self) -> dict[str, Any]:
        """What the builder wrote about the store (tokenizer, checkpoint, ...)."""
        return dict(self.spec.metadata)

    @property
    def identity(self) -> str:
        """UUID of the store; the same for its copies, whatever their changes."""
        return self._manifest.identity

    @property
    def generation(self) -> int:
        """Counts publications: build 1, then one more for each flush and compaction."""
        return self._manifest.generation

    @property
    def files(self) -> list[Path]:
        """The data files this handle reads."""
        return [self.path / entry.name for entry in self._manifest.files]

    def __len__(self) -> int:
        """Rows stored, unpublished changes of this handle included."""
        self._check()
        with self._lock:
            self._check()
            view = self._current_view()
            return view.manifest.num_rows if self._writer is None else self._writer.num_rows

    def refresh(self) -> bool:
        """See what other processes have published since. True if there was something."""
        self._check()
        with self._lock:
            self._check()
            if self._writer is not None:  # nobody else publishes
                before = self._view
                self._follow(self._writer)
                return self._view is not before
            view = View.open(self.path, lock_index=self.options.lock_index, previous=self._view)
            if view is self._view:
                return False
            if view.manifest.identity != self.identity:
                raise StaleStore(f"{self.path} now holds another store ({view.manifest.identity})")
            self._use(view)
            return True

    def close(self) -> None:
        """Let go of files and locks. A writer publishes its changes first. Closing twice is fine."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            try:
                if self._writer is not None:
                    self._publish(self._writer)
            finally:
                self._shut()

    def _shut(self) -> None:
        self._closed = True
        self._workers.close()
        try:
            if self._writer is not None:
                self._writer.close()
        finally:  # files close, and their locks go, with the last look-up that is still under way
            self._few = self._few_rows = self._many = None
            self._source = self._cache = self._resident = self._pending_view = None
            del self._view

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed and os.getpid() == self._pid:
            with self._lock:
                if not self._closed:
                    self._shut()  # unpublished changes stay in the journal; the next writer finds them

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        return _reopen, (type(self), str(self.path), self.options.for_copy(self.identity))

    def __repr__(self) -> str:
        if self._closed:
            return f"<ngramstore.{type(self).__name__} {self.path} (closed)>"
        return f"<ngramstore.{type(self).__name__} {self.path}: {self._manifest.num_rows:,} rows, dim {self.dim}, {self.spec.codec.name}>"

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed(f"the handle on {self.path} is closed")
        if os.getpid() != self._pid:
            raise WrongProcess(f"the handle on {self.path} was opened in process {self._pid}, this is {os.getpid()}")

    def _require_ngram(self, what: str) -> None:
        if not self.spec.is_ngram:
            raise UsageError(
                f"{what} needs n-grams; {self.path} addresses rows by number",
                hint="use rows(numbers), or `ngramstore get --row`",
            )

    def _publish(self, writer: Writer) -> None:
        """With the lock held: flush, and show what it published."""
        try:
            is_changed = writer.flush()
        finally:
            self._follow(writer)  # also when it failed after publishing
        if is_changed:
            writer.collect_garbage()

    def _use(self, view: View) -> None:
        """Make a view the current one; caches keep what still holds."""
        if view.serial_space is not self._view.serial_space:  # serials began anew: the caches know rows by the old ones
            self._cache = self._resident = None
        if self.options.resident:
            self._resident = Resident(view, self._resident, allow_damage=self.options.on_damage == "missing")
        elif self.options.cache_bytes:
            num_rows = view.manifest.num_rows
            if self._cache is None:
                self._cache = RowCache(self.options.cache_bytes, self.spec.codec.row_bytes, num_rows)
            elif self._cache.is_outgrown_by(num_rows):  # an empty one, twice as large: a growing store does it seldom
                self._cache = RowCache(self.options.cache_bytes, self.spec.codec.row_bytes, 2 * num_rows)
        self._view, self._manifest = view, view.manifest
        self._source = RowSource(view, self._cache, self._resident, None, self._workers)
        self._choose_paths(self._source)
        self._stale = self._writer is not None and self._writer.num_pending > 0

    def _choose_paths(self, source: RowSource) -> None:
        """Which short paths look-ups may take (docs/design.md); none while a trace is recorded: they do not tell it their rows."""
        self._few = self._few_rows = self._many = None
        rows = self._cache if self._resident is None else self._resident
        if self._writer is not None or self._recorder is not None:
            return
        if isinstance(rows, Resident) and not rows.is_one_whole_layer:
            return
        if not self.spec.is_ngram and not len(source.view.probe_table):  # by number, without an overlay
            self._few_rows = FewRows(source.view, rows, self._counts.shared)
        elif self.spec.is_ngram and rows is not None:
            self._few = Few(source.view, rows, self._counts.shared)
            self._many = Many(self._few, source)

    def _record(self, recorder: Recorder | None) -> None:
        """With the lock held: tell it of every row from now on; None: nobody any more."""
        self._recorder = recorder
        if self._source is not None and os.getpid() == self._pid:  # a fork has no short paths: they do not check for it
            self._choose_paths(self._source)

    def _follow(self, writer: Writer) -> None:
        """After a change by our own writer, with the lock held: its view is ours."""
        self._stale = True
        self._pending_view = None
        if writer.view is not self._view:
            self._use(writer.view)

    def _current_view(self) -> View:
        """With the lock held: the published view, unpublished changes on top."""
        if self._stale:
            assert self._writer is not None
            self._follow(self._writer)  # a change after a failed publication may have found it done
            self._pending_view = self._writer.pending_view()
            self._stale = False
        if self._pending_view is not None and self._writer is not None and self._writer.num_pending:
            return self._pending_view
        return self._view


class _Reading:
    """Around each look-up: a view that stays the same, and the source of its rows. A writer's handle keeps its lock."""

    def __init__(self, store: Handle) -> None:
        self._store = weakref.proxy(store)  # no cycle: dropping a handle closes its files at once
        self._lock = store._lock if store.options.mode == "rw" else None

    def __enter__(self) -> tuple[View, RowSource]:
        store = self._store
        if self._lock is None:
            source = store._source
            if source is None:  # closed by another thread since the call began
                raise StoreClosed(f"the handle on {store.path} is closed")
            return source.view, source
        self._lock.acquire()
        try:
            if store._source is None:
                raise StoreClosed(f"the handle on {store.path} is closed")
            view = store._current_view()
            if view is store._view:
                return view, store._source
            return view, RowSource(view, store._cache, store._resident, store._writer.pending_rows, _ALONE)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


def _reopen(kind: type[Handle], path: str, options: OpenOptions) -> Handle:
    return kind(path, options)
