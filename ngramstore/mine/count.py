"""One level of mining: count the n-grams of a shard that can be frequent, then number the positions of those that are.

Numbers stand for n-grams: `numbers` holds, for each position, that of the frequent (n-1)-gram that ends there (its rank in token
order) or NO_ID. A key is (number of the prefix) << 32 | token, so a key is counted only where prefix and suffix are
both frequent, and the ascending order of keys is the token order of the n-grams.

Plain functions over files: any machine that sees the files can run one, and a rerun gives the same bytes.

Shapes: T position, N keys, C table slots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ngramstore.errors import DamagedStore, UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.kernels.count_table import empty_table
from ngramstore.kernels.native import mining as native
from ngramstore.mine.merge import merge_runs
from ngramstore.mine.publish import published
from ngramstore.mine.runs import RunReader, run_writer, scratch_runs
from ngramstore.mine.shards import Shard

NO_ID = 0xFFFFFFFF
LEAST_MEMORY_BYTES = 4 << 10

_BYTES_PER_SLOT = 34
"""A slot is 16 B. Writing a full table (70 % used) sorts a copy of its keys: 27 B a slot in all; the rest is for chunks."""
_BYTES_PER_NUMBER = 96
"""A frequent n-gram takes 2 slots of 16 B, and its pair is there in three copies while it is read."""
_MOST_SLOTS = 1 << 32
"""Of a table: the kernels find a slot as (32 bits of the hash * number of slots) >> 32, a product that wraps in 64 bits
beyond this."""
_FULLEST = 0.7
_FIRST_SLOTS = 1 << 12
_ON_PROGRESS = Callable[[int], object]


def mask_shard(shard: Shard, spans: np.ndarray, out_path: Path) -> None:
    """Level 1 numbers (the tokens themselves) with NO_ID inside the spans (S, 2) of positions, so that nothing there counts."""
    with published(out_path, sync_directory=False) as file:
        at, step = 0, 1 << 20
        while at < shard.num_tokens:
            end = min(at + step, shard.num_tokens)
            numbers_T = shard.read(at, end)
            for begin, stop in spans[(spans[:, 0] < end) & (spans[:, 1] > at)]:
                numbers_T[max(begin - at, 0) : stop - at] = NO_ID
            file.write(numbers_T)
            at = end


def count_shard(
    shard: Shard,
    numbers: Path | None,
    out_path: Path,
    *,
    min_count: int = 1,
    memory_bytes: int,
    sync: bool = True,
    on_progress: _ON_PROGRESS | None = None,
) -> None:
    """Count every key of a shard into the sorted run out_path, dropping those counted less than min_count times.

    numbers: of the frequent (n-1)-grams, by position; None for n = 2, where they are the tokens.
    min_count: above 1 only where the shard is the whole corpus.
    Whatever does not fit the memory is spilled as sorted runs beside out_path, and merged. Those are never used after a
    power cut, so they are not synced; sync=False says the same of out_path.
    """
    most_slots = _most_slots(memory_bytes)
    table_C2 = empty_table(min(_FIRST_SLOTS, most_slots))
    used = 0
    spills: list[Path] = []
    with scratch_runs(out_path, "spill") as new_spill:
        for keys_T in _keys(shard, numbers, memory_bytes, on_progress):
            done = 0
            while True:
                step, used = native.count_keys(keys_T[done:], table_C2, used, int(_FULLEST * len(table_C2)))
                done += step
                if done == len(keys_T):
                    break
                if len(table_C2) < most_slots:
                    table_C2 = _grown(table_C2, most_slots)
                else:
                    spills.append(new_spill())
                    _write_table(table_C2, spills[-1], sync=False)
                    table_C2[:, 0] = native.EMPTY
                    used = 0
        if not spills:
            _write_table(table_C2, out_path, min_count, sync=sync)
            return
        spills.append(new_spill())
        _write_table(table_C2, spills[-1], sync=False)
        del table_C2
        merge_runs(spills, out_path, min_count, memory_bytes=memory_bytes, sync=sync)


def assign_ids(
    shards: Sequence[Shard],
    numbers: Sequence[Path | None],
    frequent_path: Path,
    out_paths: Sequence[Path],
    *,
    memory_bytes: int,
    on_progress: _ON_PROGRESS | None = None,
) -> None:
    """Number the frequent n-gram that ends at each position of some shards: -> out_paths, (T,) u32, NO_ID where there is none.

    numbers: of each shard, as for `count_shard`. frequent_path: the level's run; an n-gram's number is its place there.
    The run is made into a table once for all the shards. Where it does not fit the memory, there is a table for each
    part that does, every shard is passed once for each, and the files of all the shards are open until the last pass.
    """
    with ExitStack() as stack:
        ends = [stack.enter_context(ExitStack()) for _ in shards]
        files: list[FileWriter] = []
        for table_C2, is_last in _number_tables(frequent_path, memory_bytes):
            is_first = not files
            for i, shard in enumerate(shards):
                keys = _keys(shard, numbers[i], memory_bytes, on_progress if is_first else None)
                if is_first:
                    files.append(ends[i].enter_context(published(out_paths[i], sync_directory=False)))
                    _write_numbers(files[i], keys, table_C2)
                else:
                    _add_numbers(files[i], keys, table_C2)
                if is_last:
                    ends[i].close()  # publishes the file: what is done stays done if the next shard fails


def _write_numbers(file: FileWriter, keys: Iterator[np.ndarray], table_C2: np.ndarray) -> None:
    """The first pass: a number for each key, NO_ID for those that the table does not have."""
    for keys_T in keys:
        numbers_T = np.full(len(keys_T), NO_ID, np.uint32)
        native.find_ids(keys_T, table_C2, numbers_T)
        file.write(numbers_T)
    file.flush()  # so that one file at a time holds a buffer


def _add_numbers(file: FileWriter, keys: Iterator[np.ndarray], table_C2: np.ndarray) -> None:
    """A later pass: the numbers that this table has are written over what is there."""
    at = 0
    for keys_T in keys:
        numbers_T = np.frombuffer(bytearray(file.read(4 * at, 4 * len(keys_T))), np.uint32)
        native.find_ids(keys_T, table_C2, numbers_T)
        file.rewrite(4 * at, numbers_T.data)
        at += len(keys_T)


def _number_tables(frequent_path: Path, memory_bytes: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Tables from key to number, each with whether it is the last: one, or as many as it takes to stay in the memory."""
    run = RunReader(frequent_path)
    if run.num_pairs >= NO_ID:
        raise UsageError(f"{run.num_pairs} frequent n-grams of one length exceed 2**32 - 2", hint="raise min_count")
    if not run.num_pairs:
        yield empty_table(2), True
    first_number = 0
    for pairs_N2 in run.blocks(_most_numbers(memory_bytes)):
        table_C2 = empty_table(2 * len(pairs_N2))
        native.fill_ids(pairs_N2[:, 0].copy(), first_number, table_C2)
        first_number += len(pairs_N2)
        yield table_C2, first_number == run.num_pairs


def _most_slots(memory_bytes: int) -> int:
    """Slots that a table of counts may grow to."""
    return min(max(16, memory_bytes // _BYTES_PER_SLOT), _MOST_SLOTS)


def _most_numbers(memory_bytes: int) -> int:
    """Frequent n-grams that a table may hold; it has two slots for each."""
    return min(max(16, memory_bytes // _BYTES_PER_NUMBER), _MOST_SLOTS // 2)


def _keys(
    shard: Shard, numbers: Path | None, memory_bytes: int, on_progress: _ON_PROGRESS | None
) -> Iterator[np.ndarray]:
    """The keys of a shard in order, a chunk at a time; the array is used again for the next chunk."""
    chunk = min(1 << 16, max(16, memory_bytes // 256))
    starts = shard.starts()
    keys_T = np.empty(min(chunk, shard.num_tokens), np.uint64)
    before = NO_ID
    if numbers is not None and (size := os.path.getsize(numbers)) != 4 * shard.num_tokens:
        raise DamagedStore(
            f"{numbers}: {size} bytes for {shard.num_tokens} positions", hint="mine again with restart=True"
        )
    for begin in range(0, shard.num_tokens, chunk):
        end = min(begin + chunk, shard.num_tokens)
        tokens_T = shard.read(begin, end)
        numbers_T = tokens_T if numbers is None else np.fromfile(numbers, "<u4", end - begin, offset=4 * begin)
        out_T = keys_T[: end - begin]
        native.pack_keys(np.uint32(before), numbers_T, tokens_T, out_T)
        before = numbers_T[-1]
        first, last = np.searchsorted(starts, (np.uint64(begin), np.uint64(end)))
        out_T[(starts[first:last] - np.uint64(begin)).astype(np.int64)] = (
            native.EMPTY
        )  # no n-gram crosses a document's start
        yield out_T
        if on_progress is not None:
            on_progress(end - begin)


def _grown(table_C2: np.ndarray, most_slots: int) -> np.ndarray:
    larger_C2 = empty_table(min(4 * len(table_C2) if len(table_C2) < 1 << 20 else 2 * len(table_C2), most_slots))
    native.rehash_counts(table_C2, larger_C2)
    return larger_C2


def _write_table(table_C2: np.ndarray, path: Path, min_count: int = 1, *, sync: bool = True) -> None:
    """Write a count table as a sorted run; the table's content is used up."""
    pairs_N2 = table_C2[: native.gather_counts(table_C2, min_count)]
    order_N = np.argsort(np.ascontiguousarray(pairs_N2[:, 0]))
    with run_writer(path, sync=sync) as writer:
        for begin in range(0, len(order_N), 1 << 16):
            part_N2 = pairs_N2[order_N[begin : begin + (1 << 16)]]
            writer.add(part_N2[:, 0], part_N2[:, 1])
