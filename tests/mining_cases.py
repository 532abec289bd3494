"""A small corpus that mining spills and merges on, and children that kill themselves in the middle of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from ngramstore.mine import Shard, TokenShards, mine_ngrams

OPTIONS = {"max_n": 4, "size": 200, "min_count": 2, "memory_bytes": 1 << 14, "held_out": 0.1}


def shard_of(path: Path, num: int, seed: int) -> Shard:
    """Documents of 100 tokens, a few of which are frequent."""
    tokens = (np.random.default_rng(seed).zipf(1.4, num) % 97).astype("<u2")
    path.write_bytes(tokens.tobytes())
    return Shard(path, "<u2", num, num // 100, starts_array=np.arange(0, num + 1, 100, dtype=np.uint64))


def two_shards(folder: Path) -> TokenShards:
    """What the tests that kill mine."""
    return TokenShards([shard_of(folder / f"shard-{i}.bin", 2000, i) for i in range(2)], "killed corpus")


def mined_bytes(corpus: TokenShards, folder: Path, **options) -> bytes:
    """The vocabulary file of a run to the end in `folder`/work, which goes on with what is there."""
    vocabulary = mine_ngrams(corpus, work=folder / "work", **OPTIONS | options)
    vocabulary.save(folder / "v")
    return (folder / "v").read_bytes()


def die_at(call: str, corpus: TokenShards, work: Path, number: int, **options) -> bool:
    """Mine in a child that kills itself just before its number-th call of os.`call`: -> whether it lived to the end."""
    child = os.fork()
    if child == 0:
        left, real = [number], getattr(os, call)

        def counted(*names, **where):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*names, **where)

        setattr(os, call, counted)
        mine_ngrams(corpus, work=work, **OPTIONS | options)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
