"""Row numbers of the n-gram tables that models ship with: one key spec per model family, chosen by the model's config.

keys = keys_from_config(read_config("config.json"), tokenizer=tokenizer)
store.rows(keys.rows(tokens))          # (B, T) token ids -> (B, T, heads, dim)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from ngramstore.errors import UnsupportedVersion, UsageError
from ngramstore.keys.base import NOTHING, SPEC_VERSION, Keys, Table
from ngramstore.keys.bytes import ByteKeys
from ngramstore.keys.config import read_config, text_config
from ngramstore.keys.engram import EngramKeys
from ngramstore.keys.longcat import LongcatKeys
from ngramstore.keys.over_encoding import OverEncodingKeys
from ngramstore.keys.qwen_ple import QwenPleKeys
from ngramstore.keys.token_map import token_map_of

__all__ = [
    "NOTHING",
    "ByteKeys",
    "EngramKeys",
    "Keys",
    "LongcatKeys",
    "OverEncodingKeys",
    "QwenPleKeys",
    "Table",
    "keys_from_config",
    "keys_from_spec",
    "read_config",
    "text_config",
    "token_map_of",
]

_BY_CONFIG_KEY: tuple[tuple[str, type[Keys]], ...] = (
    ("engram_layer_ids", EngramKeys),
    ("ple_layer_ids", QwenPleKeys),
    ("emb_neighbor_num", LongcatKeys),
    ("oe_neighbor_num", LongcatKeys),
    ("encoder_hash_byte_group_size", ByteKeys),
)
MODELS: dict[str, type[Keys]] = {
    cls.model: cls for cls in (EngramKeys, QwenPleKeys, LongcatKeys, OverEncodingKeys, ByteKeys)
}


def keys_from_config(config: Mapping[str, Any], *, tokenizer: Any = None, token_map: ArrayLike | None = None) -> Keys:
    """The key spec of a model's config.json (its `text_config` where there is one).

    tokenizer, token_map: for Engram only, whose ids are compressed first.
    Raises UsageError: a model that this release does not know, keys missing or wrong.
    """
    config = text_config(config)
    cls: type[Keys] | None = OverEncodingKeys if config.get("model_type") == "over_encoding" else None
    for name, known in _BY_CONFIG_KEY:
        if cls is None and config.get(name):
            cls = known
    if cls is None:
        raise UsageError(
            f"no n-gram table is known for model_type {config.get('model_type')!r} "
            f"(architectures {config.get('architectures')!r})",
            hint=f"this release knows {', '.join(MODELS)}; it looks for "
            + ", ".join(dict.fromkeys(name for name, _ in _BY_CONFIG_KEY)),
        )
    if cls is EngramKeys:
        return EngramKeys.from_config(config, tokenizer=tokenizer, token_map=token_map)
    if token_map is not None:
        raise UsageError(f"a token map was given; {cls.model} tables take raw token ids")
    return cls.from_config(config)  # type: ignore[attr-defined]


def keys_from_spec(spec: Mapping[str, Any], *, token_map: ArrayLike | None = None) -> Keys:
    """The key spec that `Keys.spec` described, such as a store's `metadata["keys"]`: nothing is derived again."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("model"), str) or spec["model"] not in MODELS:
        raise UsageError(f"not a key spec: {spec!r:.200}", hint=f"its model is one of {', '.join(MODELS)}")
    if spec.get("version") != SPEC_VERSION:
        raise UnsupportedVersion(f"key spec version {spec.get('version')!r}, this release reads {SPEC_VERSION}")
    cls = MODELS[spec["model"]]
    try:
        if cls is EngramKeys:
            return EngramKeys.from_spec(spec, token_map=token_map)
        return cls.from_spec(spec)  # type: ignore[attr-defined]
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"the key spec of model {spec['model']!r} lacks or garbles {error}") from error
