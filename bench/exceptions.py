"""Where a peer is faster or smaller than ngramstore, computed from the JSON files; the reasons are in bench/exceptions.json.

A peer counts as faster where ours takes over 5 % more, by the median of the ratios within the rounds. Subjects that are told the
row numbers (floor, flat_*) bound what is possible and are no peers. A column with values of 0 or less has no ratio: what memory
exceeds a budget by, or how far an estimate is off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bench import saved
from bench.saved import Found

REASONS = Path(__file__).parent / "exceptions.json"
WORKLOADS = ("store", "paper")
BOUNDS = ("floor", "flat_", "ngramstore")
ROOM = 1.05


@dataclass(frozen=True)
class FasterPeer:
    """Ours takes `ratio` times what the peer takes; `best` is the same for the fastest variant of ours in that case."""

    where: str
    metric: str
    peer: str
    ratio: float
    best: float
    file: str


def found(folder: Path = saved.RESULTS) -> list[FasterPeer]:
    """Every one of them, case by case, in the order of the case's columns."""
    result = []
    for (workload, name), case in saved.cases(folder).items():
        if workload in WORKLOADS:
            result += _of_case(f"{workload}/{name}", case.sound())
    return result


def _of_case(where: str, case: Found) -> list[FasterPeer]:
    found = []
    for metric in case.case["headline"]:
        for peer in case.subjects:
            if peer.startswith(BOUNDS) or not case.has(peer, metric):
                continue
            suffix = peer.partition(" ")[2]
            ours = [s for s in case.subjects if s.startswith("ngramstore") and s.partition(" ")[2] == suffix]
            ours = [s for s in ours if case.has(s, metric) and not s.startswith("ngramstore_exact")]
            default = next((s for s in ours if s.split(" ")[0] == "ngramstore"), None)
            if default is None or any(value <= 0 for s in (*ours, peer) for value in case.rounds(s, metric)):
                continue
            ratio = case.ratio(default, peer, metric)
            if ratio > ROOM:
                best = min(case.ratio(s, peer, metric) for s in ours)
                found.append(FasterPeer(where, metric, peer, ratio, best, case.file))
    return found


def reason(exception: FasterPeer) -> str | None:
    """The written reason: of the first entry whose patterns match; None where there is none."""
    for entry in json.loads(REASONS.read_text()):
        fields = (("where", exception.where), ("metric", exception.metric), ("peer", exception.peer))
        if all(any(fnmatch(value, pattern) for pattern in entry[name].split("|")) for name, value in fields):
            return entry["reason"]
    return None


def table(folder: Path = saved.RESULTS) -> str:
    """Markdown: the exceptions, grouped where one reason holds for several."""
    groups: dict[tuple[str, str | None], list[FasterPeer]] = {}
    for exception in found(folder):
        groups.setdefault((exception.where, reason(exception)), []).append(exception)
    lines = ["| case | peer, column: ours / theirs | reason |", "|---|---|---|"]
    for (where, why), members in groups.items():
        cells = "; ".join(f"{_peer(m)}" for m in members)
        lines.append(f"| {where} | {cells} | {why or '**no reason written**'} |")
    return "\n".join(lines) if groups else "None."


def _peer(exception: FasterPeer) -> str:
    best = f" (our best {exception.best:.2f})" if exception.best < exception.ratio * 0.98 else ""
    return f"{exception.peer} {exception.metric}: {exception.ratio:.2f}{best}"
