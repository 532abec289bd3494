"""Look-ups by row number, dequantized or as stored.

Shapes: S shape of the numbers asked for, M of them, D row width, B bytes of a stored row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import UsageError
from ngramstore.serve.filling import Filling
from ngramstore.serve.output import output_array
from ngramstore.windows import as_integers, require_rows


class RowLookups(Filling):
    """What a store addressed by row number answers. Threads: any number at once."""

    def rows(
        self,
        numbers: ArrayLike,
        *,
        out: np.ndarray | None = None,
        dtype: str = "f32",
        found: np.ndarray | None = None,
    ) -> np.ndarray:
        """Addressing "row": rows by number: integers of any shape S -> (*S, D) of `dtype`. Order and duplicates kept.
        Fastest: int64.

        `out` (*S, D) and `dtype` as in `lookup`. A damaged row raises DamagedRows; with on_damage="missing" it is zeros, and
        False in `found`, a bool array of shape S that is filled if it is given.
        Raises UsageError (a number out of range too), DamagedRows, DamagedStore, StoreClosed, WrongProcess.
        """
        few = self._current.few_rows
        if few is not None and found is None and type(numbers) is np.ndarray:
            few_rows = few.rows(numbers, out, dtype)
            if few_rows is not None:
                return few_rows
        self._check()
        flat, shape = self._numbers(numbers, "rows")
        rows = output_array(out, (*shape, self.dim), dtype)
        self._get_numbers(flat, rows.reshape(len(flat), self.dim), _mask(found, shape))
        return rows

    def rows_encoded(self, numbers: ArrayLike, *, found: np.ndarray | None = None) -> np.ndarray:
        """As `rows`, as they are stored: integers of any shape S -> (*S, row_bytes) u8. `found` and errors are those of
        `rows`."""
        few = self._current.few_rows
        if few is not None and found is None and type(numbers) is np.ndarray:
            few_rows = few.encoded(numbers)
            if few_rows is not None:
                return few_rows
        self._check()
        flat, shape = self._numbers(numbers, "rows_encoded")
        rows = np.empty((len(flat), self.spec.codec.row_bytes), np.uint8)
        self._get_numbers(flat, rows, _mask(found, shape))
        return rows.reshape(*shape, self.spec.codec.row_bytes)

    def _numbers(self, numbers: ArrayLike, what: str) -> tuple[np.ndarray, tuple[int, ...]]:
        if self.spec.is_ngram:
            raise UsageError(
                f"{what} needs row numbers; {self.path} is addressed by n-gram",
                hint="use get(ngrams) or lookup(tokens), or `ngramstore get --ngram`",
            )
        array = as_integers(numbers, "row numbers")
        flat = np.ascontiguousarray(array).reshape(-1)
        require_rows(flat, self._manifest.base.num_rows)
        return flat.astype(np.int64), array.shape

    def _get_numbers(self, numbers: np.ndarray, rows: np.ndarray, found: np.ndarray | None) -> None:
        with self._reading:
            view, source = self._view_and_source()
            keys, seeds = view.find_rows(numbers)
            lost = self._fill(source, keys, seeds, rows, numbers)
        if found is not None:
            found[:] = True
            found[lost or []] = False
        self._counts.add_call(len(numbers), len(numbers) - len(lost or []))


def _mask(found: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The caller's mask as one line."""
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.dtype != np.bool_ or found.shape != shape or not found.flags.carray:
        raise UsageError(f"found must be a bool array of shape {shape}, C-contiguous and writeable")
    return found.reshape(-1)
