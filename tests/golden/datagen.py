"""Writes the golden stores of a format version: `python tests/golden/datagen.py`, once, with the release named below.

Each store is a directory `v1/NAME/` with `v1/NAME.json` (what it must answer) and `v1/NAME.npy` (its rows, decoded). Keys and
rows come from integer arithmetic and the answers from a dictionary, not from the store. Golden files are never written
again: a later format gets a folder of its own, and every later release reads all folders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import ngramstore as ngs
from ngramstore.codec.registry import codec_from_spec
from ngramstore.layout import FORMAT_VERSION

RELEASE, VERSION = "0.1.0", 1
HERE = Path(__file__).parent / f"v{VERSION}"
Ngram = tuple[int, ...]


def numbers(count: int, below: int, start: int = 1) -> list[int]:
    """Pseudo-random integers that no library version changes (the generator of Park and Miller)."""
    values, state = [], start
    for _ in range(count):
        state = state * 48271 % 0x7FFFFFFF
        values.append(state % below)
    return values


def ngrams_of(count: int, max_n: int, vocabulary: int) -> list[Ngram]:
    """Distinct n-grams of 1 .. max_n tokens, each token id below `vocabulary` or one of the largest."""
    tokens = iter(numbers(100 * count, vocabulary + 1))
    found: dict[Ngram, None] = {}
    while len(found) < count:
        ngram = tuple(next(tokens) for _ in range(1 + next(tokens) % max_n))
        found[tuple(2**32 - 1 if token == vocabulary else token for token in ngram)] = None
    return list(found)


def rows_of(count: int, dim: int, steps: int = 4001, start: int = 7) -> np.ndarray:
    """Rows of multiples of 1/64, exact in every float type."""
    values = np.array(numbers(count * dim, steps, start)).reshape(count, dim)
    return ((values - steps // 2) / 64).astype(np.float32)


def ngram_int8(path: Path) -> dict[Ngram, np.ndarray]:
    """Raw int8 rows, a set that is closed under suffixes."""
    ngrams = list(dict.fromkeys(ngram[i:] for ngram in ngrams_of(60, 3, 12) for i in range(len(ngram))))
    rows = rows_of(len(ngrams), 8)
    with ngs.build(path, dim=8, max_n=3, codec="int8", compression="none", metadata={"made by": "datagen"}) as builder:
        builder.add(ngrams, rows)
    return dict(zip(ngrams, rows, strict=True))


def ngram_zstd(path: Path) -> dict[Ngram, np.ndarray]:
    """f32 rows compressed with a dictionary, a seed, no tokens."""
    ngrams, rows = ngrams_of(520, 2, 60), rows_of(520, 16, 5)
    with ngs.build(path, dim=16, max_n=2, codec="f32", compression="zstd", tokens=False, seed=2**63 + 5) as builder:
        builder.add(ngrams, rows)
    return dict(zip(ngrams, rows, strict=True))


def _ngram_overlay(path: Path, tokens: bool) -> dict[Ngram, np.ndarray]:
    ngrams, rows = ngrams_of(90, 4, 9), rows_of(90, 6)
    with ngs.build(path, dim=6, max_n=4, codec="f16", compression="none", tokens=tokens) as builder:
        builder.add(ngrams[:60], rows[:60])
    with ngs.open(path, mode="rw") as store:
        store.put(ngrams[50:80], -rows[50:80])
        store.delete(ngrams[45:55])
        store.flush()
        store.put(ngrams[80:], rows[80:])
        store.delete(ngrams[:5])
    model = dict(zip(ngrams[:60], rows[:60], strict=True))
    model.update(zip(ngrams[50:80], -rows[50:80], strict=True))
    model.update(zip(ngrams[80:], rows[80:], strict=True))
    return {ngram: row for ngram, row in model.items() if ngram not in set(ngrams[45:55] + ngrams[:5])}


def ngram_overlay(path: Path) -> dict[Ngram, np.ndarray]:
    """f16 rows, an overlay and tombstones."""
    return _ngram_overlay(path, True)


def ngram_overlay_ids(path: Path) -> dict[Ngram, np.ndarray]:
    """The same without tokens."""
    return _ngram_overlay(path, False)


def rows_e4m3(path: Path) -> dict[Ngram, np.ndarray]:
    """Addressed by number, e4m3 with block scales."""
    rows = rows_of(100, 40)
    with ngs.build(path, dim=40, addressing="row", codec="e4m3", compression="none") as builder:
        builder.add_rows(rows)
    return {(i,): row for i, row in enumerate(rows)}


def rows_overlay(path: Path) -> dict[Ngram, np.ndarray]:
    """Addressed by number, compressed without a dictionary, some rows replaced."""
    rows = rows_of(100, 24, 3)
    with ngs.build(path, dim=24, addressing="row", codec="bf16", compression="zstd") as builder:
        builder.add_rows(rows)
    with ngs.open(path, mode="rw") as store:
        store.put([0, 99, 64], rows[:3])
    model = rows.copy()
    model[[0, 99, 64]] = rows[:3]
    return {(i,): row for i, row in enumerate(model)}


STORES: dict[str, Callable[[Path], dict[Ngram, np.ndarray]]] = {
    make.__name__: make for make in (ngram_int8, ngram_zstd, ngram_overlay, ngram_overlay_ids, rows_e4m3, rows_overlay)
}


def answers(model: dict[Ngram, np.ndarray], manifest: dict[str, Any]) -> dict[str, Any]:
    """What the store must answer: its keys, absent ones, and the longest match at each of some tokens."""
    keys = sorted(model)
    result: dict[str, Any] = {
        "release": RELEASE,
        "format": VERSION,
        "zstandard": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "identity": manifest["identity"],
        "keys": keys,
    }
    if manifest["addressing"] == "ngram":
        flat = [token for key in keys for token in (*key, 3)]
        lengths = [
            max([n for n in range(1, manifest["max_n"] + 1) if n <= t + 1 and tuple(flat[t + 1 - n : t + 1]) in model], default=0)
            for t in range(len(flat))
        ]  # fmt: skip
        near = [(*key[:-1], key[-1] ^ 1) for key in keys] + [(77,), (2**32 - 2,)]
        result |= {"absent": sorted({key for key in near if key not in model}), "tokens": flat, "lengths": lengths}
    return result


def main() -> None:
    """Write all golden stores of this format version."""
    assert ngs.__version__ == RELEASE, f"release {ngs.__version__} does not write the golden stores of {RELEASE}"
    assert FORMAT_VERSION == VERSION, f"format {FORMAT_VERSION} needs a folder of its own"
    if HERE.exists():
        sys.exit(f"{HERE} exists: golden stores are written once")
    HERE.mkdir()
    for name, make in STORES.items():
        model = make(HERE / name)
        (HERE / name / "LOCK").unlink()
        manifest = json.loads((HERE / name / "MANIFEST").read_bytes().split(b"\n", 1)[1])
        expected = answers(model, manifest)
        codec = codec_from_spec(manifest["codec"], manifest["dim"])
        rows = np.stack([model[tuple(key)] for key in expected["keys"]])
        np.save(HERE / f"{name}.npy", codec.decode(codec.encode(rows)))
        (HERE / f"{name}.json").write_text(json.dumps(expected, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
