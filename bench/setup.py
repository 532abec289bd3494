"""What a run was asked for: sizes, seed, folder, which cases and subjects; and the subjects' files made ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench import peers
from bench.harness import WorkerFailed, spawn

_T = TypeVar("_T")


@dataclass(kw_only=True)
class Setup:
    """Options of the command line, and what was found out on the way (`warnings`)."""

    root: Path
    """Folder of sources and stores; kept between runs when the caller named it."""
    quick: bool = False
    large: bool = False
    seed: int = 0
    num_keys: int | None = None
    """None: the workload's own size."""
    dim: int | None = None
    only_cases: tuple[str, ...] = ()
    only_subjects: tuple[str, ...] = ()
    warmup_s: float = 4.0
    say: Callable[[str], None] = lambda text: None
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Subjects whose files could not be written; those that are not installed are warnings only."""

    def pick(self, full: _T, quick: _T) -> _T:
        """`quick` in a quick run, else `full`."""
        return quick if self.quick else full

    def choose(self, makers: dict[str, _T]) -> dict[str, _T]:
        """The cases that were asked for, in the workload's order. Raises KeyError naming an unknown one."""
        if unknown := set(self.only_cases) - set(makers):
            raise KeyError(f"no case {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
        return {name: make for name, make in makers.items() if not self.only_cases or name in self.only_cases}

    def available(self, subjects: Iterable[str]) -> list[str]:
        """The subjects that were asked for and can be imported; each that cannot leaves a warning."""
        wanted = [name for name in subjects if not self.only_subjects or name in self.only_subjects]
        reasons = {name: peers.missing(name) for name in wanted}
        for reason in filter(None, reasons.values()):
            if reason not in self.warnings:
                self.warnings.append(reason)
        return [name for name in wanted if reasons[name] is None]

    def build(self, subjects: Iterable[str], source: Path) -> list[str]:
        """Write the files of the available subjects, each in a process of its own; returns those that have them."""
        available = self.available(subjects)
        folders = {name: peers.files_folder(peers.create(name), source) for name in available}
        left = {folder: name for name, folder in reversed(folders.items()) if not folder.exists()}  # one of each layout
        with ThreadPoolExecutor(2 if self.quick else 1) as pool:  # a full run's files are large: one after the other
            failed = dict(filter(None, pool.map(lambda item: self._write(*item, source), left.items())))
        return [name for name in available if folders[name] not in failed]

    def _write(self, folder: Path, name: str, source: Path) -> tuple[Path, str] | None:
        """Write one subject's files; what went wrong becomes a warning."""
        self.say(f"files of {name} for {source.name}")
        try:
            spawn("bench.peers:ensure_built", {"subject": name, "source_folder": str(source)})
            return None
        except WorkerFailed as error:
            self.failures.append(f"{name} left out: its files for {source.name} could not be written: {error}")
            self.warnings.append(self.failures[-1])
            return folder, name

    def subjects(self, subjects: Iterable[str], source: Path, arguments: dict) -> dict[str, dict]:
        """Subject -> worker arguments, their files written."""
        return {name: {"subject": name, **arguments} for name in self.build(subjects, source)}
