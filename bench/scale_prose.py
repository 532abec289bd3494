"""What docs/scale.md says in sentences of the run in its tables, the words chosen by the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from bench import saved
from bench.saved import Found
from bench.workloads.scale_keys import ABSENT_SHARE

_ONE, _MANY = "us_per_key@1", "us_per_key@1024"
_LEAST = 1.1
"""Times that differ by less from the smallest store to the largest show no trend."""


def probes(folder: Path) -> str:
    """How *hot* and *absent* change with size, in batches and alone."""
    hot, absent = (_case(folder, name) for name in ("hot", "absent"))
    return (
        f"  {_multiple_of(hot)}: in calls of 1,024, {_change('hot', hot, _MANY)} and {_change('absent', absent, _MANY)};\n"
        f"  in calls of one, {_change('hot', hot, _ONE)} and {_change('absent', absent, _ONE)}."
    )


def misses(folder: Path) -> str:
    """What a row costs that is not cached and one that is; how the mixes change that depend on it."""
    zipf, quarter, uniform, hot, absent = (
        _case(folder, name) for name in ("zipf", "zipf_quarter", "uniform", "hot", "absent")
    )
    largest = uniform.subjects[-1]
    lost_us = ABSENT_SHARE * absent.value(largest, _MANY)
    miss, hit = ((found.value(largest, _MANY) - lost_us) / (1 - ABSENT_SHARE) for found in (uniform, hot))
    hits = ", ".join(
        _hits(name, found) for name, found in (("zipf", zipf), ("uniform", uniform), ("zipf_quarter", quarter))
    )
    return (
        f"  In a call of 1,024 among {largest}, a stored key takes about {miss:.2g} us where hardly any row is cached (*uniform*, without its\n"
        f"  absent keys), and {hit:.2g} us where every row is (*hot*, likewise). Row requests that the row cache answers, by size:\n"
        f"  {hits}.\n"
        f"  {_multiple_of(zipf)}, in\n"
        f"  such calls: {_change('zipf', zipf, _MANY)}, {_change('uniform', uniform, _MANY)}; with caches for the same share of the\n"
        f"  rows, {_change('zipf_quarter', quarter, _MANY)}."
    )


def build_memory(folder: Path) -> str:
    """Whether a build held more than its `memory_bytes`."""
    found = _case(folder, "build")
    held = {size: found.value(size, "anon_mib") for size in found.subjects}
    budget = found.case["subjects"][found.subjects[-1]]["facts"]["memory_mib"]
    over = [f"that of {size} held {mib - budget:,.0f} MiB more" for size, mib in held.items() if mib > budget]
    return (
        f"   In the run above, with all of these, the builds of {_listed([size.removesuffix(' keys') for size in held])} keys held\n"
        f"   {_listed([f'{mib:,.0f}' for mib in held.values()])} MiB at their peaks; `memory_bytes` was {budget:,.0f} MiB, and "
        f"{_listed(over) if over else 'none held more'}."
    )


SENTENCES: dict[str, Callable[[Path], str]] = {"probes": probes, "misses": misses, "build memory": build_memory}


def trend(times: Sequence[float]) -> str:
    """What times by growing size show: slower or faster where every step goes that way and all of them by a tenth or more."""
    ratio = times[-1] / times[0]
    if ratio >= _LEAST and all(before < after for before, after in pairwise(times)):
        return "slower with size"
    if ratio <= 1 / _LEAST and all(before > after for before, after in pairwise(times)):
        return "faster with size"
    return "no trend"


def _case(folder: Path, name: str) -> Found:
    return saved.cases(folder)["scale", name]


def _multiple_of(found: Found) -> str:
    return f"The time of a key among {found.subjects[-1]} as a multiple of that among {found.subjects[0]}"


def _change(name: str, found: Found, metric: str) -> str:
    times = [found.value(size, metric) for size in found.subjects]
    ratio = found.ratio(found.subjects[-1], found.subjects[0], metric)  # within each round, as the targets have it
    return f"*{name}* {ratio:.2f} ({trend(times)})"


def _hits(name: str, found: Found) -> str:
    """Percent at each size."""
    rates = [found.case["subjects"][size]["facts"].get("hit_rate") for size in found.subjects]
    if any(rate is None for rate in rates):
        return f"not measured (*{name}*)"
    return f"{_listed([f'{100 * rate:.0f}' for rate in rates])} % (*{name}*)"


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
