"""One store of many small rows: build, open, changes, verification. Worker functions of workload `scale`.

Shapes: M keys of a call, D row width.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

import ngramstore
from bench import check, pages
from bench.sampler import Sampler, folder_bytes
from bench.workloads import scale_keys as keys

CALL_ROWS = 1 << 16
_PUT_ROWS = 1 << 14
_CHECKED = 4096


def build(*, path: str, num_keys: int, dim: int, memory_bytes: int, seed: int) -> dict:
    """Keys in the order of their numbers, which is random order for the IDs; the kernels are compiled before."""
    del seed  # the store is the same in every round
    shutil.rmtree(path, ignore_errors=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _compile(dim)
    generate_s = add_s = 0.0
    cpu = time.process_time()
    started = time.perf_counter()
    with Sampler(Path(path)) as sampler, ngramstore.build(
        path, dim=dim, max_n=keys.ORDER, codec="int8", memory_bytes=memory_bytes
    ) as builder:  # fmt: skip
        for first in range(0, num_keys, CALL_ROWS):
            before = time.perf_counter()
            numbers_M = np.arange(first, min(first + CALL_ROWS, num_keys))
            tokens_MK, rows_MD = keys.ngrams(numbers_M), keys.rows(numbers_M, dim)
            between = time.perf_counter()
            builder.add(tokens_MK, rows_MD)
            generate_s += between - before
            add_s += time.perf_counter() - between
        finishing = time.perf_counter()
    ended = time.perf_counter()
    sizes = dict.fromkeys(("index", "rows", "tokens"), 0)
    for file in Path(path).glob("base-*"):
        sizes[file.suffix[1:]] += file.stat().st_size
    return {
        "metrics": {
            "seconds": ended - started - generate_s,
            "us_per_row": 1e6 * (ended - started - generate_s) / num_keys,
            "add_s": add_s,
            "finish_s": ended - finishing,
            "generate_s": generate_s,
            "cpu_s": time.process_time() - cpu,
            "anon_mib": sampler.peak_anon_mib,
            "bytes_per_key": folder_bytes(Path(path)) / num_keys,
            "index_bytes_per_key": sizes["index"] / num_keys,
        },
        "facts": {
            "num_keys": num_keys,
            "dim": dim,
            "memory_mib": memory_bytes / 2**20,
            "peak_disk_bytes": sampler.peak_disk_bytes,
            "bytes": sizes,
            "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "builder": builder.stats(),
            "seconds_by_function": sampler.functions,
        },
    }


def opening(*, path: str, num_keys: int, dim: int, seed: int) -> dict:
    """Open and first look-up of this process, files in the page cache as far as they fit; the same store is checked
    behind them."""
    _compile(dim)
    files = sorted(Path(path).glob("base-*"))
    pages.warm(files)
    rng = np.random.default_rng(seed)
    tokens_MK = keys.ngrams(numbers_M := keys.draw("uniform", num_keys, 1, rng))
    started = time.perf_counter()
    store = ngramstore.open(path)
    opened = time.perf_counter()
    answer_MD, found_M = store.get(tokens_MK)
    answered = time.perf_counter()
    resident = pages.resident_share(files)
    _must_be(store, numbers_M, answer_MD, found_M)
    checked = check_answers(store, "uniform", num_keys, dim, rng)
    store.close()
    return {
        "metrics": {"open_ms": 1e3 * (opened - started), "first_get_ms": 1e3 * (answered - opened)},
        "facts": {"page_cache_share": resident, "rows_checked": checked + 1},
    }


def changes(*, path: str, num_keys: int, dim: int, share: float, seed: int) -> dict:
    """Put a share of the keys, half of them new, flush, look up, compact, look up again. Changes the store."""
    _compile(dim)
    rng = np.random.default_rng(seed)
    num_new = int(num_keys * share / 2)
    numbers_M = np.concatenate([rng.choice(num_keys, num_new, replace=False), np.arange(num_keys, num_keys + num_new)])
    rng.shuffle(numbers_M)
    metrics: dict[str, float] = {}
    stages: dict[str, dict] = {}
    with ngramstore.open(path, mode="rw") as store:
        with Sampler() as sampler:
            seconds = 0.0
            for first in range(0, len(numbers_M), _PUT_ROWS):
                part_M = numbers_M[first : first + _PUT_ROWS]
                tokens_MK, rows_MD = keys.ngrams(part_M), 2 * keys.rows(part_M, dim)
                started = time.perf_counter()
                store.put(tokens_MK, rows_MD)
                seconds += time.perf_counter() - started
        metrics |= {"put_us_per_row": 1e6 * seconds / len(numbers_M), "put_anon_mib": sampler.peak_anon_mib}
        stages["put"] = sampler.functions
        for name in ("flush", "compact"):
            started, cpu = time.perf_counter(), time.process_time()
            with Sampler() as sampler:
                getattr(store, name)()
            metrics |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": time.process_time() - cpu}
            metrics[f"{name}_anon_mib"] = sampler.peak_anon_mib
            stages[name] = sampler.functions
            _check_changed(store, numbers_M[:_CHECKED], num_keys, dim)
            assert len(store) == num_keys + num_new
    return {"metrics": metrics, "facts": {"num_puts": len(numbers_M), "seconds_by_function": stages}}


def verification(*, path: str, num_keys: int, dim: int, seed: int) -> dict:
    """Read and check every byte."""
    del num_keys, seed
    _compile(dim)
    files = [file for file in Path(path).iterdir() if file.is_file()]
    with ngramstore.open(path) as store, Sampler() as sampler:
        started, cpu = time.perf_counter(), time.process_time()
        faults = store.verify()
        seconds = time.perf_counter() - started
        cpu = time.process_time() - cpu
    if faults:
        raise check.WrongAnswer(f"verify found {len(faults)} faults: {faults[0]}")
    size = sum(file.stat().st_size for file in files)
    return {
        "metrics": {
            "seconds": seconds,
            "cpu_s": cpu,
            "mb_per_s": size / seconds / 1e6,
            "anon_mib": sampler.peak_anon_mib,
        },
        "facts": {"bytes": size, "seconds_by_function": sampler.functions},
    }


def check_answers(store, mix: str, num_keys: int, dim: int, rng: np.random.Generator) -> int:
    """Compare some look-ups of a mix with what their numbers say; how many. Raises WrongAnswer."""
    numbers_M = keys.draw(mix, num_keys, _CHECKED, rng)
    out_MD = np.full((len(numbers_M), dim), np.nan, np.float32)
    _, found_M = store.get(keys.ngrams(numbers_M), out=out_MD)
    return _must_be(store, numbers_M, out_MD, found_M)


def _must_be(store, numbers_M: np.ndarray, out_MD: np.ndarray, found_M: np.ndarray) -> int:
    want_MD, want_M = _wanted(store, numbers_M, out_MD.shape[1]), numbers_M < keys.ABSENT
    want_MD[~want_M] = 0
    return check.must_match("ngramstore", out_MD, found_M, want_MD, want_M)


def _check_changed(store, numbers_M: np.ndarray, num_keys: int, dim: int) -> None:
    want_MD = _wanted(store, numbers_M, dim, factor=2)
    rows_MD, found_M = store.get(keys.ngrams(numbers_M))
    check.must_match("ngramstore", rows_MD, found_M, want_MD, np.ones(len(numbers_M), bool))


def _wanted(store, numbers_M: np.ndarray, dim: int, factor: int = 1) -> np.ndarray:
    codec = store.spec.codec
    return codec.decode(codec.encode(factor * keys.rows(numbers_M, dim)))


def _compile(dim: int) -> None:
    """A tiny store built, asked, changed and verified, so that no compilation is timed later."""
    with tempfile.TemporaryDirectory() as folder:
        numbers_M = np.arange(4096)
        with ngramstore.build(f"{folder}/store", dim=dim, max_n=keys.ORDER, memory_bytes=1 << 18) as builder:
            builder.add(keys.ngrams(numbers_M), keys.rows(numbers_M, dim))
        with ngramstore.open(f"{folder}/store", mode="rw") as store:
            store.get(keys.ngrams(numbers_M))
            store.get(keys.ngrams(numbers_M[:1]))
            store.put(keys.ngrams(numbers_M[:64]), keys.rows(numbers_M[:64], dim))
            store.flush()
            store.compact()
            store.verify()
