"""Sorted runs -> one sorted run with the counts of equal keys added, in bounded memory.

Each run shows its next block; every pair up to the smallest last key on show can be added up and written, which uses up at
least one block. So memory is (number of runs) blocks, whatever the runs hold.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ngramstore.mine.runs import PAIR_BYTES, RunReader, run_writer, scratch_runs

_WORKING_COPIES = 10
"""A block is held about this many times while it is joined, sorted and added up."""
_LEAST_BLOCK = 64
"""Pairs. With so many runs that a block would be smaller, groups of runs are merged first."""

_MOST_OPEN = 128
"""Runs read at a time: a process may open 1,024 files (256 on macOS), and a corpus may have more shards than that."""


def merge_runs(
    paths: Sequence[Path], out_path: Path, min_count: int = 1, *, memory_bytes: int = 64 << 20, sync: bool = True
) -> int:
    """Merge runs and keep keys whose added count is at least min_count: -> number of keys kept.

    The result appears at out_path whole or not at all, synced unless it can be made again cheaply; the runs stay. No
    run at all gives an empty run. Raises DamagedStore for a run that is not as it was written.
    """
    out_path = Path(out_path)
    fan_in = min(_MOST_OPEN, max(2, memory_bytes // (_LEAST_BLOCK * PAIR_BYTES * _WORKING_COPIES)))
    paths = list(paths)
    with scratch_runs(out_path, "group") as new_group:
        while len(paths) > fan_in:
            group, paths = paths[:fan_in], paths[fan_in:]
            merged = new_group()
            merge_runs(group, merged, 1, memory_bytes=memory_bytes, sync=False)
            paths.append(merged)
        return _merge_at_once(paths, out_path, min_count, memory_bytes, sync)


def _merge_at_once(paths: list[Path], out_path: Path, min_count: int, memory_bytes: int, sync: bool) -> int:
    readers = [RunReader(path) for path in paths]
    block = max(_LEAST_BLOCK, memory_bytes // (max(1, len(readers)) * PAIR_BYTES * _WORKING_COPIES))
    with run_writer(out_path, sync=sync) as writer:
        for keys_N, counts_N in _merged(readers, block):
            keep_N = counts_N >= min_count
            writer.add(keys_N[keep_N], counts_N[keep_N])
    return writer.num_pairs


def _merged(readers: list[RunReader], block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys, each once and ascending, with their added counts, some at a time."""
    streams = [reader.blocks(block) for reader in readers]
    heads = [next(stream, None) for stream in streams]
    while True:
        shown = [head for head in heads if head is not None]
        if not shown:
            return
        bound = min(head[-1, 0] for head in shown)
        taken = []
        for i, head in enumerate(heads):
            if head is None:
                continue
            num = int(np.searchsorted(head[:, 0], bound, "right"))
            taken.append(head[:num])
            heads[i] = head[num:] if num < len(head) else next(streams[i], None)
        yield add_up(np.concatenate(taken) if len(taken) > 1 else taken[0])


def add_up(pairs_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in any order -> ascending distinct keys and the sum of each key's counts."""
    order_N = np.argsort(pairs_N2[:, 0])
    keys_N = pairs_N2[:, 0][order_N]
    is_first_N = np.ones(len(keys_N), np.bool_)
    np.not_equal(keys_N[1:], keys_N[:-1], out=is_first_N[1:])
    first = np.flatnonzero(is_first_N)
    return keys_N[first], np.add.reduceat(pairs_N2[:, 1][order_N], first)
