"""Hit rates of a row cache replayed: least recently used, and the best possible (Belady 1966: evict what is needed last).

Shapes: P positions of a trace, U different rows.
"""

from __future__ import annotations

import heapq

import numpy as np

from ngramstore.kernels.jit import kernel


def replay(keys_P: np.ndarray, slots: int, policy: str) -> np.ndarray:
    """(P,) bool: which row requests of a trace find their row in a cache of so many rows. policy: "lru" or "belady"."""
    _, rows_P = np.unique(keys_P, return_inverse=True)
    rows_P = rows_P.astype(np.int64)
    hits_P = np.zeros(len(rows_P), np.bool_)
    if slots and len(rows_P):
        {"lru": _lru, "belady": _belady}[policy](rows_P, next_uses(rows_P), slots, hits_P)
    return hits_P


def next_uses(rows_P: np.ndarray) -> np.ndarray:
    """(P,) i64: the position of the next request of the same row; P where there is none."""
    count = len(rows_P)
    order = np.lexsort((np.arange(count), rows_P))
    next_P = np.full(count, count, np.int64)
    same = rows_P[order[1:]] == rows_P[order[:-1]]
    next_P[order[:-1][same]] = order[1:][same]
    return next_P


@kernel
def _lru(rows_P, next_P, slots, hits_P):
    count = len(rows_P)
    last_U = np.full(rows_P.max() + 1, -1, np.int64)  # position of the last request, -1: not cached
    oldest = 0  # no cached row was last asked for before this position
    used = 0
    for p in range(count):
        row = rows_P[p]
        if last_U[row] >= 0:
            hits_P[p] = True
        elif used == slots:
            while last_U[rows_P[oldest]] != oldest:
                oldest += 1
            last_U[rows_P[oldest]] = -1
            oldest += 1
        else:
            used += 1
        last_U[row] = p


@kernel
def _belady(rows_P, next_P, slots, hits_P):
    count = len(rows_P)
    next_U = np.full(rows_P.max() + 1, -1, np.int64)  # next request of a cached row, -1: not cached
    heap = [(np.int64(0), np.int64(-1))]
    used = 0
    for p in range(count):
        row = rows_P[p]
        if next_U[row] >= 0:
            hits_P[p] = True
        elif used < slots:
            used += 1
        else:
            while True:
                minus_next, victim = heapq.heappop(heap)
                if victim >= 0 and next_U[victim] == -minus_next:  # else an entry of an earlier request
                    break
            next_U[victim] = -1
        next_U[row] = next_P[p]
        heapq.heappush(heap, (-next_P[p], row))
