"""The kinds of models there are, and each as JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ngramstore.errors import FormatError
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.model.scone import PlainModel, SconeModel

LanguageModel = PlainModel | SconeModel | HashedModel


def describe(model: LanguageModel) -> dict[str, Any]:
    """The model's kind and shapes as JSON values; `build` is the way back."""
    description: dict[str, Any] = {"kind": model.kind, "decoder": asdict(model.decoder.config)}
    if isinstance(model, SconeModel):
        description["fgram"] = asdict(model.fgram_model.config)
    if isinstance(model, HashedModel):
        description["hashed"] = asdict(model.config)
    return description


def build(description: Mapping[str, Any], *, where: str) -> LanguageModel:
    """A fresh model of a description. Raises FormatError, with where it was read from, if it describes none."""
    try:
        decoder = DecoderConfig(**description["decoder"])
        if description["kind"] == "plain":
            return PlainModel(decoder)
        if description["kind"] == "scone":
            return SconeModel(decoder, FgramConfig(**description["fgram"]))
        if description["kind"] == "hashed":
            return HashedModel(decoder, HashedConfig(**description["hashed"]))
    except (KeyError, TypeError) as error:
        raise FormatError(f"{where} does not describe a model: {error!r}") from None
    raise FormatError(f"{where} describes a model of kind {description['kind']!r}, known are plain, scone, hashed")
