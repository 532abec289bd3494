"""The same raw rows behind `engramdb-python` and behind ngramstore: `Store.fetch` (bytes) and its torch helper (float rows).

Rows are those of shipped models: 160 bytes, 16 rows a token (E4M3 with one scale for the table), and 264 bytes, 48 rows a token
(256 E4M3 codes and 8 scales; its torch helper has no scales of blocks, so bytes only). Every answer is compared with the source
before it is timed; files are in the page cache. Cached are `ngramstore` and `engramdb_cached`, its torch module for
serving, which keeps rows as
bytes: either has room for every row. Not cached are `ngramstore_uncached` and `engramdb`, its Store, which has no cache.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import ngramstore as ngs
from bench import pages
from bench.harness import Case
from bench.setup import Offer, Setup
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES

SUBJECTS = ("engramdb", "engramdb_cached", "ngramstore", "ngramstore_uncached")
_SCALE = 0.00019931793212890625
_WIDTHS = {160: 16, 264: 48}
"""Bytes of a row -> rows a token."""
_TOKENS = (1, 512)


def offers() -> dict[str, Offer]:
    """A case for each width and way. Neither number of keys nor width can be chosen: rows are those of shipped models."""
    ways = ((160, "fetch"), (160, "tensor"), (264, "fetch"))
    return {f"engramdb_{way}_{width}": Offer(partial(_case, width=width, way=way), SUBJECTS) for width, way in ways}


def _case(setup: Setup, width: int, way: str) -> Case:
    """Writes the files first; no subjects, and a warning, where engramdb is not installed."""
    num_rows = setup.pick(2_000_000, 100_000)
    folder = setup.root / f"engramdb-{width}-{num_rows}"
    subjects = setup.asked(SUBJECTS) if _is_installed(setup, way) else []
    if find_spec("torch") is None:
        subjects = [name for name in subjects if name != "engramdb_cached"]
    if subjects:
        _make(folder, num_rows, width, setup)
    return Case(
        name=f"engramdb_{way}_{width}",
        title=f"{_WIDTHS[width]} rows of {width} bytes a token, as {'bytes' if way == 'fetch' else 'a float32 tensor'}",
        function="bench.workloads.tables_engramdb:fetch",
        subjects={
            name: {"subject": name, "folder": str(folder), "width": width, "way": way, "rows": num_rows}
            for name in subjects
        },
        baseline="engramdb",
        headline=tuple(f"us_{tokens}" for tokens in _TOKENS),
        notes=(
            "microseconds a call of so many tokens; all answers compared with the source; files in the page cache",
            "ngramstore, engramdb_cached: every row asked for is in the subject's own cache; the others have none",
        ),
    )


def _is_installed(setup: Setup, way: str) -> bool:
    if find_spec("engramdb") is None:
        setup.warn("engramdb left out: it is not installed (pip install engramdb-python)")
        return False
    if find_spec("torch") is None:
        setup.warn("engramdb's modules left out: torch is not installed")
        return way == "fetch"
    return True


def fetch(*, subject: str, folder: str, width: int, way: str, rows: int, seed: int) -> dict:
    """Median microseconds of a call for one token and for many, after the same rows were asked for once."""
    root, heads = Path(folder), _WIDTHS[width]
    pages.warm([file for file in root.rglob("*") if file.is_file()])
    source = np.memmap(root / "raw" / "shard_000.bin", np.uint8, "r", shape=(rows, width))
    ask, close = _opened(subject, root, width, way, rows)
    rng = np.random.default_rng(seed)
    metrics = {}
    for tokens in _TOKENS:
        calls = 2000 // tokens + 20
        numbers = rng.integers(0, rows, (min(calls, 64), tokens * heads))
        for line in numbers:
            _compare(ask(line), source[line], way)
        times = np.empty(calls)
        for i in range(calls):
            line = numbers[i % len(numbers)]
            start = time.perf_counter()
            ask(line)
            times[i] = time.perf_counter() - start
        metrics[f"us_{tokens}"] = float(np.median(times) * 1e6)
    close()
    return {"metrics": metrics, "facts": {"rows": rows, "row_bytes": width, "heads": heads}}


def _opened(subject: str, root: Path, width: int, way: str, rows: int):
    """(numbers (M,) i64 -> bytes, u8 rows or a tensor; what closes it)."""
    if subject == "engramdb":
        import engramdb

        theirs = engramdb.Store(str(root / "raw"), 1, rows, width)
        if way == "fetch":
            return lambda line: theirs.fetch(line.tolist()), theirs.close
        heads = _WIDTHS[width]
        return (
            lambda line: engramdb.fetch_e_t_tensor(theirs, line.tolist(), _SCALE, heads, width),
            theirs.close,
        )
    if subject == "engramdb_cached":
        return _cached_module(root, width, way, rows)
    cache_bytes = 0 if subject == "ngramstore_uncached" else rows * (width + SLOT_OVERHEAD_BYTES)
    ours = ngs.open(root / "store", cache_bytes=cache_bytes)
    if way == "fetch":
        return ours.rows_encoded, ours.close
    import torch

    return lambda line: torch.from_numpy(ours.rows(line)), ours.close


def _cached_module(root: Path, width: int, way: str, rows: int):
    """engramdb's `DiskPleEmbedding` with room for every row: its bytes as they are, or its values and the scale of the table."""
    import engramdb
    import torch
    from engramdb.vllm_plugin import DiskPleEmbedding

    theirs = engramdb.Store(str(root / "raw"), 1, rows, width)
    dtype = torch.uint8 if way == "fetch" else torch.float8_e4m3fn
    module = DiskPleEmbedding(theirs, rows, width, dtype=dtype, cache_size=rows)

    def close() -> None:
        module.close()
        theirs.close()

    if way == "fetch":
        return lambda line: module(torch.from_numpy(line)).numpy(), close
    return lambda line: module(torch.from_numpy(line)).float() * _SCALE, close


def _compare(answer, wanted: np.ndarray, way: str) -> None:
    """AssertionError unless the answer is that of the source, bit for bit; tensors to the rounding of one product."""
    if way == "fetch":
        got = np.frombuffer(answer, np.uint8) if isinstance(answer, (bytes, bytearray)) else answer
        same = np.array_equal(got.reshape(wanted.shape), wanted)
    else:
        import torch

        truth = torch.from_numpy(np.array(wanted)).view(torch.float8_e4m3fn).to(torch.float32) * _SCALE
        same = torch.allclose(answer.reshape(truth.shape), truth, rtol=1e-6, atol=0)
    if not same:
        raise AssertionError("the answer differs from the source")


def _make(folder: Path, num_rows: int, width: int, setup: Setup) -> None:
    """Raw rows as engramdb reads them, and a store of the same."""
    if (folder / "store" / "MANIFEST").exists():
        return
    setup.say(f"rows of {width} bytes, raw and as a store")
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    codes = np.random.default_rng([setup.seed, width]).integers(0, 126, (num_rows, width), np.uint8)
    codes.tofile(folder / "raw" / "shard_000.bin")
    codec = {"name": "e4m3", "block": 0, "scale": _SCALE.hex()} if width == 160 else {"name": "e4m3", "block": 32}
    dim = 160 if width == 160 else 256
    with ngs.build(
        folder / "store",
        dim=dim,
        codec=codec,
        addressing="row",
        compression="none",
        restart=(folder / "store").exists(),
    ) as builder:
        builder.add_encoded_rows(codes)
