"""From a corpus to the vocabulary of frequent n-grams: read and tokenise, count, rank, tag, report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Matcher": "matching",
    "Report": "reports",
    "Shard": "shards",
    "TokenShards": "shards",
    "Tokenizer": "tokenizers",
    "Vocabulary": "vocab",
    "assign_ids": "count",
    "count_shard": "count",
    "held_out_spans": "shards",
    "load_tokenizer": "tokenizers",
    "merge_runs": "merge",
    "mine_ngrams": "miner",
    "num_held_out": "shards",
    "open_corpus": "corpus",
    "python_sources": "inputs",
    "report": "reports",
    "require_tokenizer": "tokenizers",
    "train_bpe": "tokenizers",
}

__all__ = [
    "Matcher",
    "Report",
    "Shard",
    "TokenShards",
    "Tokenizer",
    "Vocabulary",
    "assign_ids",
    "count_shard",
    "held_out_spans",
    "load_tokenizer",
    "merge_runs",
    "mine_ngrams",
    "num_held_out",
    "open_corpus",
    "python_sources",
    "report",
    "require_tokenizer",
    "train_bpe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
