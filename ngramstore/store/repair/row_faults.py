"""Rows that are not good, as faults of their file: one fault for neighbouring rows with which the same is wrong.

Shapes: M rows of a chunk.
"""

from __future__ import annotations

import numpy as np

from ngramstore.store.repair.raw_file import Fault
from ngramstore.store.repair.stretches import Stretch, StretchLines

_NOT_FOUND, _CUT_OFF, _CHANGED = 1, 2, 3
_WHAT = {
    _NOT_FOUND: ("cannot be found", "cannot be found"),
    _CUT_OFF: ("is cut off", "are cut off"),
    _CHANGED: ("fails its checksum", "fail their checksums"),
}
"""What is said of one row, and of several."""


class RowFaults:
    """Faults of the rows of a layer, which come in order."""

    def __init__(self, file_name: str, faults: list[Fault], *, is_keyed: bool) -> None:
        self._file_name, self._is_keyed = file_name, is_keyed
        self._lines: StretchLines[tuple[int | None, int], Fault] = StretchLines(faults, self._fault)

    def add(
        self,
        first: int,
        ids_M: np.ndarray,
        starts_M: np.ndarray,
        *,
        is_wrong: np.ndarray,
        is_placed: np.ndarray,
        is_inside: np.ndarray,
    ) -> None:
        """M rows from row `first` on: which are wrong, of which it is known where they begin, and which lie in the file."""
        verdicts_M = np.where(is_placed, np.where(is_inside, _CHANGED, _CUT_OFF), _NOT_FOUND)
        verdicts_M[~is_wrong] = 0
        self._lines.add(first, verdicts_M, lambda m: (int(starts_M[m]) if is_placed[m] else None, int(ids_M[m])))

    def _fault(self, stretch: Stretch[tuple[int | None, int]]) -> Fault:
        place, identity = stretch.names[0]
        one, several = _WHAT[stretch.verdict]
        key = f" (ID 0x{identity:016x})" if self._is_keyed else ""
        what = f"{stretch.rows}{key} {one}" if stretch.num_rows == 1 else f"{stretch.rows} {several}"
        return Fault(self._file_name, place, what)
