"""Workload `decode`: what a store in front of a decoder costs its steps and prompts, and what a cache is worth on real text."""

from __future__ import annotations

from pathlib import Path

from bench import traces
from bench.harness import Case
from bench.setup import Setup
from bench.workloads.decode_model import SIZES

STEP_MODES = ("cached", "tenth", "cold", "cold_candidates")
STEP_NOTE = (
    "one thread; `longer`: median step with the store / with nn.Embedding, the two timed in turn in one process; "
    "targets 1.02 cached and 1.05 tenth at batch 1"
)


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the traces and their stores first."""
    makers = {}
    for size in setup.pick(tuple(SIZES), ("10M",)):
        for batch in setup.pick((1, 8, 64), (1,)):
            makers[f"step_{size}_b{batch}"] = lambda s, size=size, batch=batch: _step(s, size, batch)
    makers |= {"prefill": _prefill, "overhead": _overhead, "hit_rate": _hit_rate, "sharing": _sharing}
    return [make(setup) for make in setup.choose(makers).values()]


def clean(setup: Setup) -> None:
    """Traces stay for the next run."""


def _trace(setup: Setup, dim: int, name: str = "code") -> Path:
    setup.root.mkdir(parents=True, exist_ok=True)
    setup.say(f"trace {name}, rows of {dim}")
    num = setup.num_keys or setup.pick(200_000, 20_000)
    return traces.prepare(setup.root, name, num, dim, setup.seed, setup.pick(None, 60))


def _step(setup: Setup, size: str, batch: int) -> Case:
    arguments = {
        "size": size,
        "trace": str(_trace(setup, SIZES[size]["dim"])),
        "batch": batch,
        "steps": setup.pick({1: 400, 8: 200, 64: 60}[batch], 200),
        "threads": 1,
    }
    return Case(
        name=f"step_{size}_b{batch}",
        title=f"one-token steps of the {size} decoder, batch {batch}, behind 128 tokens",
        function="bench.workloads.decode_model:step",
        subjects={mode: {"mode": mode, **arguments} for mode in _chosen(setup, STEP_MODES)},
        baseline="cached",
        headline=("step_us", "plain_us", "longer", "longer_paired", "wait_p50_us", "wait_p99_us"),
        notes=(STEP_NOTE,),
    )


def _prefill(setup: Setup) -> Case:
    size = setup.pick("50M", "10M")
    arguments = {
        "size": size,
        "trace": str(_trace(setup, SIZES[size]["dim"])),
        "batch": setup.pick(8, 2),
        "length": setup.pick(1024, 256),
        "repeats": setup.pick(3, 2),
        "threads": 1,
    }
    return Case(
        name="prefill",
        title=f"prompts of {arguments['batch']} x {arguments['length']} tokens, {size} decoder",
        function="bench.workloads.decode_model:prefill",
        subjects={mode: {"mode": mode, **arguments} for mode in _chosen(setup, ("cached", "tenth"))},
        baseline="cached",
        headline=("lookup_ms", "decoder_ms", "share", "plain_embedding_ms"),
        notes=("`share`: look-up / decoder; target 0.05",),
    )


def _overhead(setup: Setup) -> Case:
    arguments = {"calls": setup.pick(8000, 3000), "threads": 1}
    dims = setup.pick((128, 512, 768), (512,))
    return Case(
        name="overhead",
        title="one call of NGramEmbedding, batch 1, one token, all rows cached",
        function="bench.workloads.decode_model:overhead",
        subjects={f"dim_{dim}": {"dim_trace": str(_trace(setup, dim)), **arguments} for dim in dims},
        baseline=f"dim_{dims[0]}",
        headline=("call_us", "call_found_us", "call_not_found_us", "fastest_tenth_us", "p99_us", "nn_embedding_us"),
        notes=("target: 30 us a call, everything included",),
    )


def _hit_rate(setup: Setup) -> Case:
    names = traces.available()
    if len(names) < 3:
        setup.warnings.append("traces english and mixed left out: NGRAMSTORE_DATA names no folder with English text")
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
    trace = str(_trace(setup, 512))
    counts = setup.pick((1, 2, 4), (1, 3))
    return Case(
        name="sharing",
        title="processes that serve the same text from one store, 8 MiB of row cache each",
        function="bench.workloads.decode_cache:sharing",
        subjects={f"{count}_processes": {"processes": count, "trace": trace} for count in counts},
        baseline=f"{counts[0]}_processes",
        headline=("store_pss_mib_all", "store_pss_mib_a_process", "private_growth_mib_a_process", "pss_mib_a_process"),
        notes=("rows are read through the page cache, once for all; the index is mapped, once for all",),
    )


def _chosen(setup: Setup, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not setup.only_subjects or name in setup.only_subjects]
