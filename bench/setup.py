"""What a run was asked for: sizes, seed, folder, which cases and subjects; and the subjects' files made ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench import peers
from bench.harness import Case, WorkerFailed, spawn

_T = TypeVar("_T")

PREFIX = "ngramstore-bench-"
"""How everything begins that a run removes again: --dir may be a folder with other things in it."""
SIZES = ("--keys", "--dim")
"""For `Offer.takes`."""


class Refused(Exception):
    """What was asked for would not be measured; the message says why, or what to ask for instead."""


@dataclass(frozen=True)
class Offer:
    """A case that can be asked for, and the options that it heeds: any other is refused, not ignored."""

    make: Callable[[Setup], Case]
    subjects: tuple[str, ...] = ()
    """What --subject chooses among; (): it chooses nothing here."""
    takes: tuple[str, ...] = ()
    """Of SIZES."""
    is_large: bool = False
    """Measured with --large only."""

    def heeds(self, option: str) -> bool:
        """Whether an option of the command line changes the case."""
        return bool(self.subjects) if option == "--subject" else option in self.takes


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

    @property
    def scratch(self) -> Path:
        """Folder of what only a run needs."""
        return self.root / f"{PREFIX}scratch"

    def pick(self, full: _T, quick: _T) -> _T:
        """`quick` in a quick run, else `full`."""
        return quick if self.quick else full

    def warn(self, text: str) -> None:
        """A warning of the result, once however often it is given."""
        if text not in self.warnings:
            self.warnings.append(text)

    def cases(self, offers: dict[str, Offer]) -> list[Case]:
        """The cases that were asked for, made in the workload's order; one whose subjects are all missing leaves a warning.

        Raises Refused before anything is written: an unknown case or subject, an option that a case does not heed; and
        behind it where no case is left.
        """
        cases = []
        for name, offer in self._chosen(offers).items():
            if offer.subjects and not self.asked(offer.subjects):
                self.warn(f"{name} left out: it has none of the subjects asked for")
                continue
            case = offer.make(self)
            if case.subjects:
                cases.append(case)
            else:
                self.warn(f"{name} left out: none of its subjects can be measured here")
        if not cases:
            raise Refused("; ".join(["no case is left to measure", *self.warnings]))
        return cases

    def _chosen(self, offers: dict[str, Offer]) -> dict[str, Offer]:
        if unknown := set(self.only_cases) - set(offers):
            raise Refused(f"no case {_listed(sorted(unknown))}; there are {_listed(offers)}")
        chosen = {
            name: offer
            for name, offer in offers.items()
            if name in self.only_cases or (not self.only_cases and (self.large or not offer.is_large))
        }
        large = [name for name, offer in chosen.items() if offer.is_large]
        if large and not self.large:
            raise Refused(f"{_listed(large)}: only with --large")
        if self.large and not large:
            raise Refused("--large changes none of these cases; leave it out")
        for option, value in (("--keys", self.num_keys), ("--dim", self.dim), ("--subject", self.only_subjects)):
            if value and (deaf := [name for name, offer in chosen.items() if not offer.heeds(option)]):
                raise Refused(
                    f"{option} does not change {_listed(deaf)}; leave it out, or choose other cases with --only"
                )
        there = dict.fromkeys(subject for offer in chosen.values() for subject in offer.subjects)
        if unknown := set(self.only_subjects) - set(there):
            raise Refused(f"no subject {_listed(sorted(unknown))}; there are {_listed(there)}")
        return chosen

    def asked(self, subjects: Iterable[str]) -> list[str]:
        """Those of the subjects that were asked for; all of them where none were named."""
        return [name for name in subjects if not self.only_subjects or name in self.only_subjects]

    def available(self, subjects: Iterable[str]) -> list[str]:
        """The subjects that were asked for and can be imported; each that cannot leaves a warning."""
        return self._importable(self.asked(subjects))

    def _importable(self, subjects: Iterable[str]) -> list[str]:
        reasons = {name: peers.missing(name) for name in subjects}
        for reason in filter(None, reasons.values()):
            self.warn(reason)
        return [name for name, reason in reasons.items() if reason is None]

    def build(self, subjects: Iterable[str], source: Path) -> list[str]:
        """Write the files of the available subjects, each in a process of its own; returns those that have them."""
        return self._built(self.available(subjects), source)

    def build_unasked(self, subjects: Iterable[str], source: Path) -> None:
        """Write files that a case reads whatever --subject chooses."""
        self._built(self._importable(subjects), source)

    def _built(self, available: list[str], source: Path) -> list[str]:
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
