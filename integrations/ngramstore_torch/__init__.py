"""PyTorch side of ngramstore: serve rows to a model, train SCONE models, export their tables.

Names are loaded on first use, so that importing one of them does not import all.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Batch": "data",
    "Checkpoint": "checkpoint",
    "Decoder": "decoder",
    "DecoderConfig": "decoder",
    "Evaluation": "evaluate",
    "FgramConfig": "fgram_model",
    "FgramModel": "fgram_model",
    "HashedConfig": "hashed",
    "HashedModel": "hashed",
    "KVCache": "decoder",
    "KeysHash": "row_hashes",
    "NGramEmbedding": "embedding",
    "NGramHistory": "history",
    "OverEncodingHash": "row_hashes",
    "PlainModel": "scone",
    "RowSource": "export",
    "RowTableEmbedding": "row_tables",
    "SconeModel": "scone",
    "SconeRows": "export",
    "TaggedTokens": "data",
    "TrainedTableHash": "row_hashes",
    "TrainConfig": "train",
    "TrainResult": "train",
    "cost_of": "costs",
    "evaluate_model": "evaluate",
    "export_table": "export",
    "generate": "generation",
    "generate_served": "serving_loop",
    "input_sensitivity": "sensitivity",
    "live_embedding": "generation",
    "load_checkpoint": "checkpoint",
    "served_embedding": "generation",
    "tag": "data",
    "train_model": "train",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{home}")
    return getattr(module, {"load_checkpoint": "load"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
