"""What the JSON files say of every target (bench/targets.py), as a table and in a paragraph.

What was not measured yet says so, and so does what was measured with a subject whose warnings make it void.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bench import saved
from bench.saved import Found
from bench.targets import CLAIMS, Claim

Cases = dict[tuple[str, str], Found]


@dataclass(frozen=True)
class Answer:
    """What the files say of a claim, under the name that fits them; value None: not measured."""

    claim: Claim
    value: float | None
    file: str
    rounds: list[float] = field(default_factory=list)
    """What the value is the median of; empty where it is no median."""

    @property
    def is_met(self) -> bool:
        """Within the limit, as measured: nothing is rounded in its favour."""
        if self.value is None:
            return False
        return self.value >= self.claim.limit if self.claim.at_least else self.value <= self.claim.limit


def answers(folder=saved.RESULTS) -> list[Answer]:
    """Every claim with its number."""
    cases = saved.cases(folder)
    return [_answer(claim, cases, folder) for claim in CLAIMS]


def _answer(claim: Claim, cases: Cases, folder) -> Answer:
    if "/" in claim.file_of:
        workload, name = claim.file_of.split("/")
        found = cases.get((workload, name))
        source, file = found and found.sound(), found.file if found else f"python -m bench {workload}"
    else:
        source, file = saved.plain(claim.file_of, folder), f"{claim.file_of}.json"
    try:
        if source is None:
            return Answer(claim, None, file)
        named = replace(claim, what=claim.named(source)) if claim.named else claim
        return Answer(named, claim.read(source), file, claim.rounds(source) if claim.rounds else [])
    except (KeyError, ValueError):
        return Answer(claim, None, file)


def table(folder=saved.RESULTS) -> str:
    """The claims as a Markdown table, with a line that counts them."""
    found = answers(folder)
    met, missing = sum(a.is_met for a in found), sum(a.value is None for a in found)
    rows = [
        f"| {a.claim.what} | {_number(a)} | {'at least' if a.claim.at_least else 'at most'} {a.claim.limit:.3g} | {_verdict(a)} | `{a.file}` |"
        for a in found
    ]
    head = f"{met} of {len(found)} targets are met as measured; not met: {len(found) - met - missing}; not measured here yet: {missing}."
    return "\n".join([head, "", "| what | measured | target | | file |", "|---|---:|---:|---|---|", *rows])


def misses(folder=saved.RESULTS) -> str:
    """How many targets are met, and a list of those that are not."""
    every = answers(folder)
    found = [answer for answer in every if answer.value is not None]
    missed: dict[str, list[Answer]] = {}
    for answer in found:
        if not answer.is_met:
            clause = answer.claim.plainly or f"{answer.claim.what}: {{}} {answer.claim.unit}"
            missed.setdefault(clause, []).append(answer)
    num_missed = sum(map(len, missed.values()))
    head = f"The project set itself {len(every)} targets ([all of them](docs/results.md#targets)); {len(found) - num_missed} are met."
    if len(found) < len(every):
        head += f" Void or not measured here: {len(every) - len(found)}."
    if not missed:
        return head
    told = [
        f"- {clause.format(' and '.join(f'{a.value:.3g}' for a in answers))} ({answers[0].claim.limit:.3g})"
        for clause, answers in missed.items()
    ]
    return "\n".join([f"{head} Not met, with the target in parentheses:", "", *told])


def _number(answer: Answer) -> str:
    if answer.value is None:
        return "-"
    spread = f" ({min(answer.rounds):.3g} to {max(answer.rounds):.3g})" if len(answer.rounds) > 1 else ""
    return f"{answer.value:.3g} {answer.claim.unit}{spread}"


def _verdict(answer: Answer) -> str:
    if answer.value is None:
        return "not measured"
    return "met" if answer.is_met else "**not met**"
