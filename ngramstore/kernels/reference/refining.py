"""What the kernels of `ngramstore/kernels/native/refining.py` mean, with lists and dicts.

Shapes: T position, P positions of a range of first tokens, V tokens of the tokenizer, L lengths from 2, M n-grams of one length.
"""

from __future__ import annotations

import numpy as np


def place_positions(tokens_T: np.ndarray, first: int, stop: int, next_V: np.ndarray, out_P: np.ndarray) -> None:
    """Enter each position t with first <= tokens[t] < stop at out[next[tokens[t]]], and add one to that `next`."""
    for t, token in enumerate(tokens_T.tolist()):
        if first <= token < stop:
            out_P[next_V[token]] = t
            next_V[token] += 1


def refine_groups(
    tokens_T: np.ndarray,
    first: int,
    stop: int,
    ends_V: np.ndarray,
    min_count: int,
    positions_P: np.ndarray,
    spare_P: np.ndarray,
    follow_P: np.ndarray,
    count_V: np.ndarray,
    seen_V: np.ndarray,
    stack_L3: np.ndarray,
    out_keys_LM: np.ndarray,
    out_counts_LM: np.ndarray,
    used_L: np.ndarray,
) -> None:
    """Append the n-grams of L lengths that begin with a token from first to stop and occur min_count times, in token order."""
    past = len(count_V) - 1

    def split(level: int, prefix: int, group: list[int]) -> None:
        if level == len(used_L) or len(group) < min_count:
            return
        groups: dict[int, list[int]] = {}
        for position in group:
            groups.setdefault(int(tokens_T[position + level + 1]), []).append(position)
        kept = [token for token in sorted(groups) if token != past and len(groups[token]) >= min_count]
        numbers = range(int(used_L[level]), int(used_L[level]) + len(kept))
        used_L[level] += len(kept)
        for number, token in zip(numbers, kept, strict=True):
            out_keys_LM[level, number] = prefix << 32 | token
            out_counts_LM[level, number] = len(groups[token])
            split(level + 1, number, groups[token])

    begin = 1
    for token in range(first, stop):
        end = int(ends_V[token])
        split(0, token, positions_P[begin:end].tolist())
        begin = end
