"""`ngramstore demo --store`: the life of a store on real text, from building to verifying, with counts and times.

The text is by default the Python sources of the standard library, the tokens are words and signs, the rows are noise
made from each n-gram's ID: what a row must be can be told at any time without keeping it.

Shapes: T tokens, M n-grams, D row width, B lines, K longest n-gram.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ngramstore as ngs
from ngramstore.cli.common import bytes_text
from ngramstore.errors import UsageError
from ngramstore.hashing import ngram_ids, row_ids
from ngramstore.mine.inputs import TEXT_SUFFIXES, find_files, python_sources
from ngramstore.store.repair.check import verify

_MAX_N = 5
_DIM = 256
_MIN_COUNT = 3
_MOST_NGRAMS = 100_000
_MOST_TEXT_BYTES = 6 << 20
_LINE_TOKENS = 512
_WORDS = re.compile(r"\w+|[^\w\s]")
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_END_OF_FILE = 0


def run(folder: Path, texts: tuple[Path, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Do it all in `folder`; says each step as it ends, returns what they found. Raises UsageError for a text that is none."""
    steps = _Steps(say)
    words: dict[str, int] = {}
    tokens_T = steps.take("text", lambda: _read_text(texts, words))
    ngrams, lengths = steps.take("n-grams", lambda: _frequent(tokens_T))
    path = folder / "store"
    ids = ngram_ids(ngrams, lengths)
    steps.take("build", lambda: _build(path, ngrams, lengths, ids))
    lines_BT = tokens_T[: len(tokens_T) // _LINE_TOKENS * _LINE_TOKENS].reshape(-1, _LINE_TOKENS)
    with ngs.open(path) as store:
        steps.take("lookup", lambda: _look_up(store, lines_BT))
        steps.take("get", lambda: _get(store, ngrams, lengths, ids))
        steps.take("change", lambda: _change(path, store, ngrams, lengths))
    steps.take("compact", lambda: _compact(path))
    steps.take("verify", lambda: _verify(path))
    return steps.result


class _Steps:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.result: dict[str, Any] = {}

    def take(self, name: str, step: Callable[[], tuple[dict[str, Any], str, Any]]) -> Any:
        begin = time.perf_counter()
        facts, sentence, value = step()
        seconds = time.perf_counter() - begin
        self.result[name] = facts | {"seconds": round(seconds, 3)}
        self._say(f"{name:<8} {sentence} ({seconds:.1f} s)")
        return value


def _read_text(texts: tuple[Path, ...], words: dict[str, int]) -> tuple[dict[str, Any], str, np.ndarray]:
    tokens: list[int] = []
    num_files = num_bytes = 0
    for file in find_files(texts, TEXT_SUFFIXES) if texts else python_sources():
        data = file.read_bytes()
        text = data.decode("utf-8", "replace")
        tokens.extend(words.setdefault(word, len(words) + 1) for word in _WORDS.findall(text))
        tokens.append(_END_OF_FILE)
        num_files += 1
        num_bytes += len(data)
        if num_bytes >= _MOST_TEXT_BYTES:
            break
    if len(tokens) < 2 * _LINE_TOKENS:
        raise UsageError(f"{len(tokens)} tokens of text are too few", hint="give files with a few pages at least")
    facts = {"files": num_files, "bytes": num_bytes, "tokens": len(tokens), "words": len(words)}
    sentence = f"{len(tokens):,} tokens, {len(words):,} different, in {num_files:,} files"
    return facts, sentence, np.array(tokens, np.uint32)


def _frequent(tokens_T: np.ndarray) -> tuple[dict[str, Any], str, tuple[np.ndarray, np.ndarray]]:
    """The most frequent n-grams of 1 to K tokens that do not cross the end of a file."""
    found, counts = [], []
    for n in range(1, _MAX_N + 1):
        windows = np.lib.stride_tricks.sliding_window_view(tokens_T, n)
        inside = np.flatnonzero((windows != _END_OF_FILE).all(axis=1))
        _, first, count = np.unique(ngram_ids(windows[inside], None), return_index=True, return_counts=True)
        frequent = count >= _MIN_COUNT
        ngrams = np.zeros((int(frequent.sum()), _MAX_N), np.uint32)
        ngrams[:, :n] = windows[inside[first[frequent]]]
        found.append((ngrams, np.full(len(ngrams), n)))
        counts.append(count[frequent])
    order = np.argsort(-np.concatenate(counts), kind="stable")[:_MOST_NGRAMS]
    ngrams = np.concatenate([ngrams for ngrams, _ in found])[order]
    lengths = np.concatenate([lengths for _, lengths in found])[order]
    by_length = {n: int((lengths == n).sum()) for n in range(1, _MAX_N + 1)}
    facts = {"kept": len(ngrams), "by_length": by_length}
    sentence = f"the {len(ngrams):,} most frequent of 1 to {_MAX_N} tokens"
    return facts, sentence, (ngrams, lengths)


def _rows_of(ids_M: np.ndarray) -> np.ndarray:
    """Gaussian rows (M, D) f32, a function of the IDs alone: one hash makes two values (Box-Muller)."""
    steps = np.arange(1, _DIM // 2 + 1, dtype=np.uint64) * _GAMMA
    bits = row_ids((ids_M[:, None] ^ steps).reshape(-1)).reshape(len(ids_M), -1)
    radius = np.sqrt(-2 * np.log((bits >> np.uint64(32)).astype(np.float32) * 2.0**-32 + 2.0**-33))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)


def _build(path: Path, ngrams: np.ndarray, lengths: np.ndarray, ids: np.ndarray) -> tuple[dict[str, Any], str, None]:
    with ngs.build(path, dim=_DIM, max_n=_MAX_N, codec="int8", restart=True) as builder:
        for at in range(0, len(ids), 1 << 14):
            part = slice(at, at + (1 << 14))
            builder.add((ngrams[part], lengths[part]), _rows_of(ids[part]))
    with ngs.open(path, cache_bytes=0) as store:
        stats = store.stats()
    names = ("rows", "dim", "compression", "total_bytes", "suffix_closed")
    facts = {name: stats[name] for name in names} | {"codec": "int8"}
    share = stats["total_bytes"] / (4 * _DIM * stats["rows"])
    sentence = f"{stats['rows']:,} rows of {_DIM} as int8: {bytes_text(stats['total_bytes'])}, {share:.2f} of f32"
    return facts, sentence, None


def _look_up(store: ngs.Store, lines_BT: np.ndarray) -> tuple[dict[str, Any], str, None]:
    matched = positions = tokens_matched = 0
    for line in lines_BT:
        hit = store.lookup(line)
        positions += line.size
        matched += int(hit.found.sum())
        tokens_matched += int(hit.length.sum(dtype=np.int64))
    stats = store.stats()
    mean = tokens_matched / max(1, matched)
    facts = {"positions": positions, "matched": matched, "mean_length": mean, "hit_rate": stats["hit_rate"]}
    sentence = (
        f"longest match at {positions:,} positions: {matched / positions:.1%} end an n-gram, {mean:.2f} tokens on average; "
        f"row cache hit rate {stats['hit_rate']:.1%}"
    )
    return facts, sentence, None


def _get(
    store: ngs.Store, ngrams: np.ndarray, lengths: np.ndarray, ids: np.ndarray
) -> tuple[dict[str, Any], str, None]:
    """Every row read back against what it was made from."""
    worst = 0.0
    num_found = 0
    for at in range(0, len(ids), 1 << 14):
        part = slice(at, at + (1 << 14))
        rows, found = store.get((ngrams[part], lengths[part]))
        wanted = _rows_of(ids[part])
        worst = max(worst, float((np.abs(rows - wanted) / store.spec.codec.error_bound(wanted)).max()))
        num_found += int(found.sum())
    facts = {"asked": len(ids), "found": num_found, "largest_error_in_bounds": worst}
    sentence = f"{num_found:,} of {len(ids):,} n-grams found, largest error {worst:.3f} of the codec's bound"
    return facts, sentence, None


def _change(path: Path, reader: ngs.Store, ngrams: np.ndarray, lengths: np.ndarray) -> tuple[dict[str, Any], str, None]:
    new = np.arange(1, 1001, dtype=np.uint32)[:, None] + np.uint32(1 << 24)
    gone = (ngrams[-500:], lengths[-500:])
    with ngs.open(path, mode="rw") as writer:
        writer.put(new, _rows_of(ngram_ids(new)))
        num_gone = writer.delete(gone)
        writer.flush()
        has_seen_before = bool(reader.contains(new).any())
        reader.refresh()
    is_right = bool(reader.contains(new).all()) and not reader.contains(gone).any() and not has_seen_before
    facts = {"put": len(new), "deleted": num_gone, "reader_sees_it_after_refresh": is_right}
    sentence = f"{len(new):,} n-grams put, {num_gone:,} deleted; another handle sees it after refresh: {is_right}"
    return facts, sentence, None


def _compact(path: Path) -> tuple[dict[str, Any], str, None]:
    with ngs.open(path, mode="rw") as writer:
        before = writer.stats()["overlay_rows"]
        writer.compact()
        stats = writer.stats()
    facts = {"rows": stats["rows"], "overlay_rows_before": before, "overlay_rows": stats["overlay_rows"]}
    return facts, f"{before:,} changed rows merged, {stats['rows']:,} rows, generation {stats['generation']}", None


def _verify(path: Path) -> tuple[dict[str, Any], str, None]:
    faults = [str(fault) for fault in verify(path)]
    return {"faults": faults}, f"every byte read, {len(faults)} faults", None
