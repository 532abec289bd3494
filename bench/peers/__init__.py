"""The subjects of the benchmark: one small adapter a file, its settings in plain sight, imported only when asked for."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from bench.data import Dataset
from bench.peers.base import Peer

SUBJECTS: dict[str, str] = {
    "ngramstore": "bench.peers.ngramstore_peer:Plain",
    "ngramstore_zstd": "bench.peers.ngramstore_peer:Zstd",
    "ngramstore_copied": "bench.peers.ngramstore_peer:Copied",
    "ngramstore_resident": "bench.peers.ngramstore_peer:Resident",
    "ngramstore_exact": "bench.peers.ngramstore_peer:Exact",
    "floor": "bench.peers.in_memory:Floor",
    "floor_ahead": "bench.peers.in_memory:FloorAhead",
    "dict": "bench.peers.in_memory:DictOfRows",
    "nn_embedding": "bench.peers.embedding:NnEmbedding",
    "memmap": "bench.peers.memmap:Memmap",
    "memmap_numba": "bench.peers.memmap:MemmapNumba",
    "flat_hint_pread": "bench.peers.flat_file:HintThenPread",
    "flat_hint_pread_numba": "bench.peers.flat_file:HintThenPreadNumba",
    "flat_pread": "bench.peers.flat_file:PlainPread",
    "lmdb": "bench.peers.lmdb_peer:Lmdb",
    "rocks_tuned": "bench.peers.rocks:Tuned",
    "rocks_tuned_rows": "bench.peers.rocks:TunedRows",
    "rocks_default": "bench.peers.rocks:Default",
    "rocks_zstd": "bench.peers.rocks:Zstd",
    "rocks_zstd1": "bench.peers.rocks:Zstd1",
    "sqlite": "bench.peers.sqlite_peer:Sqlite",
    "redis": "bench.peers.redis_peer:Redis",
    "safetensors": "bench.peers.safetensors_peer:Safetensors",
    "lance": "bench.peers.lance_peer:Lance",
    "fbgemm": "bench.peers.fbgemm_peer:Fbgemm",
}
"""Subject -> where its adapter is."""


def create(subject: str) -> Peer:
    """A fresh adapter. Raises KeyError for an unknown subject, ImportError for a package that is not installed."""
    module, name = SUBJECTS[subject].split(":")
    return getattr(importlib.import_module(module), name)()


def missing(subject: str) -> str | None:
    """Why the subject cannot run here, in one sentence; None where it can."""
    try:
        create(subject)
    except ImportError as error:
        return f"{subject} left out: {error} (pip install 'ngramstore[bench]', and torch for nn_embedding and fbgemm)"
    return None


def ensure_built(subject: str, source_folder: str) -> dict:
    """Worker function: write the subject's files for a dataset unless they are there; a half-written set is started anew."""
    from bench import data, pages

    peer = create(subject)
    folder = files_folder(peer, Path(source_folder))
    if not folder.exists():
        pages.warm([Path(source_folder) / "stored.npy"])  # rows are taken in key order: random reads of a cold file
        part = Path(f"{folder}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        peer.build(data.load(source_folder), part)
        part.rename(folder)
    return {"metrics": {}, "facts": {"folder": str(folder)}}


def files_folder(peer: Peer, source_folder: Path) -> Path:
    """Where the peer's files for a dataset are; peers with one layout share them."""
    return source_folder / f"as-{peer.layout}"


def opened(subject: str, source: Dataset, cache_bytes: int | None = None) -> Peer:
    """The subject, opened on its files, ready for `get`. cache_bytes None: room for every row."""
    peer = create(subject)
    peer.open(files_folder(peer, source.folder), source, cache_bytes or everything(source))
    return peer


def everything(source: Dataset) -> int:
    """A cache budget that holds every row with room for any peer's own bookkeeping."""
    return int(1.3 * source.stored_NR.nbytes) + (16 << 20)
