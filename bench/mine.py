"""Mining against DuckDB, Polars and a numpy sort: the same counts of the same token shards, round by round.

`python -m bench.mine` from the root of the repository; needs the extras `mine` and `bench`. The corpus is the source of Python's
standard library, tokenised with a byte-level BPE of 4,096 tokens, and WikiText-2's validation part where NGRAMSTORE_DATA has it.

Every subject starts from the token shards on disk and ends with the `SIZE` most frequent n-grams of length 2..5 that
occur 5 times, in rank order. A 5-gram of 12-bit tokens fits one 64-bit number, so the peers need no windows, joins or
pruning: they get packed keys from numpy (its time counts) and group them. DuckDB and Polars use all cores; ours is one
thread, or two where it says so.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from bench import machine
from ngramstore.mine import TokenShards, Vocabulary, mine_ngrams, open_corpus

RESULT = Path(__file__).parent / "results" / "mine.json"
MAX_N, MIN_COUNT, SIZE, BITS = 5, 5, 100_000, 12
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Packed keys (M,) u64, lengths (M,), counts (M,), in rank order."""


def ours(corpus: TokenShards, folder: Path, memory_bytes: int, threads: int = 1) -> Ranked:
    options = {"size": SIZE, "min_count": MIN_COUNT, "memory_bytes": memory_bytes, "workers": threads}
    return packed(mine_ngrams(corpus, work=folder / "work", **options))


def packed(vocabulary: Vocabulary) -> Ranked:
    """The form in which answers are compared."""
    tokens_MK, lengths_M = vocabulary.ngrams
    keys_M = np.zeros(len(lengths_M), np.uint64)
    for n in range(MAX_N):
        keys_M = np.where(n < lengths_M, keys_M << np.uint64(BITS) | tokens_MK[:, n], keys_M)
    return keys_M, lengths_M, vocabulary.counts


def peer(corpus: TokenShards, count: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Ranked:
    """Pack, let the peer count, rank. `count`: keys (T,) u64 -> distinct keys and their counts, those below MIN_COUNT
    left out."""
    tokens = [shard.read(0, shard.num_tokens) for shard in corpus.shards]
    tokens_T = np.concatenate(tokens).astype(np.uint64)
    ends = np.cumsum([0, *map(len, tokens)])
    starts = np.concatenate(
        [s.starts()[:-1].astype(np.int64) + end for s, end in zip(corpus.shards, ends, strict=False)]
    )
    keys_T, is_cut_T = tokens_T, np.zeros(len(tokens_T), np.bool_)
    parts = []
    for n in range(2, MAX_N + 1):
        inside = starts[starts + n - 2 < len(tokens_T)] + n - 2
        is_cut_T[inside] = True  # an n-gram that ends here would reach over a document's start
        keys_T = np.concatenate([keys_T[:1], keys_T[:-1] << np.uint64(BITS) | tokens_T[1:]])
        keys, counts = count(keys_T[~is_cut_T])
        parts.append((keys, np.full(len(keys), n), counts))
    keys_M, lengths_M, counts_M = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_M = np.lexsort((keys_M, lengths_M, -counts_M.astype(np.int64)))[:SIZE]
    return keys_M[order_M], lengths_M[order_M], counts_M[order_M]


def with_duckdb(keys_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import duckdb

    with duckdb.connect() as connection:
        connection.register("keys", {"k": keys_T})
        found = connection.sql(f"SELECT k, count(*) AS c FROM keys GROUP BY k HAVING c >= {MIN_COUNT}").fetchnumpy()
    return np.asarray(found["k"], np.uint64), np.asarray(found["c"])


def with_polars(keys_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import polars

    found = polars.DataFrame({"k": keys_T}).lazy().group_by("k").len().filter(polars.col("len") >= MIN_COUNT).collect()
    return found["k"].to_numpy(), found["len"].to_numpy()


def with_numpy(keys_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys_T = np.sort(keys_T)
    first = np.flatnonzero(np.concatenate([[True], keys_T[1:] != keys_T[:-1]]))
    counts = np.diff(np.append(first, len(keys_T)))
    return keys_T[first][counts >= MIN_COUNT], counts[counts >= MIN_COUNT]


def corpora(folder: Path) -> dict[str, TokenShards]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    options = {"tokenizer": "train:4096", "cache": folder, "errors": "replace", "progress": True}
    found = {"python-stdlib": open_corpus(files, **options)}
    if "NGRAMSTORE_DATA" in os.environ:
        path = Path(os.environ["NGRAMSTORE_DATA"]) / "wikitext2-valid.txt"
        found["wikitext2-valid"] = open_corpus(path, **options)
    return found


def measure(corpus: TokenShards, folder: Path, rounds: int) -> dict:
    """Compare the answers, then time every subject once a round, beginning with another one each time."""
    subjects: dict[str, Callable[[], Ranked]] = {
        "ngramstore": lambda: ours(corpus, folder, 1 << 30),
        "ngramstore, 2 threads": lambda: ours(corpus, folder, 1 << 30, 2),
        "ngramstore, 8 MiB": lambda: ours(corpus, folder, 8 << 20),
        "duckdb": lambda: peer(corpus, with_duckdb),
        "polars": lambda: peer(corpus, with_polars),
        "numpy sort": lambda: peer(corpus, with_numpy),
    }
    wanted = subjects["ngramstore"]()
    for name, subject in subjects.items():
        for part, (mine, theirs) in enumerate(zip(wanted, subject(), strict=True)):
            if not np.array_equal(mine, theirs):
                raise SystemExit(f"{name} answers differently (column {part})")
    walls: dict[str, list[float]] = {name: [] for name in subjects}
    processors: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wall, processor = time.perf_counter(), time.process_time()
            subjects[name]()
            walls[name].append(time.perf_counter() - wall)
            processors[name].append(time.process_time() - processor)
    found = {}
    for name in names:
        wall = statistics.median(walls[name])
        found[name] = {
            "wall_s": wall,
            "cpu_s": statistics.median(processors[name]),
            "million_tokens_per_s": corpus.num_tokens / wall / 1e6,
            "wall_over_ngramstore": statistics.median(
                theirs / mine for theirs, mine in zip(walls[name], walls["ngramstore"], strict=True)
            ),
            "cpu_over_ngramstore": statistics.median(
                theirs / mine for theirs, mine in zip(processors[name], processors["ngramstore"], strict=True)
            ),
            "wall_s_by_round": walls[name],
            "cpu_s_by_round": processors[name],
        }
    vocabulary = mine_ngrams(corpus, work=folder / "work", size=SIZE, min_count=MIN_COUNT)
    facts = {"tokens": corpus.num_tokens, "documents": corpus.num_documents, "ngrams": len(vocabulary)}
    return facts | {"cutoff": vocabulary.cutoff, "subjects": found, "tag": tag_speed(vocabulary, corpus, rounds)}


def tag_speed(vocabulary: Vocabulary, corpus: TokenShards, rounds: int) -> dict:
    tokens_T, starts_D = corpus.shards[0].tokens(), corpus.shards[0].starts()
    times = []
    for _ in range(rounds + 1):
        wall = time.perf_counter()
        lengths_T, _ = vocabulary.tag(tokens_T, starts_D)
        times.append(time.perf_counter() - wall)
    speed = len(tokens_T) / statistics.median(times[1:]) / 1e6
    return {"million_tokens_per_s": speed, "coverage": float((lengths_T > 0).mean())}


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_path", default=RESULT, show_default=True, type=click.Path(path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), help="Keep the tokenised corpora here.")
def main(rounds: int, json_path: Path, cache: Path | None) -> None:
    """Compare mining with its peers and save the numbers."""
    about = machine.describe()
    with tempfile.TemporaryDirectory() as temporary:
        found = {
            name: measure(corpus, Path(temporary), rounds) for name, corpus in corpora(cache or Path(temporary)).items()
        }
    options = {"max_n": MAX_N, "min_count": MIN_COUNT, "size": SIZE, "vocabulary": 1 << BITS, "rounds": rounds}
    notes = [
        *machine.warnings(about, rounds),
        "duckdb and polars use all cores; ngramstore one thread, or two where it says so",
    ]
    json_path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"workload": "mine", "machine": about, "warnings": notes, "options": options, "corpora": found}
    json_path.write_text(json.dumps(whole, indent=1) + "\n")
    for name, one in found.items():
        print(f"{name}: {one['tokens']:,} tokens; tagging {one['tag']['million_tokens_per_s']:.1f} M tokens/s")
        for subject, numbers in one["subjects"].items():
            print(
                f"  {subject:<22} {numbers['wall_s']:7.3f} s {numbers['million_tokens_per_s']:6.2f} M tokens/s"
                f"  {numbers['wall_over_ngramstore']:5.2f}x wall {numbers['cpu_over_ngramstore']:5.2f}x CPU"
            )
    print(*notes, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
