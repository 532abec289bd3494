"""Recording which rows are asked for: a table of counts in memory, one kernel call a look-up, bounded in size.

When the table is full, the rows counted least are forgotten: what is asked for often is kept, its count a lower bound.

Shapes: M rows of a call, C slots of the table.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ngramstore.errors import UsageError, WrongProcess
from ngramstore.kernels.count_table import empty_table
from ngramstore.kernels.native import mining as native
from ngramstore.keys import Keys
from ngramstore.options import is_whole
from ngramstore.store.trace import Trace
from ngramstore.windows import as_integers

if TYPE_CHECKING:
    from ngramstore.serve.lookups import Lookups

DEFAULT_ENTRIES = 1 << 22
_FIRST_SLOTS = 1 << 14
_FULLEST = 0.7
_STEP_TOKENS = 1 << 14


class Recorder:
    """Counts keys, (M,) u64 or i64, from any number of threads. Memory: 16 to 46 B an entry, at most `max_entries` of
    them; for a moment twice that, while room is made.

    Of a store, `Store.trace()` makes one. A context manager: leaving it stops the recording, and `result` remains.
    Fork: the child is told WrongProcess, and leaving the block does nothing there.
    """

    def __init__(
        self,
        addressing: str,
        space: int,
        *,
        max_entries: int = DEFAULT_ENTRIES,
        on_stop: Callable[[Recorder], None] | None = None,
    ) -> None:
        if not is_whole(max_entries) or max_entries < 1:
            raise UsageError(f"max_entries is {max_entries!r}", hint="a trace has room for one row at least")
        self.addressing = addressing
        self.space = space
        self.max_entries = max_entries
        self._on_stop = on_stop
        self._pid = os.getpid()
        self._lock = threading.RLock()  # as in `Counts`
        self._table_C2 = empty_table(_FIRST_SLOTS)
        self._used: int | None = 0
        """Slots of the table in use. None: to be counted; so it is while a kernel fills the table, and after Ctrl-C
        came behind that."""
        self._num_lookups = 0

    def add(self, keys_M: np.ndarray) -> None:
        """Count each key once more: integers of any shape. Raises UsageError for others."""
        self._check()
        given = as_integers(keys_M, "keys").reshape(-1)
        wide = given.astype(np.uint64 if given.dtype.kind == "u" else np.int64, copy=False)
        keys = np.ascontiguousarray(wide).view(np.uint64)
        with self._lock:
            self._num_lookups += len(keys)
            done = 0
            while done < len(keys):
                most = min(self.max_entries, int(_FULLEST * len(self._table_C2)))
                used, self._used = self._num_used(), None
                step, used = native.count_keys(keys[done:] if done else keys, self._table_C2, used, most)
                if self._used is None:  # else a signal's handler has counted keys of its own since
                    self._used = used
                done += step
                if done < len(keys):
                    self._make_room()

    def result(self) -> Trace:
        """What was recorded until now."""
        self._check()
        with self._lock:
            pairs_N2 = self._pairs()
            num_lookups = self._num_lookups
        return Trace.of(self.addressing, self.space, num_lookups, pairs_N2[:, 0], pairs_N2[:, 1])

    def stop(self) -> Trace:
        """End the recording; stopping twice is fine."""
        self._check()
        if self._on_stop is not None:
            self._on_stop(self)
        return self.result()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() == self._pid:
            self.stop()

    def _check(self) -> None:
        """Before any lock: one that another thread held at a fork is never given back in the child."""
        if os.getpid() != self._pid:
            raise WrongProcess(f"the recording was begun in process {self._pid}, this is {os.getpid()}")

    def _pairs(self) -> np.ndarray:
        """The entries as an array of their own: (N, 2) u64, keys and counts."""
        return self._table_C2[self._table_C2[:, 0] != native.EMPTY]

    def _num_used(self) -> int:
        """Slots of the table in use."""
        if self._used is None:
            used = int(np.count_nonzero(self._table_C2[:, 0] != native.EMPTY))
            self._used = used if self._used is None else self._used  # as in `add`
        return self._used

    def _make_room(self) -> None:
        """A larger table; or, where that would pass the bound, one without the rarest half of the entries.

        It takes the place of the old one together with its count, so Ctrl-C comes before that or after it.
        """
        kept_N2, num_slots = self._pairs(), len(self._table_C2)
        if len(kept_N2) < self.max_entries:
            num_slots *= 2
        else:
            middle = np.partition(kept_N2[:, 1], len(kept_N2) // 2)[len(kept_N2) // 2]
            kept_N2 = kept_N2[kept_N2[:, 1] > middle]  # with equal counts all go: none is known to be wanted more
        table_C2 = empty_table(num_slots)
        native.rehash_counts(kept_N2, table_C2)
        self._table_C2, self._used = table_C2, len(kept_N2)


def record_rows(
    keys: Keys,
    documents: Iterable[np.ndarray],
    *,
    max_entries: int = DEFAULT_ENTRIES,
    on_progress: Callable[[int], object] | None = None,
) -> Trace:
    """What a model with these keys asks for on documents of token ids, (T,) integers each. Reads no rows.

    on_progress: called with the number of tokens of each step.
    """
    recorder = Recorder("row", keys.num_rows, max_entries=max_entries)
    for tokens_T in documents:
        history = None
        for at in range(0, len(tokens_T), _STEP_TOKENS):
            part = tokens_T[None, at : at + _STEP_TOKENS].astype(np.int64)
            recorder.add(keys.rows(part, history).reshape(-1))
            history = keys.advance(part, history)
            if on_progress is not None:
                on_progress(part.shape[1])
    return recorder.result()


def record_matches(
    store: Lookups,
    documents: Iterable[np.ndarray],
    *,
    max_entries: int = DEFAULT_ENTRIES,
    on_progress: Callable[[int], object] | None = None,
) -> Trace:
    """The n-grams that the longest match finds on documents of token ids. Reads the index, no rows.

    on_progress: called with the number of tokens of each step.
    """
    recorder = Recorder("ngram", store.spec.seed, max_entries=max_entries)
    reach = store.max_n - 1
    for tokens_T in documents:
        for at in range(0, len(tokens_T), _STEP_TOKENS):
            begin = max(0, at - reach)
            ids_T, lengths_T = store.match_ids(tokens_T[begin : at + _STEP_TOKENS])
            recorder.add(ids_T[at - begin :][lengths_T[at - begin :] > 0])
            if on_progress is not None:
                on_progress(len(ids_T) - (at - begin))
    return recorder.result()
