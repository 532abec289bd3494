"""`python -m bench <workload>`: run a named workload, print a table, save JSON in bench/results/.

`--quick` asks whether everything runs and answers right, in under two minutes of two cores a workload. It leaves out:
large stores (40,000 keys or fewer), so misses of the CPU's caches; rounds, so any idea of a spread; all but 60 files of
the text, and a warm-up long enough for clocks to settle; and fresh interpreters for the workload `store`, whose workers
are forked (bench/forked.py) except where memory is measured. It keeps: every case
and subject, the check of answers, the check that pages are warm or cold, subjects in random order. Its times are no
claims.

A subject that fails does not stop the others; what failed is named in the end, and the command exits with 1.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path

import click

from bench import harness, machine, report
from bench.forked import Server
from bench.setup import PREFIX, Refused, Setup
from bench.workloads import WORKLOADS
from ngramstore.files import publish

RESULTS = Path(__file__).resolve().parent / "results"
ALONE = {"all": "bench.suite", "codecs": "bench.codecs", "profiles": "bench.profiles"}
"""Commands with options of their own: `python -m bench codecs --help`. `all` runs what docs/results.md is made from."""


@click.command(
    help=f"Run a WORKLOAD ({', '.join(WORKLOADS)}) and compare the subjects round by round.\n\n"
    f"Commands of their own, each with --help: {', '.join(ALONE)}. `python -m bench all` runs everything, some two and a half hours."
)
@click.argument("workload", type=click.Choice(sorted(WORKLOADS)))
@click.option("--quick", is_flag=True, help="Few keys, a tenth of a second of warm-up, one round: does all of it run?")
@click.option("--large", is_flag=True, help="Also the cases that need tens of millions of keys.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of every case (default 5, quick 1).")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the result goes (default: bench/results, not with --keys, --dim or --subject).",
)
@click.option(
    "--dir",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep sources and stores here for the next run; delete as-ngramstore-* when the format changed.",
)
@click.option("--seed", default=0, show_default=True, help="Of data, queries and the order of the subjects.")
@click.option("--only", "cases", multiple=True, help="A case to run; repeat for more (default: all).")
@click.option("--subject", "subjects", multiple=True, help="A subject to run; repeat for more (default: all).")
@click.option(
    "--keys", "num_keys", type=click.IntRange(64), help="Another number of keys, where every case chosen takes one."
)
@click.option("--dim", type=click.IntRange(4), help="Another row width, likewise.")
@click.option("--warmup", type=float, help="Seconds of warm-up of each process (default 4, quick 0.1).")
def main(
    workload: str,
    quick: bool,
    large: bool,
    rounds: int | None,
    json_path: Path | None,
    root: Path | None,
    seed: int,
    cases: tuple[str, ...],
    subjects: tuple[str, ...],
    num_keys: int | None,
    dim: int | None,
    warmup: float | None,
) -> None:
    path = json_path or RESULTS / f"{workload}{'_quick' if quick else ''}.json"
    is_of_another_size = num_keys or dim or subjects
    if (is_of_another_size and path.resolve().parent == RESULTS) or (cases and json_path is None):
        raise click.UsageError(
            f"--only, --subject, --keys and --dim make another measurement than the one that {path} is for; "
            "say with --json where this one goes"
        )
    rounds = rounds or (1 if quick else 5)
    harness.forked = Server(harness.ONE_THREAD) if quick and workload == "store" else None
    with tempfile.TemporaryDirectory(prefix=PREFIX) as temporary:
        setup = Setup(
            root=root or Path(temporary),
            quick=quick,
            large=large,
            seed=seed,
            num_keys=num_keys,
            dim=dim,
            only_cases=cases,
            only_subjects=subjects,
            warmup_s=warmup if warmup is not None else (0.1 if quick else 4.0),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        result = run(workload, setup, rounds, path)
    print(f"\nsaved {path}")
    failed = setup.failures + [
        f"{case['name']}: {name}: {error}" for case in result["cases"] for name, error in case["errors"].items()
    ]
    if failed:
        raise click.ClickException(f"{len(failed)} failed\n" + "\n".join(failed))


def run(workload: str, setup: Setup, rounds: int, path: Path | None = None) -> dict:
    """Run the workload's cases, print each table as it is ready, return everything for the JSON.

    path: where the JSON goes, written anew after each case: a run that is cut short keeps what it has measured.
    """
    setup.root.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    module = importlib.import_module(WORKLOADS[workload])
    try:
        cases = module.cases(setup)
    except Refused as error:
        raise click.UsageError(str(error)) from error
    result = {
        "bench": workload,
        "machine": about,
        "options": {
            "quick": setup.quick, "rounds": rounds, "seed": setup.seed, "keys": setup.num_keys, "dim": setup.dim,
            "warmup_s": setup.warmup_s,
        },
        "warnings": machine.warnings(about, rounds) + setup.warnings,
        "cases": [],
    }  # fmt: skip
    print(report.header(result))
    for case in cases:
        result["cases"].append(harness.run_case(case, rounds, setup.seed, setup.say))
        print(report.table(result["cases"][-1]), flush=True)
        result["load_at_end"] = machine.describe()["load"]
        if path is not None:
            publish(path, (json.dumps(result, indent=1) + "\n").encode())
    module.clean(setup)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ALONE:
        name = sys.argv.pop(1)
        importlib.import_module(ALONE[name]).main(prog_name=f"python -m bench {name}")
    main()
