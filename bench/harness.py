"""Interleaved rounds: every subject once a round, in random order, each time in a process of its own.

A worker function returns {"metrics": {name: number}, "facts": {name: anything}}; smaller metrics are better. Facts of the
last round are kept, and the warnings of every round. A subject that fails is reported with its error and the others go on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import spread
from bench.forked import Server

ROOT = Path(__file__).resolve().parent.parent
forked: Server | None = None
"""Set by a quick run: workers that run with ONE_THREAD are forked by it."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: a worker function asked of several subjects."""

    name: str
    title: str
    function: str
    """`package.module:name` of the worker function."""
    subjects: dict[str, dict]
    """Subject -> the function's arguments; the harness adds `seed`, which differs by round, not by subject."""
    baseline: str
    headline: tuple[str, ...]
    """The metrics that the text table shows."""
    notes: tuple[str, ...] = ()
    rounds: int | None = None
    """Fewer rounds than asked for, where the answer does not vary (sizes) or takes long (builds)."""
    environment: dict[str, str] = field(default_factory=lambda: dict(ONE_THREAD))
    timeout_s: float = 3600
    is_forkable: bool = True
    """False: a new interpreter for each worker in a quick run too."""


class WorkerFailed(Exception):
    """The process of a subject ended without a result; the message ends with its last lines."""


def spawn(function: str, arguments: dict, environment: dict[str, str] | None = None, timeout_s: float = 3600) -> dict:
    """Run one worker function in a fresh process and return its result. Raises WorkerFailed.

    environment None: what the worker needs is no matter, as when files are written.
    """
    if forked and environment in (None, forked.environment):
        try:
            return forked.run(function, arguments, timeout_s)
        except (RuntimeError, TimeoutError) as error:
            raise WorkerFailed(str(error)) from error
    return fresh(function, arguments, environment, timeout_s)


def fresh(function: str, arguments: dict, environment: dict[str, str] | None = None, timeout_s: float = 3600) -> dict:
    """The same in a new interpreter, always. Raises WorkerFailed."""
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
    task = json.dumps({"function": function, "arguments": arguments})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.worker"],
            input=task, env=env, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"no answer after {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise WorkerFailed(f"exit {done.returncode}: " + " ".join(done.stderr.strip().splitlines()[-1:]))
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: Case, rounds: int, seed: int, say: Callable[[str], None] = lambda text: None) -> dict:
    """All rounds of one case, summarised and ready for JSON; every round's numbers are kept."""
    rounds = min(rounds, case.rounds or rounds)
    order = random.Random(f"{seed} {case.name}")
    results: dict[str, list[dict | None]] = {name: [] for name in case.subjects}
    errors: dict[str, str] = {}
    orders = []
    for turn in range(rounds):
        names = sorted(case.subjects)
        order.shuffle(names)
        orders.append(names)
        for name in names:
            if name in errors:
                results[name].append(None)
                continue
            say(f"{case.name}: round {turn + 1}/{rounds}, {name}")
            try:
                arguments = {**case.subjects[name], "seed": seed * 1000 + turn}
                start = spawn if case.is_forkable else fresh
                results[name].append(start(case.function, arguments, case.environment, case.timeout_s))
            except WorkerFailed as error:
                errors[name] = str(error)
                results[name].append(None)
                say(f"{case.name}: {name} failed: {error}")
    return {
        "name": case.name,
        "title": case.title,
        "baseline": case.baseline,
        "headline": list(case.headline),
        "notes": list(case.notes),
        "rounds": rounds,
        "order": orders,
        "subjects": {name: _summarise(results, name, case.baseline) for name in case.subjects if name not in errors},
        "errors": errors,
    }


def _summarise(results: dict[str, list[dict | None]], name: str, baseline: str) -> dict:
    """One subject's metrics over its rounds, each with its ratio to the baseline of the same round."""
    rounds = [r for r in results[name] if r is not None]
    metrics: dict[str, dict] = {}
    for metric in dict.fromkeys(metric for r in rounds for metric in r["metrics"]):
        values = _column(results[name], metric)
        metrics[metric] = {
            "values": values,
            **spread.summary([v for v in values if v is not None]),
            "ratio": spread.ratios(values, _column(results.get(baseline, [None] * len(values)), metric)),
        }
    return {"metrics": metrics, "facts": _facts([r.get("facts", {}) for r in rounds])}


def _facts(rounds: list[dict]) -> dict:
    """Those of the last round, with the warnings of all: the medians are over all rounds too."""
    warnings = list(dict.fromkeys(warning for facts in rounds for warning in facts.get("warnings", [])))
    return {**rounds[-1], "warnings": warnings} if any("warnings" in facts for facts in rounds) else rounds[-1]


def _column(rounds: list[dict | None], metric: str) -> list[float | None]:
    return [None if r is None else r["metrics"].get(metric) for r in rounds]
