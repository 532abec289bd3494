"""Causal language models of Hugging Face Transformers, reading its input embeddings from a store.

import ngramstore as ngs
from ngramstore_transformers import attach, detach

attach(model, ngs.open("table/"))
model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=50)
detach(model)
"""

from __future__ import annotations

import importlib
from typing import Any

from ngramstore.errors import MissingExtra

_HOME = {
    "attach": "attaching",
    "attached": "attaching",
    "detach": "attaching",
    "load_reference": "reference",
    "save_reference": "reference",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("ngramstore"):
            raise
        raise MissingExtra(error.name, "transformers") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
