"""Of a Qwen config that leaves something out, keys and import read what the model's own code would."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoints import QWEN, write_qwen

from ngramstore.errors import UsageError
from ngramstore.keys import keys_from_config
from ngramstore.keys.qwen_ple import _DEFAULTS
from ngramstore.store.imports.importing import import_checkpoint

SHORT = {"model_type": "qwen4_exp_text", "ple_layer_ids": [2, 5], "eos_token_id": 248044}
FULL = SHORT | {
    "vocab_size": 248320,
    "ngram_size": 3,
    "heads_per_ngram": 8,
    "ngram_vocab_size_base": 20_000_000,
    "make_ngram_vocab_size_divisible_by": 128,
    "seed": 1234,
}


@pytest.mark.parametrize("name", [*sorted(FULL.keys() - SHORT.keys()), None])
def test_what_a_config_leaves_out_is_the_model_s_default(name):
    """Padding comes before the second table, whose rows are numbered behind it."""
    config = SHORT if name is None else {key: value for key, value in FULL.items() if key != name}
    keys, full = keys_from_config(config), keys_from_config(FULL)
    assert keys.spec() == full.spec() and keys.tables[1].first_row == 320_001_536
    assert keys_from_config(FULL | {name: None}).spec() == full.spec()


def test_the_defaults_are_those_of_transformers():
    module = pytest.importorskip("transformers.models.qwen4_exp.configuration_qwen4_exp")
    theirs = module.Qwen4ExpTextConfig
    assert {name: getattr(theirs, name) for name in _DEFAULTS} == _DEFAULTS


def test_of_several_eos_tokens_the_first_is_the_table_s():
    one, several = FULL | {"eos_token_id": 7}, FULL | {"eos_token_id": [7, 9]}
    ids = np.array([5, 9, 6, 7, 4, 3])
    assert (keys_from_config(several).rows(ids) == keys_from_config(one).rows(ids)).all()


@pytest.mark.parametrize(("hidden_size", "is_fine"), [(2560, True), (None, False), (1280, False)])
def test_tables_are_as_wide_as_the_model_unless_the_config_says_otherwise(tmp_path, hidden_size, is_fine):
    write_qwen(tmp_path / "checkpoint")
    text = QWEN["text_config"] | {"hidden_size": hidden_size, "ple_embed_dim": None}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(QWEN | {"text_config": text}))
    if is_fine:
        assert import_checkpoint(tmp_path / "checkpoint", tmp_path / "store").dim == 160
    else:
        with pytest.raises(UsageError, match=f"expected rows of {(hidden_size or 2048) // 16} values"):
            import_checkpoint(tmp_path / "checkpoint", tmp_path / "store")
