"""Workload `decode`: what a store in front of a decoder costs its steps and prompts, and what a cache is worth on real text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench import traces
from bench.harness import Case
from bench.setup import Offer, Setup
from bench.workloads.decode_model import SIZES

STEP_MODES = ("cached", "tenth", "cold", "candidates")
BATCHES = (1, 8, 64)
KEYS = ("--keys",)
"""What every case takes: n-grams of a trace. The widths of its rows are those of the decoders."""
STEP_NOTES = (
    "`longer`: median step with the store / with nn.Embedding, one thread, the two timed in turn; `added`: what the look-up",
    "takes more than nn.Embedding there, as a share of the plain step. Targets at batch 1: 1.02 cached, 1.05 with a tenth cached.",
    "cold: no row cache, no page of the rows in memory before any step; candidates: so too, 8 candidates a sequence fetched ahead",
)


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the traces and their stores first."""
    offers = {
        f"step_{size}": Offer(partial(_step, size=size), _batch_names(setup), KEYS)
        for size in setup.pick(tuple(SIZES), ("10M",))
    }
    others = {"prefill": _prefill, "overhead": _overhead, "hit_rate": _hit_rate, "sharing": _sharing}
    return setup.cases(offers | {name: Offer(make, takes=KEYS) for name, make in others.items()})


def clean(setup: Setup) -> None:
    """Traces stay for the next run."""


def _batch_names(setup: Setup) -> tuple[str, ...]:
    return tuple(f"batch_{batch}" for batch in setup.pick(BATCHES, BATCHES[:1]))


def _trace(setup: Setup, dim: int, name: str = "code") -> Path:
    setup.root.mkdir(parents=True, exist_ok=True)
    setup.say(f"trace {name}, rows of {dim}")
    num = setup.num_keys or setup.pick(200_000, 20_000)
    return traces.prepare(setup.root, name, num, dim, setup.seed, setup.pick(None, 60))


def _step(setup: Setup, size: str) -> Case:
    arguments = {
        "size": size,
        "trace": str(_trace(setup, SIZES[size]["dim"])),
        "seconds": setup.pick(2.5, 1.0),
        "threads": 1,
        "modes": list(STEP_MODES),
    }
    batches = setup.asked(_batch_names(setup))
    return Case(
        name=f"step_{size}",
        title=f"one-token steps of the {size} decoder behind 128 tokens",
        function="bench.workloads.decode_model:step",
        subjects={name: {"batch": int(name.removeprefix("batch_")), **arguments} for name in batches},
        baseline="nn.Embedding",
        headline=(
            "plain_us_cached",
            *(f"longer_{mode}" for mode in STEP_MODES),
            *(f"added_{mode}" for mode in STEP_MODES),
            "wait_p50_us_cached",
            "wait_p99_us_cached",
            "wait_p50_us_cold",
            "wait_p50_us_candidates",
        ),
        notes=STEP_NOTES,
        rounds=3,
    )


def _prefill(setup: Setup) -> Case:
    size = setup.pick("50M", "10M")
    arguments = {
        "size": size,
        "trace": str(_trace(setup, SIZES[size]["dim"])),
        "batch": setup.pick(8, 2),
        "length": setup.pick(1024, 256),
        "turns": 2,
        "threads": 2,
    }
    shape = f"{arguments['batch']} x {arguments['length']}"
    return Case(
        name="prefill",
        title=f"prompts of {shape} tokens, {size} decoder on two threads",
        function="bench.workloads.decode_calls:prefill",
        subjects={shape.replace(" ", ""): arguments},
        baseline="the decoder's pass",
        headline=(
            "share_cached",
            "share_tenth",
            "lookup_ms_cached",
            "lookup_ms_tenth",
            "decoder_ms",
            "plain_embedding_ms",
        ),
        notes=("`share`: look-up / decoder; target 0.05",),
        rounds=2,
    )


def _overhead(setup: Setup) -> Case:
    arguments = {"calls": setup.pick(8000, 3000), "threads": 1}
    dims = setup.pick((128, 512, 768), (512,))
    return Case(
        name="overhead",
        title="one call of NGramEmbedding, batch 1, one token, all rows cached",
        function="bench.workloads.decode_calls:overhead",
        subjects={f"dim_{dim}": {"dim_trace": str(_trace(setup, dim)), **arguments} for dim in dims},
        baseline=f"dim_{dims[0]}",
        headline=("call_us", "call_found_us", "call_not_found_us", "fastest_tenth_us", "p99_us", "nn_embedding_us"),
        notes=("target: 30 us a call, everything included",),
        rounds=3,
    )


def _hit_rate(setup: Setup) -> Case:
    names = traces.available()
    if len(names) < 3:
        setup.warn("traces english and mixed left out: NGRAMSTORE_DATA names no folder with English text")
    return Case(
        name="hit_rate",
        title="row requests of held-out text that miss a cache of so much of the rows",
        function="bench.workloads.decode_cache:hit_rates",
        subjects={
            name: {"trace": str(_trace(setup, 16, name)), "positions": setup.pick(1 << 20, 1 << 16)} for name in names
        },
        baseline=names[0],
        headline=(
            "miss_lru_1%",
            "miss_belady_1%",
            "miss_lru_10%",
            "miss_belady_10%",
            "miss_lru_30%",
            "miss_belady_30%",
        ),
        notes=("the hit rates by length of the n-gram are in the JSON", "one round: nothing in it varies"),
        rounds=1,
    )


def _sharing(setup: Setup) -> Case:
    arguments = {"trace": str(_trace(setup, 512)), "positions": setup.pick(1 << 18, 1 << 14)}
    subjects = {
        f"{processes}_processes_of_{threads}": {"processes": processes, "threads": threads, **arguments}
        for processes, threads in setup.pick(((1, 1), (2, 1), (4, 1), (1, 4)), ((1, 1), (3, 1), (1, 4)))
    }
    return Case(
        name="sharing",
        title="processes, of so many threads each, that serve the same text from one store, 8 MiB of row cache a process",
        function="bench.workloads.decode_cache:sharing",
        subjects=subjects,
        baseline="1_processes_of_1",
        headline=(
            "rows_in_page_cache_mib",
            "disk_read_mib_all",
            "index_pss_mib_all",
            "private_growth_mib_a_process",
            "memory_mib_all",
        ),
        notes=(
            "the rows' pages are dropped first, then all read: the page cache holds them once, and the disk gave them once",
            "memory_mib_all = rows in the page cache + maps of the index + processes x private growth (row cache, buffers)",
        ),
        rounds=2,
    )
