"""Workload `tables`: a synthetic Engram checkpoint, served in place, verified and packed, beside the floor of hinted reads.

Names, types and row sizes are the real ones; the tables are smaller, so that pages of scales are shared by more rows of a call
than in the real ones. Keys are drawn evenly: no row is hotter than another.
"""

from __future__ import annotations

import json
import os
import time
from operator import truediv
from pathlib import Path
from statistics import median

import numpy as np

import ngramstore as ngs
from bench import pages
from bench.harness import Case
from bench.process import disk_bytes
from bench.sampler import OFTEN_S, Sampler
from bench.setup import Offer, Setup
from bench.workloads import tables_engramdb, tables_floor
from bench.workloads.tables_checkpoint import must_be_the_checkpoint_s, write_layer
from ngramstore.keys import EngramKeys

SUBJECTS = ("in_place", "checksums", "packed")
_VOCABULARY = 129_280
_COMPRESSED = 99_092
_CHECKED = 1024
"""Rows of a round whose bytes are compared with the checkpoint's before a prompt is timed."""


def cases(setup: Setup) -> list[Case]:
    """The cases that were asked for; writes the checkpoint and its stores first."""
    ours = {"prefill": _prefill_case, "decode": _decode_case, "memory": _memory_case, "import": _import_case}
    offers = {name: Offer(make, SUBJECTS, ("--keys",)) for name, make in ours.items()}
    return setup.cases(offers | tables_engramdb.offers())


def _subjects(setup: Setup, **arguments: int) -> dict[str, dict]:
    """Subject -> arguments of a worker; the checkpoint and its stores are written."""
    base = setup.num_keys or setup.pick(395_000, 20_000)  # 5 GB
    folder = setup.root / f"tables-{base}"
    _make(folder, base, setup)
    return {name: {"subject": name, "folder": str(folder), **arguments} for name in setup.asked(SUBJECTS)}


def _prefill_case(setup: Setup) -> Case:
    return Case(
        name="prefill",
        title="cold: 48 rows of each of 2,048 tokens in one call, after the files left the page cache",
        function="bench.workloads.tables:prefill",
        subjects=_subjects(setup, drops=setup.pick(6, 2)),
        baseline="in_place",
        headline=("ms", "floor_ms", "over_floor", "disk_bytes_per_row"),
        notes=(
            "floor_ms: each page of the call hinted, then read once, in file order, those of the sidecar of checksums too;",
            "it is measured in turn with the store's call, and over_floor is the median ratio of neighbours",
            "every drop is checked with mincore (fact page_cache_share_after_drop); a host may still cache",
        ),
    )


def _decode_case(setup: Setup) -> Case:
    return Case(
        name="decode",
        title="cached: 48 rows of one token a call, keys included in keys_us only",
        function="bench.workloads.tables:decode",
        subjects=_subjects(setup),
        baseline="in_place",
        headline=("us", "keys_us"),
    )


def _memory_case(setup: Setup) -> Case:
    return Case(
        name="memory",
        title="anonymous memory beyond the cache budget of 256 MiB, over prompts of 2,048 tokens and single tokens",
        function="bench.workloads.tables:memory",
        subjects=_subjects(setup, prompts=setup.pick(24, 3)),
        baseline="in_place",
        headline=("over_budget_mib", "grown_mib"),
        rounds=2,
    )


def _import_case(setup: Setup) -> Case:
    return Case(
        name="import",
        title="import of the checkpoint, its files out of the page cache",
        function="bench.workloads.tables:import_time",
        subjects=_subjects(setup),
        baseline="in_place",
        headline=("seconds",),
        rounds=2,
    )


def clean(setup: Setup) -> None:
    """Checkpoint and stores stay for the next run."""


def prefill(*, subject: str, folder: str, drops: int, seed: int) -> dict:
    """A cold call, and the floor under it, in turn in one process: milliseconds, bytes that the disk gave for each
    distinct row, and the ratios of neighbours, as medians over the drops.

    The floor hints, then reads, each page of the call once, in file order.
    """
    root, keys = Path(folder), _keys(Path(folder))
    tokens = np.random.default_rng(seed).integers(0, _VOCABULARY, (1, 2048))
    numbers = keys.rows(tokens)
    distinct = np.unique(numbers)
    with ngs.open(root / subject, trust_external=True, cache_bytes=0) as store:
        some = np.random.default_rng(seed).choice(distinct, min(_CHECKED, len(distinct)), replace=False)
        checked = must_be_the_checkpoint_s(store, root / "checkpoint", some)
        out = np.empty((*numbers.shape, store.dim), np.float32)
        files = [*(root / "checkpoint").glob("*.safetensors"), *store.files]
    places = tables_floor.places(root, subject, distinct)
    read_floor, row_files = tables_floor.page_reader(places), sorted({path for path, _ in places})
    ms: dict[str, list[float]] = {"floor": [], "store": []}
    read: dict[str, list[float]] = {"floor": [], "store": []}
    residents = []
    for turn in range(drops):
        for what in ("floor", "store") if turn % 2 else ("store", "floor"):
            with ngs.open(root / subject, trust_external=True, cache_bytes=256 << 20) as store:
                store.rows(keys.rows(tokens[:, :2]), out=out[:, :2])  # compiles
                pages.drop(files)
                residents.append(pages.resident_share(row_files))
                before, start = disk_bytes(), time.perf_counter()
                if what == "floor":
                    read_floor()
                else:
                    store.rows(numbers, out=out)
                ms[what].append(1e3 * (time.perf_counter() - start))
                read[what].append((disk_bytes() - before) / len(distinct))
    return {
        "metrics": {
            "ms": median(ms["store"]),
            "floor_ms": median(ms["floor"]),
            "over_floor": median(ours / floor for ours, floor in zip(ms["store"], ms["floor"], strict=True)),
            "disk_bytes_per_row": median(read["store"]),
            **({"bytes_over_floor": median(map(truediv, read["store"], read["floor"]))} if all(read["floor"]) else {}),
        },
        "facts": {
            "rows": numbers.size,
            "distinct_rows": len(distinct),
            "pages": len(places),
            "rows_checked": checked,
            "ms_by_drop": ms,
            "page_cache_share_after_drop": max(residents),
            "warnings": [f"not cold: {max(residents):.1%} of the pages could not be dropped"] if max(residents) else [],
        },
    }


def decode(*, subject: str, folder: str, seed: int, calls: int = 2000) -> dict:
    """Microseconds of a call whose rows are all cached, and of making its keys."""
    keys = _keys(Path(folder))
    tokens = np.random.default_rng(seed).integers(0, _VOCABULARY, (1, 4))
    history, last = tokens[:, :3], tokens[:, 3:]
    numbers = keys.rows(last, history)
    with ngs.open(Path(folder) / subject, trust_external=True) as store:
        checked = must_be_the_checkpoint_s(store, Path(folder) / "checkpoint", numbers.reshape(-1))
        out = np.empty((*numbers.shape, store.dim), np.float32)
        store.rows(numbers, out=out)
        return {
            "metrics": {
                "us": _median_us(lambda: store.rows(numbers, out=out), calls),
                "keys_us": _median_us(lambda: keys.rows(last, history), calls),
            },
            "facts": {"rows": numbers.size, "hit_rate": store.stats()["hit_rate"], "rows_checked": checked},
        }


def memory(*, subject: str, folder: str, prompts: int, seed: int) -> dict:
    """MiB that anonymous memory grows by at most, from before the store is opened, its answers' array allocated already.

    What a call takes and gives back before it ends counts too. Rows are compared behind it, since that takes memory as well.
    """
    keys, budget = _keys(Path(folder)), 256 << 20
    rng = np.random.default_rng(seed)
    numbers = keys.rows(rng.integers(0, _VOCABULARY, (1, 2048)))
    with ngs.open(Path(folder) / subject, trust_external=True) as store:
        out = np.zeros((*numbers.shape, store.dim), np.float32)
        store.rows(numbers[:, :2], out=out[:, :2])  # compiles
    with Sampler(every_s=OFTEN_S) as sampler:
        store = ngs.open(Path(folder) / subject, trust_external=True, cache_bytes=budget)
        for _ in range(prompts):
            numbers = keys.rows(rng.integers(0, _VOCABULARY, (1, 2048)))
            store.rows(numbers, out=out)
            for i in range(64):
                store.rows(numbers[:, i : i + 1], out=out[:, :1])
    stats = store.stats()
    checked = must_be_the_checkpoint_s(store, Path(folder) / "checkpoint", numbers.reshape(-1)[:_CHECKED])
    store.close()
    grown = sampler.peak_anon_mib
    return {
        "metrics": {"over_budget_mib": grown - budget / 2**20, "grown_mib": grown},
        "facts": {"cache_bytes": stats["cache_bytes"], "rows_read": stats["rows_read"], "rows_checked": checked},
    }


def import_time(*, subject: str, folder: str, seed: int) -> dict:
    """Seconds of an import into a new directory, removed again."""
    import shutil

    root = Path(folder)
    files = list((root / "checkpoint").glob("*.safetensors"))
    pages.drop(files)
    out = root / f"import-{os.getpid()}"
    start = time.perf_counter()
    report = ngs.import_checkpoint(root / "checkpoint", out, **_CHOICES[subject])
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return {
        "metrics": {"seconds": seconds},
        "facts": {"checkpoint_bytes": sum(file.stat().st_size for file in files), "disk_bytes": report.disk_bytes},
    }


_CHOICES: dict[str, dict] = {
    "in_place": {},
    "checksums": {"checksums": True},
    "packed": {"pack": True, "compression": "none"},
}


def _keys(folder: Path) -> EngramKeys:
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    return EngramKeys.from_config(config, token_map=np.arange(_VOCABULARY) % _COMPRESSED)


def _make(folder: Path, base: int, setup: Setup) -> None:
    """The checkpoint, random codes and scales, and a store of each kind; what is there stays."""
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "config.json").exists():
        setup.say(f"checkpoint of about {base * 48 * 264 / 1e9:.1f} GB")
        checkpoint.mkdir(parents=True, exist_ok=True)
        config = {
            "engram_layer_ids": [1, 14],
            "engram_max_ngram_size": 4,
            "engram_vocab_size": base,
            "engram_n_heads": 8,
            "engram_head_dim": 256,
            "engram_pad_token_id": 2,
            "engram_compressed_vocab_size": _COMPRESSED,
        }
        for layer, table in zip((1, 14), EngramKeys.from_config(config).tables, strict=True):
            write_layer(checkpoint / f"model-{layer}.safetensors", layer, table.num_rows, setup.seed)
        (checkpoint / "config.json").write_text(json.dumps(config))
    for name, choice in _CHOICES.items():
        if not (folder / name / "MANIFEST").exists():
            setup.say(f"store: {name}")
            ngs.import_checkpoint(checkpoint, folder / name, restart=(folder / name).exists(), **choice)


def _median_us(call, calls: int) -> float:
    times = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter()
        call()
        times[i] = time.perf_counter() - start
    return float(np.median(times) * 1e6)
