"""What every look-up ends in: rows of keys, written where the caller wants them, damage told or passed over.

Shapes: M wanted rows, D row width.
"""

from __future__ import annotations

import numpy as np

from ngramstore.serve.handle import Handle
from ngramstore.serve.row_source import KEEP, RowSource


class Filling(Handle):
    """A handle that can fill rows. Threads: any number at once."""

    def _fill(
        self,
        source: RowSource,
        keys: np.ndarray,
        seeds: np.ndarray,
        rows: np.ndarray,
        plan: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ) -> list[int] | None:
        """Rows of keys; positions of damaged rows if the handle treats them as missing, else DamagedRows.

        plan None: as the type of `rows` says. numbers: what a row-addressed store's caller asked for; without it the seeds,
        which then are the n-grams' IDs.
        """
        if plan is None:
            plan = self.spec.codec.plan(rows.dtype.char)
        recorder = self._recorder
        if recorder is not None and plan is not KEEP:
            recorder.add(seeds[keys >= 0] if numbers is None else numbers)
        damage = source.fill(keys, seeds, rows, self._counts, plan)
        return self._lost(source, damage, keys, seeds if numbers is None else numbers)

    def _lost(self, source: RowSource, damage: dict[int, str], keys: np.ndarray, names: np.ndarray) -> list[int] | None:
        """Positions of damaged rows if the handle treats them as missing, else DamagedRows; None: there are none."""
        if not damage:
            return None
        if self.options.on_damage == "raise":
            raise source.damage_error(damage, keys, names)
        return list(damage)
