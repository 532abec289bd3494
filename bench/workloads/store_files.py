"""What a store costs besides look-ups: bytes on disk, time to open, time to build. Worker functions and cases."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bench import check, data, pages, peers
from bench.harness import Case
from bench.sampler import Sampler
from bench.setup import SIZES, Offer, Setup
from bench.workloads import store_source as shared

OPEN = ("ngramstore", "ngramstore_zstd", "memmap", "lmdb", "rocks_tuned", "sqlite")
OPEN_LARGE = ("ngramstore", "memmap", "lmdb", "rocks_tuned")
BUILD = ("ngramstore", "ngramstore_zstd", "ngramstore_copied", "rocks_zstd1", "rocks_tuned", "lmdb", "memmap")
DISK = ("ngramstore", "ngramstore_zstd", "lmdb")
DISK_ROWS = (("f16", 2048), ("int8", 1024), ("int4", 1024))
INDEX = (("ngramstore", "int8", 64), ("ngramstore_zstd", "f16", 256))
"""The index does not depend on the width of the rows, so narrow ones will do, of all the keys."""


def disk(*, subject: str, num_keys: int, dim: int, codec: str, root: str, seed: int) -> dict:
    """Bytes a key of a store of Gaussian rows: `bytes_per_key`, and by part where the subject knows its parts.

    Subjects: ngramstore, and LMDB with the same stored rows.
    """
    from ngramstore.codec import codec_from_spec

    del seed
    row_codec = codec_from_spec(codec, dim)
    folder = Path(root) / f"disk-{subject}-{codec}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([num_keys, dim])
    ngrams_N3 = data.distinct_ngrams(rng, num_keys)
    scales_D = np.exp(data.SCALE_SPREAD * rng.standard_normal(dim)).astype(np.float32)
    stored_NR = np.concatenate(
        [
            row_codec.encode(rng.standard_normal((min(8192, num_keys - start), dim), np.float32) * scales_D)
            for start in range(0, num_keys, 8192)
        ]
    )
    peer = peers.create(subject)
    parts = peer.build_encoded(ngrams_N3, stored_NR, dim, codec, folder)
    total = sum(parts.values())
    shutil.rmtree(folder)
    return {
        "metrics": {
            "bytes_per_key": total / num_keys,
            **{f"{name}_per_key": size / num_keys for name, size in parts.items()},
        },
        "facts": {"settings": peer.settings, "num_keys": num_keys, "dim": dim, "row_bytes": row_codec.row_bytes},
    }


def opening(*, subject: str, source: str, tiny_source: str, seed: int) -> dict:
    """From nothing to ready, files in the page cache, code already loaded: `open_ms`, and `first_get_ms` for one key more."""
    origin = data.load(source)
    _open_and_ask(subject, data.load(tiny_source), seed)  # imports and compiles
    peer = peers.create(subject)
    pages.warm(peer.files(peers.files_folder(peer, origin.folder)))
    open_ms, first_ms = _open_and_ask(subject, origin, seed)
    return {
        "metrics": {"open_ms": open_ms, "first_get_ms": first_ms},
        "facts": {"settings": peer.settings, "num_keys": origin.num_keys},
    }


def _open_and_ask(subject: str, origin: data.Dataset, seed: int) -> tuple[float, float]:
    one = data.queries(origin, 1, seed, absent=0.0, zipf=None)
    out_BD = np.zeros((1, origin.dim), np.float32)
    peer = peers.create(subject)
    start = time.perf_counter()
    peer.open(peers.files_folder(peer, origin.folder), origin, 64 << 20)
    opened = time.perf_counter()
    found_B = peer.get(one, out_BD)
    answered = time.perf_counter()
    check.must_match(subject, out_BD, found_B, *one.expected(origin))
    peer.close()
    return 1e3 * (opened - start), 1e3 * (answered - opened)


def build(*, subject: str, source: str, root: str, seed: int) -> dict:
    """Write a store from rows that are quantized already, given in random order, until it is synced: `seconds`, and `cpu_s` of
    all processes and threads; `peak_anon_mib`: the largest growth of this process's anonymous memory.

    The source is in the page cache. The answers of the finished store are checked.
    """
    origin = data.load(source)
    pages.warm([origin.folder / "stored.npy"])
    peer = peers.create(subject)
    folder = Path(root) / f"build-{subject}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _compile(subject, origin, Path(root))
    os.sync()
    with Sampler() as watched:
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        peer.build(origin, folder)
        for path in peer.files(folder):
            _sync(path)
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - cpu_start
    size = sum(path.stat().st_size for path in peer.files(folder))
    some = data.queries(origin, 1024, seed)
    out_BD = np.full((len(some), origin.dim), np.nan, np.float32)
    peer.open(folder, origin, 64 << 20)
    check.must_match(subject, out_BD, peer.get(some, out_BD), *some.expected(origin))
    peer.close()
    shutil.rmtree(folder)
    return {
        "metrics": {
            "seconds": seconds,
            "us_per_row": 1e6 * seconds / origin.num_keys,
            "cpu_s": cpu_seconds,
            "bytes_per_key": size / origin.num_keys,
            "peak_anon_mib": watched.peak_anon_mib,
        },
        "facts": {
            "settings": peer.settings,
            "mb_per_s": round(origin.stored_NR.nbytes / 1e6 / seconds, 1),
            **peer.build_facts(),
        },
    }


def _cpu_seconds() -> float:
    """Processor time of this process, its threads, and the children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _compile(subject: str, origin: data.Dataset, root: Path) -> None:
    """Build a few rows first, so that imports and compilation are not timed."""
    folder = root / f"compile-{subject}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    few = min(2000, origin.num_keys)
    start = dataclasses.replace(
        origin,
        ngrams_NK=origin.ngrams_NK[:few],
        lengths_N=origin.lengths_N[:few],
        ids_N=origin.ids_N[:few],
        stored_NR=origin.stored_NR[:few],
    )
    peers.create(subject).build(start, folder)
    shutil.rmtree(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_case(setup: Setup) -> Case:
    num = setup.num_keys or setup.pick(200_000, 5000)
    wanted = [(subject, codec, dim) for codec, dim in DISK_ROWS for subject in DISK]
    return _sizes(
        setup, "disk", f"bytes on disk a key, {num:,} 3-grams", num, wanted,
        baseline="lmdb f16 D=2048",
        headline=("bytes_per_key", "index_per_key", "tokens_per_key", "rows_per_key", "other_per_key"),
        note="LMDB stores the same encoded rows under 8-byte keys, and no tokens",
    )  # fmt: skip


def _index_case(setup: Setup) -> Case:
    num = shared.num_keys(setup)
    return _sizes(
        setup, "index", f"index on disk, {num:,} 3-grams", num, INDEX,
        baseline="ngramstore int8 D=64",
        headline=("index_per_key", "tokens_per_key", "rows_per_key"),
        note="ngramstore_zstd keeps the offsets of compressed rows in its index",
    )  # fmt: skip


def _sizes(
    setup: Setup,
    name: str,
    title: str,
    num: int,
    wanted: Iterable[tuple[str, str, int]],
    *,
    baseline: str,
    headline: tuple[str, ...],
    note: str,
) -> Case:
    """Bytes by part of (subject, codec, width); once, as nothing in them varies."""
    wanted, root = list(wanted), str(setup.scratch)
    available = setup.available(tuple(dict.fromkeys(subject for subject, _, _ in wanted)))
    return Case(
        name=name,
        title=title,
        function="bench.workloads.store_files:disk",
        subjects={
            f"{subject} {codec} D={dim}": {
                "subject": subject, "num_keys": num, "dim": dim, "codec": codec, "root": root,
            }
            for subject, codec, dim in wanted
            if subject in available
        },
        baseline=baseline,
        headline=headline,
        notes=(note,),
        rounds=1,
    )  # fmt: skip


def _open_case(setup: Setup) -> Case:
    return _opening(setup, "open", shared.source(setup), OPEN)


def _open_large_case(setup: Setup) -> Case:
    source = data.prepare(setup.root, 20_000_000, 16, setup.seed)
    return _opening(setup, "open_large", source, OPEN_LARGE)


def _opening(setup: Setup, name: str, source: Path, subjects: tuple[str, ...]) -> Case:
    origin = data.load(source)
    tiny = shared.tiny(setup, origin.dim)
    arguments = {"source": str(source), "tiny_source": str(tiny)}
    setup.build(subjects, tiny)
    return Case(
        name=name,
        title=f"open {origin.num_keys:,} keys of {origin.dim} dimensions, files in the page cache",
        function="bench.workloads.store_files:opening",
        subjects=setup.subjects(subjects, source, arguments),
        baseline="memmap",
        headline=("open_ms", "first_get_ms"),
        notes=("imports and compilation are done; memmap loads all IDs into RAM here",),
    )


def _build_case(setup: Setup) -> Case:
    arguments = {"source": str(shared.source(setup)), "root": str(setup.scratch)}
    return Case(
        name="build",
        title=f"write {shared.num_keys(setup):,} rows that are int8 already, from random order, synced",
        function="bench.workloads.store_files:build",
        subjects={name: {"subject": name, **arguments} for name in setup.available(BUILD)},
        baseline="rocks_zstd1",
        headline=("seconds", "cpu_s", "bytes_per_key", "peak_anon_mib"),
        notes=(
            "ngramstore also hashes and keeps the tokens; peers get IDs and sort them",
            "ngramstore keeps rows out of the page cache and does not copy rows of a read-only map; ngramstore_copied gets them in a",
            "buffer that is filled again; facts: budget_mib of the build, and seconds by stage (pack: of all threads together)",
            "RocksDB: SST files written by one process a core, then ingested; rocks_zstd1: zstd level 1; lmdb, memmap: one thread",
        ),
        rounds=3,
        environment={},
    )


SIZE_OFFERS = {
    "disk": Offer(_disk_case, DISK, ("--keys",)),
    "index": Offer(_index_case, tuple(subject for subject, _, _ in INDEX), ("--keys",)),
    "open": Offer(_open_case, OPEN, SIZES),
    "open_large": Offer(_open_large_case, OPEN_LARGE, is_large=True),
    "build": Offer(_build_case, BUILD, SIZES),
}
"""Case -> how it is asked for."""
