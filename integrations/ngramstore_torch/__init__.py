"""PyTorch side of ngramstore: serve rows to a model, train SCONE models, export their tables.

Names are loaded on first use, so that importing one of them does not import all.
"""

from __future__ import annotations

import importlib
from typing import Any

from ngramstore.errors import MissingExtra

_HOME = {
    "Batch": "data.batches",
    "Checkpoint": "training.checkpoint",
    "Costs": "model.costs",
    "Decoder": "model.decoder",
    "DecoderConfig": "model.decoder",
    "Evaluation": "experiment.evaluate",
    "Exported": "export.table",
    "FgramConfig": "model.fgram",
    "FgramModel": "model.fgram",
    "HashedConfig": "model.hashed",
    "HashedModel": "model.hashed",
    "KVCache": "model.decoder",
    "KeysHash": "serving.row_hashes",
    "NGramEmbedding": "serving.embedding",
    "NGramHistory": "serving.history",
    "OverEncodingHash": "serving.row_hashes",
    "PlainModel": "model.scone",
    "RowHash": "serving.row_hashes",
    "RowSource": "export.table",
    "RowTableEmbedding": "serving.row_tables",
    "SconeModel": "model.scone",
    "SconeRows": "export.table",
    "ServingStats": "serving.stats",
    "StoreModule": "serving.module",
    "TaggedTokens": "data.batches",
    "Ticket": "serving.prefetch",
    "TrainConfig": "training.config",
    "TrainResult": "training.train",
    "TrainedTableHash": "serving.row_hashes",
    "Windows": "serving.windows",
    "cost_of": "model.costs",
    "evaluate_model": "experiment.evaluate",
    "export_table": "export.table",
    "fgram_load": "experiment.comparison",
    "generate": "serving.generation",
    "generate_served": "serving.loop",
    "input_sensitivity": "export.sensitivity",
    "live_embedding": "serving.generation",
    "load_checkpoint": "training.checkpoint",
    "tag": "data.batches",
    "tag_corpus": "data.corpus",
    "train_model": "training.train",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("ngramstore"):
            raise
        raise MissingExtra(error.name, "torch") from error
    return getattr(module, {"load_checkpoint": "load"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
