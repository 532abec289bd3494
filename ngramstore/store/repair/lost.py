"""Rows that a repair loses, as lines of its report: one line for neighbouring rows that are lost in the same way.

Shapes: M rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ngramstore.store.repair.report import RepairReport
from ngramstore.store.repair.stretches import Stretch, StretchLines
from ngramstore.store.repair.worn import Chunk

_HAS_TOKENS, _LACKS_TOKENS, _HAS_ID, _UNKNOWN = 1, 2, 3, 4


class LostRows:
    """Names and counts in a report the lost rows of a layer, which come in order. `line_of`: one of the functions below."""

    def __init__(self, report: RepairReport, line_of: Callable[[Stretch[str]], str]) -> None:
        self._report = report
        self._lines: StretchLines[str, str] = StretchLines(report.lost, line_of)

    def add(self, chunk: Chunk, is_lost_M: np.ndarray) -> None:
        """The rows of a chunk that are lost."""
        by_id_M = np.where(chunk.is_good, _LACKS_TOKENS, _HAS_ID)
        verdicts_M = np.where(chunk.has_tokens, _HAS_TOKENS, np.where(chunk.has_id, by_id_M, _UNKNOWN))
        verdicts_M[~is_lost_M] = 0
        self._lines.add(chunk.first, verdicts_M, lambda m: _name(chunk, m))
        self._report.num_lost += int(is_lost_M.sum())


def line_of_ngrams(where: str, stretch: Stretch[str]) -> str:
    """N-grams of the layer `where`."""
    s, an, their = ("", "an ", "its") if stretch.num_rows == 1 else ("s", "", "their")
    at = f"{stretch.rows} of the {where}"
    if stretch.verdict == _UNKNOWN:
        return f"{at}, of {an}unknown n-gram{s}"
    if stretch.verdict == _HAS_TOKENS:
        return f"n-gram{s} {_names(stretch)} ({at})"
    tokens = f", {their} tokens are lost" if stretch.verdict == _LACKS_TOKENS else ""
    return f"ID{s} {_names(stretch)}{tokens} ({at})"


def line_of_numbers(stretch: Stretch[str]) -> str:
    """Rows of a row-addressed base."""
    return f"{stretch.rows}: now zeros"


def line_of_changes(stretch: Stretch[str]) -> str:
    """Rows of a row-addressed store that were changed since; their numbers are known by their IDs only."""
    return f"{'a changed row (ID' if stretch.num_rows == 1 else 'changed rows (IDs'} {_names(stretch)}): now zeros"


def _names(stretch: Stretch[str]) -> str:
    more = stretch.num_rows - len(stretch.names)
    return ", ".join(stretch.names) + (f" and {more} more" if more else "")


def _name(chunk: Chunk, m: int) -> str:
    if chunk.has_tokens[m]:
        return str(tuple(chunk.tokens[m, : chunk.lengths[m]].tolist()))
    return f"0x{int(chunk.ids[m]):016x}"
