"""The N-th operation of mining fails, for every N: what was there stays, nothing half is taken for whole, and a retry works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from failures import each_failure

from ngramstore import files
from ngramstore.errors import DiskFull
from ngramstore.mine import Shard, TokenShards, Vocabulary, mine_ngrams, open_corpus

OLD = b"an earlier vocabulary"
MINED = {"max_n": 3, "size": 50, "min_count": 2, "held_out": 0.1}
TEXTS = ["the cat sat on the mat.\n", "the dog sat on the log.\n", "the cat and the dog sat.\n"]


@pytest.fixture
def corpus(tmp_path) -> TokenShards:
    rng = np.random.default_rng(5)
    shards = []
    for i in range(2):
        path = tmp_path / f"shard-{i}.bin"
        path.write_bytes((rng.zipf(1.4, 240) % 40).astype("<u2").tobytes())
        shards.append(Shard(path, "<u2", 240, 12, starts_array=np.arange(0, 241, 20, dtype=np.uint64)))
    return TokenShards(shards, "small corpus")


@pytest.mark.parametrize(
    ("memory_bytes", "most_open"),
    [(1 << 24, 9), (1 << 24, 0), (5 << 10, 0)],
    ids=["in memory", "length by length", "spilled"],
)
def test_mining_that_fails_anywhere_goes_on_to_the_same_vocabulary(
    corpus, tmp_path, quick_path, monkeypatch, memory_bytes, most_open
):
    if not most_open:
        monkeypatch.setattr("ngramstore.mine.miner.is_in_reach", lambda shards, memory_bytes: False)

    def mine(path: Path) -> Vocabulary:
        return mine_ngrams(corpus, work=path / "work", save_to=path / "v", memory_bytes=memory_bytes, **MINED)

    (tmp_path / "whole").mkdir()
    mine(tmp_path / "whole")
    whole = (tmp_path / "whole" / "v").read_bytes()
    assert len(Vocabulary.load(tmp_path / "whole" / "v")) == 50

    def prepare(path):
        path.mkdir()
        (path / "v").write_bytes(OLD)

    def check(_, path, error):
        assert (path / "v").read_bytes() in ((OLD, whole) if error else (whole,))
        if error is not None:
            if not isinstance(error, DiskFull):  # one failure alone: nothing half stays behind
                assert not list(path.glob("**/*.tmp"))
            mine(path)
        assert (path / "v").read_bytes() == whole
        assert {file.name for file in path.iterdir()} == {"v"}

    num = each_failure(monkeypatch, prepare, lambda _, path: mine(path), check, quick_path)
    assert num > 10


def test_what_a_resumed_run_goes_on_with_is_on_disk_before_it_has_its_name(corpus, quick_path, monkeypatch):
    """A power cut may keep a name and lose what was written under it, and a name until its directory is synced."""
    log: list[tuple[str, str]] = []
    monkeypatch.setattr("ngramstore.mine.miner.is_in_reach", lambda shards, memory_bytes: False)
    monkeypatch.setattr(files, "observe", lambda operation, path: log.append((operation, path.name)))
    mine_ngrams(corpus, work=quick_path / "work", save_to=quick_path / "v", memory_bytes=1 << 24, **MINED)
    for name, folder in (
        ("STEP", "work"),
        ("ids-01-00000.u32", "work"),
        ("ids-02-00001.u32", "work"),
        ("v", quick_path.name),
    ):
        renamed = [i for i, what in enumerate(log) if what == ("rename", name)]
        assert renamed, name
        for i in renamed:
            assert log[i - 1] == ("fsync", f"{name}.tmp"), name
            assert ("fsync", folder) in log[i + 1 :], name


def test_tokenising_that_fails_anywhere_leaves_no_half_of_a_corpus_in_the_cache(tmp_path, quick_path, monkeypatch):
    pytest.importorskip("tokenizers")
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)

    def tokens(cache: Path) -> list[list[int]]:
        found = open_corpus(
            sorted(tmp_path.glob("*.txt")), tokenizer="train:280", cache=cache / "cache", shard_tokens=8
        )
        return [document.tolist() for document in found.documents()]

    def names(cache: Path) -> set[str]:
        """Of all that is there, but for half a tokenizer, under a name of its own, that a full disk would not remove."""
        return {str(file.relative_to(cache)) for file in cache.rglob("*") if file.suffix != ".tmp"}

    whole = tokens(tmp_path)
    clean = names(tmp_path / "cache")
    entry = next((tmp_path / "cache").glob("tokens-*")).name
    assert len(clean) == 9, "a tokenizer, an entry, two files for each of three shards and their manifest"

    def check(_, path, error):
        cache = path / "cache"
        if (cache / entry).exists():
            assert {name for name in names(cache) if name.startswith(entry)} == {
                name for name in clean if name.startswith(entry)
            }
        elif not isinstance(error, DiskFull):  # one failure alone: nothing half stays behind
            assert all(name.startswith("tokenizer-") for name in names(cache))
            assert not list(cache.glob("*.tmp"))
        assert tokens(path) == whole
        assert names(cache) == clean

    num = each_failure(monkeypatch, lambda path: None, lambda _, path: tokens(path), check, quick_path)
    assert num > 20
