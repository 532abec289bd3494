"""What every look-up ends in: rows of keys, written where the caller wants them, damage told or passed over.

Shapes: M wanted rows, D row width.
"""

from __future__ import annotations

import numpy as np

from ngramstore.serve.handle import Handle
from ngramstore.serve.row_source import RowSource


class Filling(Handle):
    """A handle that can fill rows. Threads: any number at once."""

    def _fill(
        self, source: RowSource, keys: np.ndarray, seeds: np.ndarray, rows: np.ndarray, names: np.ndarray
    ) -> list[int] | None:
        """Rows of keys, as the type of `rows` says; positions of damaged rows if the handle treats them as missing,
        else DamagedRows.

        names: what traces and errors call the rows: IDs of n-grams, or the numbers that were asked for.
        """
        recorder = self._current.recorder
        if recorder is not None:
            recorder.add(names[keys >= 0])
        return self._lost(source, source.fill(keys, seeds, rows, self._counts), keys, names)

    def _lost(self, source: RowSource, damage: dict[int, str], keys: np.ndarray, names: np.ndarray) -> list[int] | None:
        """Positions of damaged rows if the handle treats them as missing, else DamagedRows; None: there are none."""
        if not damage:
            return None
        if self.options.on_damage == "raise":
            raise source.damage_error(damage, keys, names)
        return list(damage)
