"""The JSON files of bench/results as cases that can be asked for: the newest full run of a case, else its newest quick run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
VOID = "not cold"
"""How a warning begins that says that a subject's numbers are not of what the case is about."""


@dataclass(frozen=True)
class Found:
    """One case of one file."""

    file: str
    bench: str
    is_quick: bool
    case: dict[str, Any]
    commit: str | None
    """Of the file; None where it does not say."""

    @property
    def subjects(self) -> list[str]:
        """Those with a result."""
        return list(self.case["subjects"])

    def sound(self) -> Found:
        """The case without the subjects that a warning makes void in some round."""
        subjects = {
            name: one
            for name, one in self.case["subjects"].items()
            if not any(warning.startswith(VOID) for warning in one["facts"].get("warnings", []))
        }
        return replace(self, case={**self.case, "subjects": subjects})

    def value(self, subject: str, metric: str) -> float:
        """Median over the rounds. Raises KeyError where it was not measured."""
        return self.case["subjects"][subject]["metrics"][metric]["median"]

    def ratio(self, subject: str, other: str, metric: str) -> float:
        """Median of `ratios`. Raises KeyError where one is missing."""
        return median(self.ratios(subject, other, metric))

    def ratios(self, subject: str, other: str, metric: str) -> list[float]:
        """Of subject / other, each round by itself. Raises KeyError where one is missing."""
        pairs = zip(self._rounds(subject, metric), self._rounds(other, metric), strict=True)
        return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]

    def rounds(self, subject: str, metric: str) -> list[float]:
        """Its value in each round that gave one. Raises KeyError where it was not measured."""
        return [value for value in self._rounds(subject, metric) if value is not None]

    def has(self, subject: str, metric: str) -> bool:
        """The subject has this metric."""
        return metric in self.case["subjects"].get(subject, {}).get("metrics", {})

    def _rounds(self, subject: str, metric: str) -> list[float | None]:
        return self.case["subjects"][subject]["metrics"][metric]["values"]


def cases(folder: Path = RESULTS) -> dict[tuple[str, str], Found]:
    """(workload, case) -> its newest result, full runs before quick ones."""
    ranked = []
    for path in sorted(folder.glob("*.json")):
        result = _read(path)
        if "bench" not in result:
            continue
        is_quick = bool(result["options"]["quick"])
        for case in result["cases"]:
            ranked.append(
                (
                    (not is_quick, result["machine"]["time"]),
                    Found(path.name, result["bench"], is_quick, case, result["machine"].get("commit")),
                )
            )
    newest = {}
    for _, found in sorted(ranked, key=lambda item: item[0]):
        newest[found.bench, found.case["name"]] = found
    return newest


def commits(folder: Path = RESULTS) -> dict[str, str | None]:
    """File name -> the commit that it says it is of."""
    return {path.name: commit_of(_read(path)) for path in sorted(folder.glob("*.json"))}


def commit_of(result: Mapping[str, Any]) -> str | None:
    """The commit of a file, None where it does not say; of a grid that was resumed, that it is only the last run's."""
    commit = result.get("machine", {}).get("commit")
    of_cells = {cell.get("commit") for cell in result.get("cells", {}).values()}
    if commit is None or of_cells <= {commit}:
        return commit
    return f"{commit} (last run; its cells {'do not name' if None in of_cells else 'name'} theirs)"


def of_commits(files: Mapping[str, str | None]) -> str:
    """Which commits these files are of, in a sentence: file name -> commit. Most of them first, the others by name."""
    by_commit: dict[str | None, list[str]] = {}
    for name, commit in files.items():
        by_commit.setdefault(commit, []).append(f"`{name}`")
    first, *others = sorted(by_commit.items(), key=lambda item: -len(item[1]))
    if not others:
        return f"{f'All {len(files)} files are' if len(files) > 1 else 'The file is'} of {_commit(first[0])}."
    told = "; ".join(f"{', '.join(names)} of {_commit(commit)}" for commit, names in others)
    return f"{len(first[1])} of {len(files)} files are of {_commit(first[0])}; {told}."


def _commit(commit: str | None) -> str:
    return f"commit {commit}" if commit else "a commit that they do not name"


def label(name: str, facts: Mapping[str, Any]) -> str:
    """A subject, with the version of its server where it has one: versions of packages are those of clients."""
    return f"{name} (server {facts['redis_version']})" if "redis_version" in facts else name


def plain(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A file that is not made of cases; None where it is not there."""
    path = folder / f"{name}.json"
    return _read(path) if path.exists() else None


def _read(path: Path) -> dict[str, Any]:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, changed_ns: int) -> dict[str, Any]:
    del changed_ns
    return json.loads(path.read_text())
