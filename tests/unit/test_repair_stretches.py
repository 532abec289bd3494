"""Stretches of rows with one verdict: the same as a loop over the rows finds, in whatever chunks they come."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np

from ngramstore.store.repair.stretches import StretchLines


def plain_stretches(verdicts: list[int]) -> list[tuple]:
    """Verdict, first and last row, and the names of the first eight rows, of each stretch that is not of verdict 0."""
    stretches = []
    for verdict, group in groupby(range(len(verdicts)), key=verdicts.__getitem__):
        rows = list(group)
        if verdict:
            stretches.append((verdict, rows[0], rows[-1], [f"row {row}" for row in rows[:8]]))
    return stretches


def test_stretches_are_those_of_a_loop_in_whatever_chunks_rows_come():
    rng = random.Random(7)
    for _ in range(300):
        verdicts = [value for _ in range(8) for value in [rng.randrange(3)] * rng.randrange(1, 15)]
        lines: list[tuple] = ["before"]
        stretches = StretchLines(
            lines, lambda stretch: (stretch.verdict, stretch.first, stretch.last, list(stretch.names))
        )
        at = 0
        while at < len(verdicts):
            count = rng.randrange(1, 12)
            stretches.add(at, np.array(verdicts[at : at + count]), lambda m, at=at: f"row {at + m}")
            at += count
        assert lines == ["before", *plain_stretches(verdicts)]


def test_a_line_is_put_anew_where_it_stands_though_others_came_behind_it():
    lines: list[str] = []
    stretches = StretchLines(lines, lambda stretch: f"{stretch.first} to {stretch.last}")
    stretches.add(5, np.array([False, True]), str)
    lines.append("another")
    stretches.add(7, np.array([True, True, False]), str)
    assert lines == ["6 to 8", "another"]


def test_names_are_asked_for_the_first_rows_of_a_stretch_alone():
    asked: list[int] = []
    stretches = StretchLines([], lambda stretch: stretch.num_rows)
    for first in (0, 100_000):
        stretches.add(first, np.ones(100_000, bool), asked.append)
    assert asked == list(range(8))
