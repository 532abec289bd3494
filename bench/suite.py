"""`python -m bench all`: every measurement behind docs/results.md, one after the other, each in a process of its own.

Left out is what trains for hours: `python -m bench.quality` and `python -m bench codecs`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from tqdm import tqdm

from bench import machine
from bench.saved import RESULTS
from bench.setup import PREFIX
from ngramstore.errors import DiskFull
from ngramstore.files import publish, require_space


@dataclass(frozen=True)
class Job:
    """One JSON file: its name, the command that writes it, about how many minutes that takes on two cores."""

    name: str
    command: tuple[str, ...]
    minutes: float
    group: str = ""
    """Jobs that read the same sources and stores, and so follow each other; "": this one alone."""

    def arguments(self, folder: Path, fresh: str = "FRESH") -> list[str]:
        """Of the Python interpreter; in a command `{dir}` is the folder that its group shares, `{fresh}` one of this
        run alone."""
        command = [part.format(dir=self.shared(folder), fresh=fresh) for part in self.command]
        return command if self.prints else [*command, "--json", str(self.file(folder, "json"))]

    def shared(self, folder: Path) -> Path:
        """The folder of its group's sources and stores, which is removed behind it: of a name that is nobody else's."""
        return folder / f"{PREFIX}{self.group or self.name}"

    def file(self, folder: Path, suffix: str) -> Path:
        """Its JSON before that goes where the results are, or its log."""
        return folder / f"{PREFIX}{self.name}.{suffix}"

    @property
    def prints(self) -> bool:
        """The command prints its JSON and saves none."""
        return "--json" in self.command


_NEEDED_BYTES = 40 << 30
"""Of the largest group: its sources, and what each peer has built from them."""
_SHORT = ("--rounds", "3", "--warmup", "1")


def _cases(
    name: str, workload: str, *cases: str, minutes: float, options: tuple[str, ...] = _SHORT, group: str = ""
) -> Job:
    only = tuple(part for case in cases for part in ("--only", case))
    return Job(name, ("-m", "bench", workload, "--dir", "{dir}", *options, *only), minutes, group)


JOBS = (
    _cases("scale", "scale", minutes=16),
    _cases("decode_10M", "decode", "step_10M", "sharing", minutes=4, group="decode"),
    _cases("decode", "decode", "step_50M", "step_120M", "overhead", "hit_rate", minutes=9, group="decode"),
    _cases("decode_prefill", "decode", "prefill", minutes=4, group="decode"),
    _cases("journal", "journal", minutes=2),
    _cases("store_open_large", "store", "open_large", minutes=5, options=("--large", *_SHORT)),
    _cases("store_warm_f16", "store", "warm_f16", minutes=12, options=("--rounds", "2", "--warmup", "1")),
    _cases("tables", "tables", minutes=6),
    _cases("paper", "paper", "space", "latency_ram", minutes=6, options=("--rounds", "1", "--warmup", "1"), group="paper"),
    _cases("paper_disk", "paper", "latency_disk", minutes=4, group="paper"),
    _cases("store", "store", "disk", "index", "open", "build", minutes=10, group="store"),
    _cases("store_cold", "store", "cold_rows", "cold_all", minutes=8, group="store"),
    _cases("store_traces", "store", "traces", minutes=10, options=("--rounds", "1", "--warmup", "1"), group="store"),
    _cases("store_traces_small", "store", "traces_small", minutes=9, options=("--rounds", "1", "--warmup", "1"), group="store"),
    _cases("store_match", "store", "match", "parts", "small_cache", "memory", minutes=6, group="store"),
    _cases("store_threads", "store", "threads", minutes=2, options=("--rounds", "5", "--warmup", "1"), group="store"),
    _cases("store_warm_floors", "store", "warm_floors", minutes=4, options=("--rounds", "5", "--warmup", "1"), group="store"),
    _cases("store_warm", "store", "warm", minutes=16, group="store"),
    Job("mine", ("-m", "bench.mine"), 2),
    Job("export", ("-m", "bench.export", "--dir", "{dir}"), 4),
    Job("writing", ("-m", "bench.writing", "--dir", "{dir}"), 2),
    Job("codec_error", ("-m", "bench.codec_error"), 1),
    Job("profiles", ("-m", "bench", "profiles"), 2),
    Job("demo_quick", ("-m", "ngramstore", "demo", "--quick", "--quiet", "--json", "--out", "{fresh}"), 1),
    Job("demo", ("-m", "ngramstore", "demo", "--quiet", "--json", "--out", "{fresh}"), 4),
    _cases("store_quick", "store", minutes=2, options=("--quick",)),
)  # fmt: skip
"""In the order in which they run, groups together. The demo is last but one, since it heats two cores."""


@click.command()
@click.option(
    "--dir",
    "folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Sources and stores; about 40 GB at a time.",
)
@click.option(
    "--results",
    default=RESULTS,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the JSON files go.",
)
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice([job.name for job in JOBS]),
    help="A file to write; repeat for more (default: all).",
)
@click.option("--keep", is_flag=True, help="Keep sources and stores that no later job reads: about 80 GB.")
@click.option("--resume", is_flag=True, help="Leave out the files that this commit has written already.")
@click.option("--plan", is_flag=True, help="Say what would run, and about how long.")
def main(folder: Path, results: Path, names: tuple[str, ...], keep: bool, resume: bool, plan: bool) -> None:
    """Run every measurement behind docs/results.md one after the other, some two and a half hours on two cores.

    Leave the machine alone meanwhile. What was running when the command was stopped is lost, the rest is kept: --resume goes
    on. Sources and stores go with the last job that reads them. Then `python -m bench.page` makes the pages.
    """
    commit = machine.describe()["commit"]
    jobs = [job for job in JOBS if (not names or job.name in names) and not (resume and _is_done(job, results, commit))]
    if plan:
        for job in jobs:
            click.echo(f"{job.minutes:5.0f} min  {job.name}.json: python {' '.join(job.arguments(folder))}")
        click.echo(f"{sum(job.minutes for job in jobs):5.0f} min in all")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if jobs and not names:  # what a disk that is full in the middle costs is an hour
        try:
            require_space(
                folder,
                max(0, _NEEDED_BYTES * (2 if keep else 1) - _held(jobs[0].shared(folder))),
                "running all benchmarks",
            )
        except DiskFull as error:
            raise click.ClickException(f"{error.message}; --only runs some of them") from None
    results.mkdir(parents=True, exist_ok=True)
    failed = list(_run_all(jobs, folder, results, keep=keep))
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}; the others are kept")


def _run_all(jobs: list[Job], folder: Path, results: Path, *, keep: bool) -> Iterator[str]:
    """Names of those that fail; unless `keep`, a group's folder goes with its last job."""
    with tqdm(total=sum(job.minutes for job in jobs), unit="min", bar_format="{l_bar}{bar}| {elapsed}") as bar:
        for job, after in zip_longest(jobs, jobs[1:]):
            bar.set_description(job.name)
            start = time.perf_counter()
            if not _run(job, folder, results):
                yield job.name
            shared = job.shared(folder)
            minutes = (time.perf_counter() - start) / 60
            bar.write(f"{job.name}: {minutes:.1f} min, {_held(shared) / 2**30:.1f} GiB kept")
            if not keep and (after is None or after.shared(folder) != shared):
                shutil.rmtree(shared, ignore_errors=True)
            bar.update(job.minutes)


def _held(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _run(job: Job, folder: Path, results: Path) -> bool:
    """Run one job, its log in the folder; whether it ended well. Only a whole result goes where the results are."""
    about = machine.describe()
    written = job.file(folder, "json")
    job.shared(folder).mkdir(exist_ok=True)
    with job.file(folder, "log").open("w") as log, ExitStack() as stack:
        printed = stack.enter_context(written.open("w")) if job.prints else log
        fresh = stack.enter_context(TemporaryDirectory(dir=folder))
        done = subprocess.run([sys.executable, *job.arguments(folder, fresh)], stdout=printed, stderr=log, check=False)
    if done.returncode == 0:
        result = {"machine": about, **json.loads(written.read_text())}
        publish(results / f"{job.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return done.returncode == 0


def _is_done(job: Job, results: Path, commit: str | None) -> bool:
    try:
        made = json.loads((results / f"{job.name}.json").read_text()).get("machine", {}).get("commit")
    except (OSError, json.JSONDecodeError):
        return False
    return commit is not None and made == commit and not commit.endswith("+")
