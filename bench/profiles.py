"""`python -m bench profiles`: where the time of building, looking up, mining and training goes, by function.

Each case runs in a process of its own, compiled and warmed up before, under the sampler (bench/sampler.py): time goes to the
innermost function of the product that is on the main thread's stack, a compiled kernel to the Python function that calls it.
With --only, what the JSON says of other cases stays; each case says when and of which commit it was measured.

Shapes: M rows of a call, D row width, K longest n-gram.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

import ngramstore
from bench import machine, pages
from bench.harness import WorkerFailed, spawn
from bench.sampler import Sampler
from bench.workloads import scale_keys as keys
from ngramstore.files import publish

if TYPE_CHECKING:
    from ngramstore.mine import TokenShards

RESULT = Path(__file__).parent / "results" / "profiles.json"
PAGE = Path(__file__).parent.parent / "docs" / "profiles.md"
BEGIN, END = "<!-- profiles -->", "<!-- end -->"
DIM = 1024
_CALL_ROWS = 4096
_LARGEST_SHOWN = 8
_VOCABULARY = 1024
_STEPS = 36
Step = Callable[[], object]
"""What is watched. A text that it returns is printed with the profile."""


@click.command()
@click.option("--rows", "num_rows", default=200_000, show_default=True, help="Rows of the store, int8, D = 1,024.")
@click.option("--seconds", default=8.0, show_default=True, help="How long each case that repeats is watched.")
@click.option("--only", "only", multiple=True, help="A case to run; repeat for more (default: all).")
@click.option("--page-only", is_flag=True, help="Write the tables of docs/profiles.md again from the JSON.")
@click.option("--json", "path", default=RESULT, type=click.Path(dir_okay=False, path_type=Path), show_default=False)
def main(num_rows: int, seconds: float, only: tuple[str, ...], page_only: bool, path: Path) -> None:
    """Profile every case; JSON in bench/results, tables in docs/profiles.md."""
    if not page_only:
        if unknown := set(only) - set(CASES):
            raise click.UsageError(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
        about = machine.describe()
        kept = json.loads(path.read_text())["cases_by_name"] if only and path.exists() else {}
        result = {
            "workload": "profiles",
            "machine": about,
            "warnings": machine.warnings(about, 5),
            "cases_by_name": kept,
        }
        for name in only or CASES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                found = spawn("bench.profiles:profile", {"case": name, "num_rows": num_rows, "seconds": seconds}, {})
            except WorkerFailed as error:
                raise click.ClickException(f"{name}: {error}") from error
            measured = machine.describe()
            result["cases_by_name"][name] = {
                "measured": {what: measured[what] for what in ("time", "commit", "load")}, **found["facts"]
            }  # fmt: skip
        result["cases_by_name"] = {
            name: result["cases_by_name"][name] for name in CASES if name in result["cases_by_name"]
        }
        publish(path, (json.dumps(result, indent=1) + "\n").encode())
        print(text(result))
    if path == RESULT:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(before + section(json.loads(path.read_text())) + rest.split(END)[1])


def profile(*, case: str, num_rows: int, seconds: float) -> dict:
    """One case. The worker function."""
    with tempfile.TemporaryDirectory(prefix="ngramstore-bench-") as folder:
        step, repeats = CASES[case](Path(folder), num_rows)
        steps, said = 0, None
        with Sampler() as sampler:
            started, cpu = time.perf_counter(), time.process_time()
            while steps == 0 or (repeats and time.perf_counter() - started < seconds):
                said = step()
                steps += 1
            wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    facts = {"steps": steps, "wall_s": wall, "cpu_s": cpu, "functions": sampler.functions, "stages": sampler.stages}
    facts["said"] = said if isinstance(said, str) else ""
    return {"metrics": {"wall_s": wall}, "facts": facts}


def _build(folder: Path, num_rows: int) -> tuple[Step, bool]:
    _store(folder / "first", 2 * _CALL_ROWS)
    return lambda: _store(folder / "store", num_rows), False


def _warm(folder: Path, num_rows: int, *, batch: int = 1024) -> tuple[Step, bool]:
    num_rows = min(num_rows, 50_000)
    _store(folder / "store", num_rows)
    store = ngramstore.open(folder / "store")
    rng = np.random.default_rng(0)
    batches = keys.ngrams(keys.draw("zipf", num_rows, 400 * batch, rng)).reshape(400, batch, keys.ORDER)
    out_BD = np.empty((batch, DIM), np.float32)
    for at in range(0, num_rows, 1024):
        store.get(keys.ngrams(np.arange(at, min(at + 1024, num_rows))))

    def step() -> None:
        for tokens_BK in batches:
            store.get(tokens_BK, out=out_BD)

    step()
    return step, True


def _one(folder: Path, num_rows: int) -> tuple[Step, bool]:
    return _warm(folder, num_rows, batch=1)


def _cold(folder: Path, num_rows: int) -> tuple[Step, bool]:
    _store(folder / "store", num_rows)
    store = ngramstore.open(folder / "store", cache_bytes=0)
    rows = [path for path in store.files if path.suffix == ".rows"]
    rng = np.random.default_rng(0)
    out_BD = np.empty((1024, DIM), np.float32)

    def step() -> None:
        tokens_BK = keys.ngrams(keys.draw("uniform", num_rows, 1024, rng))
        pages.drop(rows)
        store.get(tokens_BK, out=out_BD)

    step()
    return step, True


def _mining(folder: Path, _num_rows: int) -> tuple[Step, bool]:
    from ngramstore.mine import mine_ngrams

    corpus = _corpus(folder, 12_000_000)

    def step() -> str:
        cpu = time.process_time()
        mine_ngrams(corpus, work=folder / "work", max_n=5, size=100_000, held_out=0.05)
        cpu = time.process_time() - cpu
        return f"{corpus.num_tokens:,} tokens, {corpus.num_tokens / cpu / 1e6:.1f} million a second of CPU in the last run."

    step()
    return step, True


def _training(folder: Path, _num_rows: int) -> tuple[Step, bool]:
    import torch

    from ngramstore.mine import mine_ngrams
    from ngramstore_torch.data.corpus import tag_corpus
    from ngramstore_torch.experiment.presets import DEMO
    from ngramstore_torch.model.scone import SconeModel
    from ngramstore_torch.training.train import train_model

    corpus = _corpus(folder, 6_000_000)
    vocabulary = mine_ngrams(
        corpus, work=folder / "work", max_n=DEMO.max_n, size=DEMO.num_fgrams, held_out=DEMO.held_out
    )
    vocabulary.tag(np.arange(9), np.zeros(1, np.int64))  # compiles
    started = time.process_time()
    train, _ = tag_corpus(corpus, vocabulary, held_out=DEMO.held_out)
    tag_s = (time.process_time() - started) / corpus.num_tokens
    torch.set_num_threads(1)  # threads that wait for each other burn processor time on a busy machine
    torch.manual_seed(0)
    model = SconeModel(DEMO.decoder(_VOCABULARY), DEMO.fgram())
    config = replace(DEMO.train, tokens=_STEPS * DEMO.train.tokens_per_step)
    train_model(model, train, replace(config, tokens=1))

    def step() -> str:
        cpu = time.process_time()
        result = train_model(model, train, config)
        cpu = time.process_time() - cpu
        matching, batches = tag_s * result.tokens, result.batch_seconds
        return (
            f"{result.tokens:,} tokens, {1e3 * cpu / _STEPS:.0f} ms of CPU a step. Finding f-grams ahead of time takes "
            f"{1e9 * tag_s:.0f} ns a token, {matching / (cpu + matching):.2%} of the whole; batches, with the distinct f-grams of each, "
            f"{1e3 * batches / _STEPS:.2f} ms a step in a thread, {batches / cpu:.1%}."
        )

    return step, False


def _corpus(folder: Path, max_bytes: int) -> TokenShards:
    """Python's standard library, tokenised."""
    from ngramstore.mine import open_corpus, python_sources

    tokenizer = f"train:{_VOCABULARY}"
    return open_corpus(python_sources(max_bytes), tokenizer=tokenizer, cache=folder / "cache", errors="replace")


CASES: dict[str, Callable[[Path, int], tuple[Step, bool]]] = {
    "build": _build,
    "warm look-up": _warm,
    "batch 1": _one,
    "cold look-up": _cold,
    "mining": _mining,
    "training": _training,
}
"""Case -> what to watch (after warming up), and whether to repeat it."""

WHAT = {
    "build": "rows in random order of their IDs, `memory_bytes` by default; `(caller)` makes the rows up",
    "warm look-up": "1,024 keys a call, Zipf, 20 % absent, every row in the cache",
    "batch 1": "one key a call, as above",
    "cold look-up": "1,024 keys a call, uniform, no cache; `(caller)` drops the pages",
    "mining": "12 MB of Python in token shards, 100,000 f-grams of up to 5 tokens, one thread",
    "training": f"{_STEPS} steps of SCONE, decoder and f-gram model of the demo; one thread; backward passes count to `train_step`",
}


def section(result: dict) -> str:
    """What stands between the marks of docs/profiles.md, with them."""
    about = result["machine"]
    head = f"{about['cpu']}, {about['cores']} cores."
    return f"{BEGIN}\n{head}\n\n{text(result)}\n{END}"


def text(result: dict) -> str:
    """A list for each case: its largest functions in percent of the time watched."""
    parts = []
    for name, found in result["cases_by_name"].items():
        total = sum(found["functions"].values())
        parts.append(
            f"**{name}**: {WHAT[name]}. {found['wall_s']:.1f} s, {found['cpu_s']:.1f} s of CPU. {found['said']}\n"
        )
        measured = found["measured"]
        parts.append(f"{measured['time']}, commit {measured['commit']}, load {measured['load'][0]}.\n")
        parts += ["| function | % |\n|---|---:|"]
        shown = list(found["functions"].items())[:_LARGEST_SHOWN]
        parts += [f"| `{function}` | {100 * seconds / total:.0f} |" for function, seconds in shown]
        parts.append("")
    return "\n".join(parts)


def _store(path: Path, num_rows: int) -> None:
    with ngramstore.build(path, dim=DIM, max_n=keys.ORDER, codec="int8") as build:
        for at in range(0, num_rows, _CALL_ROWS):
            numbers_M = np.arange(at, min(at + _CALL_ROWS, num_rows))
            build.add(keys.ngrams(numbers_M), keys.rows(numbers_M, DIM))


if __name__ == "__main__":
    main()
