"""Neighbouring rows of which the same is to be said share a line: to tell of a large loss takes no memory by the row.

Shapes: M rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

_MOST_NAMED = 8

Name = TypeVar("Name")
Line = TypeVar("Line")


@dataclass
class Stretch(Generic[Name]):
    """Rows `first` to `last`, all with one verdict; `names` are those of the first few."""

    verdict: int
    first: int
    last: int
    names: list[Name]

    @property
    def num_rows(self) -> int:
        """How many rows these are."""
        return self.last - self.first + 1

    @property
    def rows(self) -> str:
        """Which rows, in words."""
        return f"row {self.first}" if self.num_rows == 1 else f"rows {self.first} to {self.last}"


class StretchLines(Generic[Name, Line]):
    """Puts a line for each stretch of rows into a list, and puts it anew where the next chunk goes on with that stretch."""

    def __init__(self, lines: list[Line], line_of: Callable[[Stretch[Name]], Line]) -> None:
        self._lines, self._line_of = lines, line_of
        self._stretch: Stretch[Name] | None = None
        self._at = 0

    def add(self, first: int, verdicts_M: np.ndarray, name_of: Callable[[int], Name]) -> None:
        """Rows `first` to `first` + M - 1; those of verdict 0 need no line. name_of: the name of the m-th of them."""
        edges = np.flatnonzero(np.diff(np.pad(verdicts_M.astype(np.int8), 1)))
        for begin, end in pairwise(edges.tolist()):
            verdict = int(verdicts_M[begin])
            if not verdict:
                continue
            stretch = self._stretch
            if stretch is None or (stretch.verdict, stretch.last + 1) != (verdict, first + begin):
                stretch = self._stretch = Stretch(verdict, first + begin, first + begin, [])
                self._at = len(self._lines)
            stretch.last = first + end - 1
            stretch.names += [name_of(m) for m in range(begin, min(end, begin + _MOST_NAMED - len(stretch.names)))]
            self._lines[self._at : self._at + 1] = [self._line_of(stretch)]
