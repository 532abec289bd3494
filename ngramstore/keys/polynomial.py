"""Row numbers from a polynomial in the vocabulary size: what LongCat's and Over-Encoding's tables have in common.

Head h of order n: (sum over k < n of s_k * V**k) mod size, s_k the token k places back (or what stands for none there).
Powers are reduced first, so that no sum leaves int64 for any size that fits memory.

Shapes: B batch, T position, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ngramstore.keys.base import require_no_overflow


def check_polynomial(vocab_size: int, orders: Sequence[int], sizes: Sequence[int]) -> None:
    """UsageError where a sum could leave int64."""
    for n, size in zip(orders, sizes, strict=True):
        require_no_overflow((vocab_size - 1) * (size - 1) * n, f"the sum of {n} terms modulo {size}")


def polynomial_rows(
    values: list[np.ndarray], vocab_size: int, orders: Sequence[int], sizes: Sequence[int], firsts: np.ndarray
) -> np.ndarray:
    """values[k] (B, T) i64 in 0 .. V - 1; orders, sizes, firsts of H heads -> (B, T, H) i64."""
    out = np.empty((*values[0].shape, len(sizes)), np.int64)
    for h, (n, size) in enumerate(zip(orders, sizes, strict=True)):
        total = values[0].copy()
        for k in range(1, n):
            total += values[k] * pow(vocab_size, k, size)
        np.remainder(total, size, out=out[..., h])
    out += firsts
    return out
