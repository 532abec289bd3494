"""Mining: the most frequent n-grams of a corpus, exactly, in bounded memory (arXiv 2502.01637, Algorithm 3).

For n = 2, 3, ... K the n-grams are counted whose prefix and suffix of length n-1 are frequent; frequent means counted at least
min_count times. Then all lengths compete in one ranking by count, and the first `size` stay. Counting goes length by
length through files (count.py), or, where the tokens and some more fit the memory, all lengths at once in it
(refine.py): the same runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ngramstore.errors import NgramStoreError, UsageError
from ngramstore.files import remove
from ngramstore.hashing import MAX_N
from ngramstore.mine.count import LEAST_MEMORY_BYTES, assign_ids, count_shard, mask_shard
from ngramstore.mine.merge import merge_runs
from ngramstore.mine.refine import is_in_reach, refine
from ngramstore.mine.select import select_top
from ngramstore.mine.shards import TokenShards, check_held_out, held_out_spans, num_held_out
from ngramstore.mine.vocab import Vocabulary
from ngramstore.mine.work import WorkDirectory
from ngramstore.mine.workers import start_workers
from ngramstore.options import is_whole

_SHARDS_A_CALL = 64
"""Numbered with one table; their files may all be open together, and a process may open 1,024 (256 on macOS)."""
_DEAD_WORKER = (
    "mine again to resume, with less memory_bytes if the system killed it; "
    'a script that uses workers needs `if __name__ == "__main__":` around its calls'
)


def mine_ngrams(
    corpus: TokenShards,
    *,
    work: str | Path,
    max_n: int = 5,
    size: int = 100_000,
    min_count: int = 5,
    memory_bytes: int = 1 << 30,
    workers: int = 1,
    held_out: float = 0.0,
    restart: bool = False,
    save_to: str | Path | None = None,
    before_save: Callable[[], None] | None = None,
    keep_work: bool = False,
    progress: bool = False,
) -> Vocabulary:
    """Mine the `size` most frequent n-grams of length 2..max_n that occur at least min_count times.

    work: directory for intermediate files, about 8 bytes a token and 16 a distinct n-gram (with much memory, 16 a frequent n-gram
    only); a run that was killed resumes from what it finds there, and it is removed at the end. The result does not depend on
    memory_bytes, workers or shards.
    memory_bytes: for counting and merging, over what the interpreter itself takes, shared by the workers; the vocabulary
    (about 13 max_n + 80 bytes an n-gram) comes on top. With 25 bytes a token counting is several times as fast as with less.
    workers: threads where the tokens fit the memory; else processes, of which more than there are shards do not help.
    held_out: fraction of the corpus left out, see `held_out_spans`.
    save_to: write the vocabulary file there before the work directory goes, so that nothing is lost in between.
    before_save: called just before that, when nothing can be refused any more: for what has to be there with the vocabulary.
    Raises UsageError for options out of range and for a work directory begun with others, or with shards that end elsewhere,
    WriterLocked where another process mines there, DiskFull, DamagedStore where an intermediate file changed, NgramStoreError
    where a worker was killed.
    """
    check_options(max_n, size, min_count, memory_bytes, workers, held_out)
    if held_out and num_held_out(corpus, held_out) == corpus.num_tokens:
        raise UsageError(
            f"held_out={held_out} leaves out all {corpus.num_tokens:,} tokens of this corpus",
            hint="whole documents are held out, and pieces of 8,192 tokens of long ones: give more documents, or held_out=0",
        )
    if save_to is not None and Path(work).absolute() in Path(save_to).absolute().parents:
        raise UsageError(
            f"{save_to} lies in the work directory {work}, which is deleted", hint="write it somewhere else"
        )
    options = {"corpus": corpus.identity, "tokenizer": corpus.tokenizer_id, "min_count": min_count}
    options |= {"held_out": held_out, "shard_tokens": [shard.num_tokens for shard in corpus.shards]}
    in_memory = is_in_reach(corpus.shards, memory_bytes)
    space = WorkDirectory(work, options, restart=restart, sync=not in_memory)
    try:
        _Miner(corpus, space, max_n, min_count, memory_bytes, workers, held_out).run(in_memory, progress)
        selection = select_top([space.frequent(n) for n in range(2, max_n + 1)], size)
        vocabulary = Vocabulary(
            selection.tokens_MK,
            selection.lengths_M,
            selection.counts_M,
            max_n=max_n,
            min_count=min_count,
            num_frequent=selection.num_frequent,
            tokenizer_id=corpus.tokenizer_id,
            tokenizer_name=corpus.tokenizer_name,
            corpus_id=corpus.identity,
            corpus_tokens=corpus.num_tokens,
            held_out=held_out,
        )
        if save_to is not None:
            if before_save is not None:
                before_save()
            vocabulary.save(save_to)
    except BaseException:
        space.close()
        raise
    if keep_work:
        space.close()
    else:
        space.remove()
    return vocabulary


def check_options(max_n: int, size: int, min_count: int, memory_bytes: int, workers: int, held_out: float) -> None:
    """UsageError for the first option of `mine_ngrams` that is out of range; whoever reads a corpus first asks here before."""
    counts = {"max_n": max_n, "size": size, "min_count": min_count, "memory_bytes": memory_bytes, "workers": workers}
    for name, value in counts.items():
        if not is_whole(value):
            raise UsageError(f"{name} is {value!r}", hint="give a whole number")
    if not 2 <= max_n <= MAX_N:
        raise UsageError(f"max_n is {max_n}, it must be 2 to {MAX_N}", hint="a single token is not an n-gram")
    for name, value in (("size", size), ("min_count", min_count), ("workers", workers)):
        if value < 1:
            raise UsageError(f"{name} is {value}, it must be at least 1")
    if memory_bytes < LEAST_MEMORY_BYTES * workers:
        raise UsageError(f"memory_bytes is {memory_bytes}, it must be at least {LEAST_MEMORY_BYTES} a worker")
    check_held_out(held_out)


@dataclass
class _Miner:
    """Runs the steps that are not finished yet, length by length."""

    corpus: TokenShards
    space: WorkDirectory
    max_n: int
    min_count: int
    memory_bytes: int
    workers: int
    held_out: float
    pool: ProcessPoolExecutor | None = None

    def run(self, in_memory: bool, progress: bool) -> None:
        passes = 2 * self.max_n - 3  # each length is counted, and each but the last numbered
        finished = 2 * (self.space.finished_n - 1)
        total = self.corpus.num_tokens * passes
        with tqdm(total=total, unit="token", unit_scale=True, desc="mine", disable=not progress) as bar:
            if in_memory and finished == 0 and self._refine(bar, passes):
                bar.update(total - bar.n)  # what is held out has no positions
            else:
                bar.update(min(finished, passes) * self.corpus.num_tokens)
                self._levels(bar)

    def _refine(self, bar: Any, passes: int) -> bool:
        """Count all lengths in memory; False if it does not suffice.

        Nothing is kept of a killed run and nothing synced: counting it all again is a matter of seconds, and waiting
        for the disk would take as long.
        """
        return refine(
            self.corpus.shards,
            held_out_spans(self.corpus, self.held_out) if self.held_out else None,
            [self.space.frequent(n) for n in range(2, self.max_n + 1)],
            min_count=self.min_count,
            memory_bytes=self.memory_bytes,
            workers=self.workers,
            on_progress=lambda num_positions: bar.update(passes * num_positions),
        )

    def _levels(self, bar: Any) -> None:
        """Count length by length, from the first that is not finished."""
        if not self.space.sync:
            self.space.sync = True
            self.space.finish(self.space.finished_n)
        self.workers = min(self.workers, len(self.corpus.shards))
        if self.workers > 1:
            self.pool = start_workers(self.workers)
        try:
            self._mask()
            for n in range(self.space.finished_n + 1, self.max_n + 1):
                self._level(n, bar)
        finally:
            if self.pool is not None:
                self.pool.shutdown(cancel_futures=True)

    def _mask(self) -> None:
        """Write the numbers of level 1, which leave the held-out part uncounted. Without one, tokens are their own numbers."""
        if self.held_out and self.space.finished_n == 1:
            for i, spans in enumerate(held_out_spans(self.corpus, self.held_out)):
                if not self.space.ids(1, i).exists():
                    mask_shard(self.corpus.shards[i], spans, self.space.ids(1, i))

    def _level(self, n: int, bar: Any) -> None:
        """Count one length, keep what is frequent, number its positions unless it is the last length."""
        space, numbers = self.space, range(len(self.corpus.shards))
        bar.set_postfix_str(f"length {n} of {self.max_n}")
        before: list[Any] = [None if n == 2 and not self.held_out else space.ids(n - 1, i) for i in numbers]
        if space.frequent(n).exists():
            bar.update(self.corpus.num_tokens)
        elif len(before) == 1:
            self._count(before, [space.frequent(n)], bar, min_count=self.min_count)
        else:
            runs = [space.counts(n, i) for i in numbers]
            self._count(before, runs, bar, min_count=1)
            merge_runs(runs, space.frequent(n), self.min_count, memory_bytes=self.memory_bytes, sync=space.sync)
        for i in numbers:
            remove(space.counts(n, i))
        if n == self.max_n:
            return
        self._number(before, space.frequent(n), [space.ids(n, i) for i in numbers], bar)
        space.finish(n)
        for path in before:
            if path is not None:
                remove(path)

    def _count(self, before: list[Path | None], runs: list[Path], bar: Any, *, min_count: int) -> None:
        """Count each shard into its run, unless that exists."""
        todo = self._unfinished(before, runs, bar)
        calls = [(row, row[0].num_tokens) for row in todo]
        self._call(count_shard, calls, bar, min_count=min_count, sync=self.space.sync)

    def _number(self, before: list[Path | None], frequent: Path, ids: list[Path], bar: Any) -> None:
        """Number the positions of each shard, unless its numbers exist; some shards a call, as many for each worker."""
        todo = self._unfinished(before, ids, bar)
        step = max(1, min(_SHARDS_A_CALL, -(-len(todo) // self.workers)))
        calls: list[tuple[tuple[Any, ...], int]] = []
        for at in range(0, len(todo), step):
            shards, paths, outs = (list(column) for column in zip(*todo[at : at + step], strict=True))
            calls.append(((shards, paths, frequent, outs), sum(shard.num_tokens for shard in shards)))
        self._call(assign_ids, calls, bar)

    def _unfinished(self, before: list[Path | None], outs: list[Path], bar: Any) -> list[tuple[Any, ...]]:
        """(shard, its numbers of the length before, file to write) for each of the files that does not exist yet."""
        todo: list[tuple[Any, ...]] = []
        for row in zip(self.corpus.shards, before, outs, strict=True):
            if row[-1].exists():
                bar.update(row[0].num_tokens)
            else:
                todo.append(row)
        return todo

    def _call(
        self, function: Callable[..., None], calls: list[tuple[tuple[Any, ...], int]], bar: Any, **options: int
    ) -> None:
        """Make calls, given as arguments and the number of tokens that they pass, in this process or in several."""
        if self.pool is None or len(calls) < 2:
            for arguments, _ in calls:
                function(*arguments, memory_bytes=self.memory_bytes, on_progress=bar.update, **options)
            return
        share = self.memory_bytes // self.workers
        try:
            waiting = {
                self.pool.submit(function, *arguments, memory_bytes=share, **options): num_tokens
                for arguments, num_tokens in calls
            }
            for done in as_completed(waiting):
                done.result()
                bar.update(waiting[done])
        except BrokenProcessPool as error:  # of a worker that was killed while it had nothing to do `submit` tells
            raise NgramStoreError("a worker process died", hint=_DEAD_WORKER) from error
