"""Counting in memory: the positions of each token, split again and again by the next token, give the frequent n-grams
of all lengths.

An n-gram that occurs often enough has a prefix that does, so only positions whose n-gram is frequent are split further;
there is no hash table, no number for each position, and one pass instead of two for each length. First tokens are taken
a range at a time, as many as fit the memory, and ranges by several threads at once: n-grams come in token order, so
ranges only need to be joined.

Shapes: T position of all documents, each after a mark (a token V), P positions of a range, V tokens of the tokenizer, L
lengths from 2, S spans of positions, N n-grams of one length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.kernels.native import refining as native
from ngramstore.mine.runs import RunWriter, run_writer
from ngramstore.mine.shards import Shard, inside

_MOST_RANGES = 64
"""Each range is a scan of all tokens, about 0.7 ns a token; counting length by length takes about 100."""
_RANGES_A_WORKER = 2
_FIXED_BYTES = 64 << 10
_BYTES_PER_CHUNK_TOKEN = 32
_BYTES_PER_TOKEN_ID = 12
"""A worker's counts, scratch and ends of groups, u32 each."""
_BYTES_PER_POSITION = 12
"""Position, spare position and next token, u32 each; n-grams come on top."""
_BYTES_PER_NGRAM = 12
_MOST_TOKENS = (1 << 32) - 2


@dataclass(frozen=True)
class _Text:
    """The tokens of a corpus, V before each document, in the place of held-out tokens and at the end; how often each occurs."""

    tokens_T: np.ndarray
    counts_V: np.ndarray


@dataclass(frozen=True)
class _Found:
    """N n-grams of one range and length in token order: keys (N,) u64 as in count.py, with numbers of prefixes from 0
    in this range."""

    keys_N: np.ndarray
    counts_N: np.ndarray


def is_in_reach(shards: Sequence[Shard], memory_bytes: int) -> bool:
    """True where `refine` can be tried: the tokens alone fit. Reads nothing."""
    return sum(2 * (s.num_tokens + s.num_documents) for s in shards) + _FIXED_BYTES < memory_bytes


def refine(
    shards: Sequence[Shard],
    spans: Sequence[np.ndarray] | None,
    paths: Sequence[Path],
    *,
    min_count: int,
    memory_bytes: int,
    workers: int = 1,
    on_progress: Callable[[int], object] = lambda num_positions: None,
) -> bool:
    """Write the frequent n-grams of length 2, 3, ... of whole shards as runs to the paths, not synced; False if memory
    is too small.

    The runs have the bytes that counting length by length gives them, whatever the memory and the workers, which are threads.
    spans: for each shard what to leave out, ascending (S, 2). on_progress: called with numbers of positions, all of
    them in the end.
    """
    chunk = min(1 << 18, max(16, memory_bytes // (8 * _BYTES_PER_CHUNK_TOKEN)))
    num_ids = _num_ids(shards, chunk)
    dtype = np.dtype(np.uint16 if num_ids < 1 << 16 else np.uint32)
    num_places = sum(s.num_tokens + s.num_documents for s in shards) + 1
    left = memory_bytes - _FIXED_BYTES - chunk * _BYTES_PER_CHUNK_TOKEN - dtype.itemsize * num_places - 16 * num_ids
    per_position = _BYTES_PER_POSITION + _BYTES_PER_NGRAM * len(paths) / min_count
    most = int((left / workers - _BYTES_PER_TOKEN_ID * num_ids) / per_position)
    if num_places > _MOST_TOKENS or most * _MOST_RANGES < num_places:
        return False
    text = _read(shards, spans, num_ids, dtype, num_places, chunk)
    largest = int(text.counts_V.max(initial=0))
    if largest > most:
        return False
    if workers > 1:
        most = min(most, max(int(text.counts_V.sum()) // (workers * _RANGES_A_WORKER) + 1, largest))
    ranges = _ranges(text.counts_V, most)
    with ExitStack() as stack:
        writers = [stack.enter_context(run_writer(path, sync=False)) for path in paths]
        for number, found in enumerate(_each(text, ranges, len(paths), min_count, workers)):
            _append(writers, found, chunk)
            on_progress(int(text.counts_V[slice(*ranges[number])].sum()))
            del found  # before the next range is worked on
    return True


def _num_ids(shards: Sequence[Shard], chunk: int) -> int:
    """One more than the largest token."""
    most = -1
    for shard in shards:
        for begin in range(0, shard.num_tokens, chunk):
            most = max(most, int(shard.read(begin, min(begin + chunk, shard.num_tokens)).max()))
    return most + 1


def _read(
    shards: Sequence[Shard],
    spans: Sequence[np.ndarray] | None,
    num_ids: int,
    dtype: np.dtype,
    num_places: int,
    chunk: int,
) -> _Text:
    tokens_T = np.empty(num_places, dtype)
    counts_V = np.zeros(num_ids + 1, np.int64)
    at = 0
    for number, shard in enumerate(shards):
        starts = shard.starts()[:-1]
        for begin in range(0, shard.num_tokens, chunk):
            end = min(begin + chunk, shard.num_tokens)
            part = shard.read(begin, end)
            if spans is not None:
                part[inside(spans[number], begin, end)] = num_ids
            first, last = np.searchsorted(starts, (np.uint64(begin), np.uint64(end)))
            part = np.insert(part, (starts[first:last] - np.uint64(begin)).astype(np.int64), num_ids)
            tokens_T[at : at + len(part)] = part
            counts_V += np.bincount(part, minlength=num_ids + 1)
            at += len(part)
    tokens_T[at] = num_ids
    return _Text(tokens_T[: at + 1], counts_V[:-1])


def _ranges(counts_V: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Ranges of tokens that occur at most `most` times together; no token occurs more often."""
    ends_V = np.cumsum(counts_V)
    ranges, first = [], 0
    while first < len(counts_V):
        done = int(ends_V[first - 1]) if first else 0
        stop = int(np.searchsorted(ends_V, done + most, "right"))
        ranges.append((first, stop))
        first = stop
    return ranges


def _each(
    text: _Text, ranges: Sequence[tuple[int, int]], num_lengths: int, min_count: int, workers: int
) -> Iterator[list[_Found]]:
    """What `_refined` finds in each range, in order; as many ranges as workers are in memory, with the one that was
    given last."""
    if workers == 1:
        for first, stop in ranges:
            yield _refined(text, first, stop, num_lengths, min_count)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[_Found]]] = deque()
        for first, stop in ranges:
            if len(waiting) == workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_refined, text, first, stop, num_lengths, min_count))
        while waiting:
            yield waiting.popleft().result()


def _refined(text: _Text, first: int, stop: int, num_lengths: int, min_count: int) -> list[_Found]:
    """The frequent n-grams that begin with a token from first to stop, length by length."""
    num_ids = len(text.counts_V)
    counts = text.counts_V[first:stop]
    num = int(counts.sum())
    ends_V = np.zeros(num_ids, np.uint32)
    ends_V[first:stop] = np.cumsum(counts) - counts + 1  # where they begin, at first
    positions_P, spare_P = np.empty(num + 1, np.uint32), np.empty(num + 1, np.uint32)
    native.place_positions(text.tokens_T, first, stop, ends_V, positions_P)
    keys_LM = np.empty((num_lengths, num // min_count), np.uint64)
    counts_LM = np.empty((num_lengths, num // min_count), np.uint32)
    used_L = np.zeros(num_lengths, np.int64)
    native.refine_groups(
        text.tokens_T, first, stop, ends_V, min_count, positions_P, spare_P,
        np.empty(int(counts.max(initial=0)), np.uint32), np.zeros(num_ids + 1, np.uint32), np.empty(num_ids + 2, np.uint32),
        np.empty((num_lengths, 3), np.int64), keys_LM, counts_LM, used_L,
    )  # fmt: skip
    return [_Found(keys_LM[i, :used], counts_LM[i, :used]) for i, used in enumerate(used_L)]


def _append(writers: Sequence[RunWriter], found: Sequence[_Found], chunk: int) -> None:
    """Add the n-grams of a range to the runs; numbers of prefixes go on from those of the ranges before it."""
    before = 0
    for writer, part in zip(writers, found, strict=True):
        shift = np.uint64(before << 32)
        before = writer.num_pairs
        for begin in range(0, len(part.keys_N), chunk):
            writer.add(part.keys_N[begin : begin + chunk] + shift, part.counts_N[begin : begin + chunk])
