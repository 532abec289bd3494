"""ID ranges that cover sorted runs, each of so few rows that they can be sorted in memory.

Bounds are picked from a sample of the IDs, and rows are counted exactly: a range that comes out too large is sampled
again by itself. So no range has more rows than asked for unless one ID has, and a sample grows with the number of runs
and of ranges, not with their product.

Shapes: R runs, M rows of a run, S sampled IDs, C bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_SAMPLES_A_RUN = 64
_SAMPLES_A_RANGE = 192
"""Of hashed IDs these make ranges of 554 full runs differ by 2 % of a run (one standard deviation), of 50 runs by less
than 1 %."""
_MOST_SAMPLES = 1 << 20  # held at once when ranges are sampled again

IdsOfRun = Callable[[int], np.ndarray]


@dataclass(frozen=True, eq=False)
class IdRange:
    """The rows whose IDs are low .. high - 1: of run r, those from firsts[r] up to lasts[r]."""

    low: int
    high: int
    firsts_R: np.ndarray
    lasts_R: np.ndarray

    @property
    def num_rows(self) -> int:
        """Of all runs together."""
        return int((self.lasts_R - self.firsts_R).sum())


def id_ranges(num_rows_R: np.ndarray, ids_of: IdsOfRun, *, aim_rows: int, most_rows: int) -> list[IdRange]:
    """Ranges in ascending order that cover R runs, none of them empty: about aim_rows each, at most most_rows unless
    one ID has more.

    num_rows_R: (R,) i64. ids_of(r): the IDs of run r, ascending (M,) u64; asked for run by run, and let go again.
    The same runs give the same ranges.
    """
    at_once = max(1, _MOST_SAMPLES // (_SAMPLES_A_RUN * len(num_rows_R)))
    done: list[IdRange] = []
    large = [IdRange(0, 1 << 64, np.zeros_like(num_rows_R), num_rows_R)]
    while large:
        group, large = large[:at_once], large[at_once:]
        samples = _samples(group, ids_of, aim_rows)
        bounds = [_bounds(part, sample_S, aim_rows) for part, sample_S in zip(group, samples, strict=True)]
        for inner, pieces in zip(bounds, _pieces(group, bounds, ids_of), strict=True):
            for piece in pieces:
                if piece.num_rows <= most_rows or not inner:  # no bounds inside: one ID
                    done.append(piece)
                else:
                    large.append(piece)
    return sorted(done, key=lambda part: part.low)


def _samples(group: Sequence[IdRange], ids_of: IdsOfRun, aim_rows: int) -> list[np.ndarray]:
    """Some IDs of each range, ascending (S,) u64; the first one of each run is among them.

    All runs are sampled at the same step: else a short one would weigh more than its rows do.
    """
    num_runs = len(group[0].firsts_R)
    steps = []
    for part in group:
        wanted = _SAMPLES_A_RUN * num_runs + _SAMPLES_A_RANGE * (part.num_rows // aim_rows)
        steps.append(max(1, part.num_rows // wanted))
    samples: list[list[np.ndarray]] = [[] for _ in group]
    for run in range(num_runs):
        ids_M = ids_of(run)
        for part, step, sample in zip(group, steps, samples, strict=True):
            sample.append(np.array(ids_M[part.firsts_R[run] : part.lasts_R[run] : step]))
    return [np.sort(np.concatenate(sample)) for sample in samples]


def _bounds(part: IdRange, sample_S: np.ndarray, aim_rows: int) -> list[int]:
    """IDs at which to cut a range, ascending, all of them inside it; none where there is room for one ID only.

    Each leaves the smallest ID below it and is either an ID of the range or the next one after, so that cutting again
    comes to an end.
    """
    num_pieces = max(2, -(-part.num_rows // aim_rows))
    picks = sample_S[np.arange(1, num_pieces) * len(sample_S) // num_pieces]
    smallest = int(sample_S[0])
    values, repeats = np.unique(picks, return_counts=True)
    found = set()
    for value, times in zip(values.tolist(), repeats.tolist(), strict=True):
        if value > smallest:
            found.add(value)
        if value == smallest or times > 1:  # an ID of more rows than aimed at gets a range of its own
            found.add(value + 1)
    return sorted(bound for bound in found if bound < part.high)


def _pieces(group: Sequence[IdRange], bounds: Sequence[list[int]], ids_of: IdsOfRun) -> Iterator[list[IdRange]]:
    """What the bounds make of each range, without pieces that are empty."""
    all_C = np.array([bound for inner in bounds for bound in inner], np.uint64)
    places_CR = np.empty((len(all_C), len(group[0].firsts_R)), np.int64)
    for run in range(places_CR.shape[1]):
        places_CR[:, run] = np.searchsorted(ids_of(run), all_C)
    begin = 0
    for part, inner in zip(group, bounds, strict=True):
        ends = [part.low, *inner, part.high]
        cuts = [part.firsts_R, *places_CR[begin : begin + len(inner)], part.lasts_R]
        begin += len(inner)
        pieces = [
            IdRange(low, high, firsts_R, lasts_R)
            for (low, high), (firsts_R, lasts_R) in zip(pairwise(ends), pairwise(cuts), strict=True)
        ]
        yield [piece for piece in pieces if piece.num_rows]
