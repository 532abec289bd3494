"""An open store and its state: mode, views, caches, closing, forks, pickling. What look-ups and changes stand on."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ngramstore.errors import StaleStore, StoreClosed, UsageError, WrongProcess
from ngramstore.serve.counts import Counts
from ngramstore.serve.open_options import OpenOptions
from ngramstore.serve.recorder import Recorder
from ngramstore.serve.resident import Resident
from ngramstore.serve.row_cache import RowCache
from ngramstore.serve.row_source import RowSource
from ngramstore.serve.serving import Serving
from ngramstore.serve.split import Workers
from ngramstore.store.changes.writer import Writer
from ngramstore.store.layers.manifest import Manifest, Spec
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
        self._reading: AbstractContextManager[object] = self._lock if options.mode == "rw" else nullcontext()
        """Around each look-up. A lock itself: Ctrl-C comes where Python code begins, also that of a context manager."""
        self._pending_view: View | None = None
        where = {"lock_index": options.lock_index, "trust_external": options.trust_external}
        self._writer = Writer(self.path, **where) if options.mode == "rw" else None
        self._stale = self._writer is not None
        """Something may have changed since `_pending_view` was made."""
        try:
            view = View.open(self.path, previous=self._writer.view if self._writer else None, **where)
            identity = view.manifest.identity
            if options.identity is not None and identity != options.identity:
                raise StaleStore(f"{self.path} holds store {identity}, wanted {options.identity}")
            self._current = self._serving_of(view, None, None, None)
            """Replaced as a whole, so that Ctrl-C and other threads meet the old one or the new one."""
            _handles.add(self)
        except BaseException:
            if self._writer is not None:
                self._writer.close()
            raise

    @property
    def spec(self) -> Spec:
        """What never changes: addressing, dim, max_n, codec, seed, metadata."""
        return self._current.manifest.spec

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
        """Counts publications: build 1, then one more for each flush, compaction and repair in place."""
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
            return self._manifest.num_rows if self._writer is None else self._writer.num_rows

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
        try:
            self._closed = True
            if self._writer is not None:
                self._writer.close()
        finally:  # files close, and their locks go, with the last look-up that is still under way
            self._current = self._current.closed()
            self._pending_view = self._writer = None
            self._workers.close()

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
        self._stale = True  # whatever interrupts us, also on the way to `_follow`
        try:
            is_changed = writer.flush()
        finally:
            self._follow(writer)  # also when it failed after publishing
        if is_changed:
            writer.collect_garbage()

    @property
    def _manifest(self) -> Manifest:
        """That of the view; of the last one where the handle is closed."""
        return self._current.manifest

    @property
    def _source(self) -> RowSource:
        """Where rows of published views come from. StoreClosed if another thread has closed the handle since the call began."""
        source = self._current.source
        if source is None:
            raise StoreClosed(f"the handle on {self.path} is closed")
        return source

    @property
    def _view(self) -> View:
        """The published view that is served."""
        return self._source.view

    def _use(self, view: View) -> None:
        """Make a view the current one; caches keep what still holds. Where it raises, nothing has changed."""
        source, recorder = self._source, self._current.recorder
        if source.view.serial_space is view.serial_space:
            self._current = self._serving_of(view, source.cache, source.resident, recorder)
        else:  # serials began anew: the caches know rows by the old ones
            self._current = self._serving_of(view, None, None, recorder)

    def _serving_of(
        self, view: View, cache: RowCache | None, resident: Resident | None, recorder: Recorder | None
    ) -> Serving:
        """What look-ups of a view use, with what there was of cache or resident rows."""
        if self.options.resident:
            resident = Resident(view, resident, allow_damage=self.options.on_damage == "missing")
        elif self.options.cache_bytes:
            cache = self._cache_for(view, cache)
        return self._with(RowSource(view, cache, resident, None, self._workers), recorder)

    def _with(self, source: RowSource, recorder: Recorder | None) -> Serving:
        return Serving.of(source, recorder, self._counts.shared, is_for_changes=self._writer is not None)

    def _cache_for(self, view: View, cache: RowCache | None) -> RowCache:
        """The cache we have, or a larger one."""
        num_rows = view.manifest.num_rows
        if cache is not None:
            if not cache.is_outgrown_by(num_rows):
                return cache
            num_rows *= 2  # an empty one, twice as large: a growing store does it seldom
        return RowCache(self.options.cache_bytes, view.manifest.spec.codec.row_bytes, num_rows)

    def _record(self, recorder: Recorder | None) -> None:
        """With the lock held: tell it of every row from now on; None: nobody any more."""
        self._current = self._with(self._source, recorder)

    @contextmanager
    def _in_change(self) -> Iterator[None]:
        """With the lock held, around each change: whatever becomes of it, the next look-up asks the writer.

        Marked at both ends, since a signal's handler may look something up in the middle.
        """
        self._check()
        self._stale = True
        try:
            yield
        finally:
            self._stale = True

    def _follow(self, writer: Writer) -> None:
        """After a change by our own writer, with the lock held: its view is ours."""
        self._stale = True
        self._pending_view = None
        if writer.view is not self._view:
            self._use(writer.view)

    def _view_and_source(self) -> tuple[View, RowSource]:
        """For each look-up, under `_reading`: a view that stays the same, and the source of its rows."""
        writer = self._writer
        pending = None if writer is None else self._with_pending(writer)
        source = self._source
        if writer is None or pending is None:
            return source.view, source
        return pending, RowSource(pending, source.cache, source.resident, writer.pending_rows, _ALONE)

    def _with_pending(self, writer: Writer) -> View | None:
        """With the lock held: unpublished changes on top of the published view, which is current from here on; None:
        there are none."""
        if self._stale:
            writer.recover_for_reading()  # first: it may find a newer state to follow
            self._follow(writer)
            self._pending_view = writer.pending_view()
            self._stale = False
        return self._pending_view


def _reopen(kind: type[Handle], path: str, options: OpenOptions) -> Handle:
    return kind(path, options)


_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def _forget_short_paths() -> None:
    """In a process that was just forked: no short path asks whether its process is the one that opened the store."""
    for handle in list(_handles):
        handle._current = handle._current.without_short_paths()


os.register_at_fork(after_in_child=_forget_short_paths)
