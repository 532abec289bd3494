"""Row numbers by multiply and xor: what Engram's and Qwen's tables have in common. One numpy call a step, no loop over heads.

The multipliers serve every order, so the n-gram's mix is one more xor on the (n-1)-gram's.

Shapes: B batch, T position, N look-backs (the current token first), L tables, O orders 2 .. N, H heads of an order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Mixer:
    """The constants as arrays. `sizes` per table, order-major; `table_rows`: where the next table begins."""

    def __init__(
        self, multipliers: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]], table_rows: Sequence[int]
    ) -> None:
        max_n = len(multipliers[0])
        self.multipliers_LN = np.array(multipliers, np.int64)
        self.sizes_LOH = np.array(sizes, np.int64).reshape(len(sizes), max_n - 1, -1)
        starts = np.concatenate([[0], np.cumsum(table_rows)[:-1]]).astype(np.int64)
        inside = np.array([np.concatenate([[0], np.cumsum(line)[:-1]]) for line in sizes], np.int64)
        self.firsts_LOH = (starts[:, None] + inside).reshape(self.sizes_LOH.shape)

    def rows(self, values: list[np.ndarray]) -> np.ndarray:
        """values[k] (B, T) i64: the token k places back -> (B, T, L * O * H) i64, table by table, order by order."""
        values_BTN = np.stack(values, axis=-1)
        products = values_BTN[..., None, :] * self.multipliers_LN
        mixes = np.bitwise_xor.accumulate(products, axis=-1)[..., 1:]
        rows = np.remainder(mixes[..., None], self.sizes_LOH)
        rows += self.firsts_LOH
        return rows.reshape(*values[0].shape, self.sizes_LOH.size)
