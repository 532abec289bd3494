"""Nothing is timed before its answers are compared with the source: the mask exactly, the values to float32 rounding.

Where the first call of a process is what counts, or the memory it takes, they are compared behind it: a wrong answer
gives no number.
"""

from __future__ import annotations

import numpy as np

RTOL = 1e-6
"""Room for another order of multiplication; a wrong code is off by at least 1/127."""


class WrongAnswer(Exception):
    """A subject returned something else than the source holds; its times would mean nothing."""


def must_match(subject: str, rows_BD: np.ndarray, found_B: np.ndarray, want_BD: np.ndarray, want_B: np.ndarray) -> int:
    """Compare one batch with the source; returns the number of rows compared. Missing rows must be zero.

    Raises WrongAnswer, naming the first place that differs.
    """
    found_B = np.asarray(found_B)
    if rows_BD.dtype != np.float32 or rows_BD.shape != want_BD.shape:
        raise WrongAnswer(f"{subject}: rows are {rows_BD.dtype} {rows_BD.shape}, wanted float32 {want_BD.shape}")
    if found_B.dtype != np.bool_ or found_B.shape != want_B.shape:
        raise WrongAnswer(f"{subject}: mask is {found_B.dtype} {found_B.shape}, wanted bool {want_B.shape}")
    if not np.array_equal(found_B, want_B):
        place = int(np.flatnonzero(found_B != want_B)[0])
        raise WrongAnswer(f"{subject}: found[{place}] is {bool(found_B[place])}, the source says {bool(want_B[place])}")
    good_BD = np.abs(rows_BD - want_BD) <= RTOL * np.abs(want_BD)  # NaN compares false, so it is caught too
    if not good_BD.all():
        b, d = (int(i) for i in np.argwhere(~good_BD)[0])
        raise WrongAnswer(f"{subject}: row {b}, column {d} is {rows_BD[b, d]!r}, the source says {want_BD[b, d]!r}")
    return len(found_B)
