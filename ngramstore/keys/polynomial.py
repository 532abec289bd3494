"""Row numbers from a polynomial in the vocabulary size: what LongCat's and Over-Encoding's tables have in common.

Head h of order n: (sum over k < n of s_k * V**k) mod size, s_k the token k places back (or what stands for none there).
Powers are reduced first, so that no sum leaves int64 for any size that fits memory.

Shapes: B batch, T position, N look-backs, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ngramstore.keys.base import require_no_overflow


def check_polynomial(vocab_size: int, orders: Sequence[int], sizes: Sequence[int]) -> None:
    """UsageError where a sum could leave int64."""
    for n, size in zip(orders, sizes, strict=True):
        require_no_overflow((vocab_size - 1) * (size - 1) * n, f"the sum of {n} terms modulo {size}")


class Polynomial:
    """The powers as an array. Orders and sizes of H heads; head h's table begins behind that of h - 1."""

    def __init__(self, vocab_size: int, orders: Sequence[int], sizes: Sequence[int]) -> None:
        powers = [
            [pow(vocab_size, k, size) if k < n else 0 for k in range(max(orders))]
            for n, size in zip(orders, sizes, strict=True)
        ]
        self.powers_NH = np.array(powers, np.int64).T.copy()
        self.sizes_H = np.array(sizes, np.int64)
        self.firsts_H = np.cumsum(self.sizes_H) - self.sizes_H

    def rows(self, values: list[np.ndarray]) -> np.ndarray:
        """values[k] (B, T) i64 in 0 .. V - 1: the token k places back -> (B, T, H) i64."""
        rows = np.stack(values, axis=-1) @ self.powers_NH
        np.remainder(rows, self.sizes_H, out=rows)
        rows += self.firsts_H
        return rows
