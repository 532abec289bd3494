"""`ngramstore warmup`: compile every kernel ahead, so that no later process waits for it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from ngramstore.cli.common import emit, json_option


@click.command(name="warmup", short_help="Compile all kernels ahead of use.")
@json_option
def command(as_json: bool) -> None:
    """Compile all kernels ahead of use (`ngramstore warm` loads rows into memory).

    Run it once after installing, for example while a container image is built. It builds, changes, compacts and reads a small
    store with every codec in a temporary directory, and keeps the machine code in numba's cache: a process that finds it there
    compiles nothing. NUMBA_CACHE_DIR says where the cache is; without a writable place nothing is kept. Run it as the user that
    will serve: numba uses no cache that it may not write to, subfolders included.

    \b
    Examples:
      ngramstore warmup
      NUMBA_CACHE_DIR=/opt/numba ngramstore warmup --json
    """
    import numpy as np

    from ngramstore.codec import CODECS, SecondOrderInt4, codec_from_spec
    from ngramstore.kernels.jit import cache_is_on_disk

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ngramstore-warmup-") as scratch:
        for codec in CODECS:
            _exercise(Path(scratch) / codec, codec)
        _exercise_rows(Path(scratch) / "rows")
        SecondOrderInt4(codec_from_spec("int4", 8), np.eye(8)).encode(np.ones((1, 8), np.float32))
        _exercise_mining(Path(scratch))
    seconds = time.perf_counter() - begin
    folders = sorted(_cache_folders())
    kept = cache_is_on_disk()
    if as_json:
        emit({"seconds": round(seconds, 2), "is_kept": kept, "folders": folders})
    else:
        where = ", ".join(folders) if kept else "nowhere: no cache folder is writable, set NUMBA_CACHE_DIR"
        click.echo(f"compiled in {seconds:.1f} s, kept in {where}")


def _exercise(path: Path, codec: str) -> None:
    """A life in small of a store of n-grams: every kernel that look-ups and changes call."""
    import numpy as np

    import ngramstore as ngs
    from ngramstore.store.repair.check import verify

    tokens = np.arange(3000, dtype=np.uint32).reshape(1000, 3)
    rows = np.tile(np.arange(32, dtype=np.float32), (1000, 1))
    with ngs.build(path, dim=32, max_n=3, codec=codec, compression="zstd" if codec == "f32" else "none") as builder:
        builder.add(tokens, rows)
    for options in ({"mode": "rw"}, {"cache_bytes": 0}, {"resident": True}, {"lock_index": True}):
        with ngs.open(path, **options) as store:
            for dtype in ("f32", "f16", "bf16"):
                store.lookup(tokens.astype(np.int64), dtype=dtype)
                store.lookup(tokens[0], dtype=dtype)  # one line: its arrays are of another type for the compiler
                store.get(tokens[:100], dtype=dtype)
                store.get([(0, 1, 2)], dtype=dtype)
                row = np.empty(32, {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[dtype])
                for _ in range(2):  # the first time read, the second time in memory
                    store.get(tokens[:1], out=row[None])
                    store.lookup_tail(tokens[:1], np.array([[3]], np.uint8), out=row[None, None])
                    store.lookup_one(tokens[0], 3, 3, out=row)
            store.contains([(1,), (0, 1, 2)])
            store.warm(tokens[:10])
            with store.trace():
                store.get(tokens[:100])
            if options == {"mode": "rw"}:
                store.put([(7, 7)], rows[:1])
                store.delete([(0, 1, 2)])
                store.get([(7, 7)])
                store.flush()
                store.lookup(tokens)
                store.compact()
    verify(path)


def _exercise_rows(path: Path) -> None:
    import numpy as np

    import ngramstore as ngs

    with ngs.build(path, dim=8, codec="int8", addressing="row") as builder:
        builder.add_rows(np.ones((100, 8), np.float32))
    with ngs.open(path, mode="rw") as store:
        store.put([3], np.zeros((1, 8), np.float32))
        store.flush()
        store.rows([[1, 3], [5, 3]])
        store.compact()
    with ngs.open(path) as store:
        for dtype in ("f32", "f16", "bf16"):
            store.rows(np.array([1, 3]), dtype=dtype)
        store.rows_encoded(np.array([1, 3]))


def _exercise_mining(folder: Path) -> None:
    import numpy as np

    from ngramstore.mine import mine_ngrams, open_corpus

    np.save(folder / "tokens.npy", np.arange(4000, dtype=np.uint16) % 50)
    corpus = open_corpus([folder / "tokens.npy"], cache=folder / "cache", progress=False)
    vocabulary = mine_ngrams(corpus, work=folder / "work", max_n=3, size=50, progress=False)
    vocabulary.tag(np.arange(50), np.zeros(50, bool))


def _cache_folders() -> set[str]:
    """Where numba keeps what was compiled."""
    import sys

    folders = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("ngramstore.kernels.native."):
            for value in vars(module).values():
                path = getattr(getattr(value, "_cache", None), "cache_path", None)
                if path:
                    folders.add(str(path))
    return folders
