"""Workload `paper`: the tables of SCONE's paper (bench/paper.json) measured here: space, and latency against batch size.

Rows have 2,048 values of 16 bits as theirs do. The n-grams are those of real text, K = 5; every token asked for ends a stored
n-gram, so every one costs its probes and a row. Theirs end on the GPU, ours in the host's memory.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench import data, text
from bench.harness import Case
from bench.setup import SIZES, Offer, Setup

DIM = 2048
BATCHES = (1, 2, 4, 8, 16)
FGRAMS = (10_000_000, 100_000_000, 1_000_000_000)
RAM = ("ngramstore", "ngramstore_resident", "dict", "memmap_numba", "lmdb")
DISK = ("ngramstore", "lmdb", "memmap")
SPACE = (
    ("ngramstore", "f16"),
    ("ngramstore_zstd", "f16"),
    ("lmdb", "f16"),
    ("ngramstore", "int8"),
    ("ngramstore_zstd", "int8"),
)


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the source data and the files of the subjects first."""
    offers = {
        "space": Offer(_space, tuple(dict.fromkeys(subject for subject, _ in SPACE)), SIZES),
        "latency_ram": Offer(_latency_ram, RAM, SIZES),
        "latency_disk": Offer(_latency_disk, DISK, SIZES),
    }
    return setup.cases(offers)


def clean(setup: Setup) -> None:
    """Remove what only a run needs; sources and built files stay for the next one."""
    shutil.rmtree(setup.scratch, ignore_errors=True)


def _text_source(setup: Setup) -> Path:
    num = setup.num_keys or setup.pick(1_000_000, 10_000)
    return text.prepare(setup.root, num, setup.dim or DIM, setup.seed, setup.pick(None, 60), "python", "f16")


def _space(setup: Setup) -> Case:
    num, dim = setup.num_keys or setup.pick(1_000_000, 10_000), setup.dim or DIM
    subjects = {}
    available = setup.available({subject for subject, _ in SPACE})
    for subject, codec in SPACE:
        if subject in available:
            source = data.prepare(setup.root, num, dim, setup.seed, codec)
            arguments = {"subject": subject, "source": str(source), "root": str(setup.scratch), "fgrams": list(FGRAMS)}
            subjects[f"{subject} {codec}"] = arguments
    return Case(
        name="space",
        title=f"bytes on disk a key, {num:,} 3-grams, rows of {dim:,} values, and what `sizes` says of them beforehand",
        function="bench.workloads.paper_cases:space",
        subjects=subjects,
        baseline="lmdb f16",
        headline=("bytes_per_key", "predicted_bytes_per_key", "error_percent"),
        notes=(
            "error_percent: how far `ngramstore sizes` is off for as many keys; it does not foresee compression",
            "facts: gigabytes for 10M, 100M and 1B f-grams, by `sizes` for us, in proportion for LMDB",
        ),
        rounds=1,
    )


def _latency_ram(setup: Setup) -> Case:
    source = _text_source(setup)
    arguments = {
        "source": str(source),
        "batch_sizes": list(BATCHES),
        "calls": setup.pick(20_000, 300),
        "warmup_s": setup.warmup_s,
    }
    return Case(
        name="latency_ram",
        title="latency of a batch of tokens, K = 5, up to 4 probes a token, rows in memory",
        function="bench.workloads.paper_cases:latency_ram",
        subjects=setup.subjects(RAM, source, arguments),
        baseline="dict",
        headline=(*(f"us@{batch}" for batch in BATCHES), "p99_us@1", "p99_us@16"),
        notes=(
            _about(source),
            "dict: SCONE's store in memory; ngramstore: the row cache holds every row; lmdb, memmap: the page cache does",
            "peers get the ready-made IDs of all four suffixes, ngramstore the tokens; it ends in host memory",
        ),
    )


def _latency_disk(setup: Setup) -> Case:
    source = _text_source(setup)
    arguments = {"source": str(source), "batch_sizes": list(BATCHES), "calls": setup.pick(100, 8)}
    return Case(
        name="latency_disk",
        title="latency of a batch of tokens, K = 5, up to 4 probes a token, rows dropped from memory before each call",
        function="bench.workloads.paper_cases:latency_disk",
        subjects=setup.subjects(DISK, source, arguments),
        baseline="lmdb",
        headline=(*(f"us@{batch}" for batch in BATCHES), "p99_us@1", "p99_us@16"),
        notes=(
            _about(source),
            "every drop is checked with mincore; ngramstore and memmap keep their index in memory, LMDB's tree lies among its rows",
            "ngramstore checks a checksum of every row; it ends in host memory",
        ),
    )


def _about(source: Path) -> str:
    origin = data.load(source)
    return f"{origin.num_keys:,} n-grams of Python sources; rows of {origin.dim:,} 16-bit values come as float32"
