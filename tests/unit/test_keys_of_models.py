"""Key specs against the models' own code: pinned answers of it, and transformers run here where it is installed.

What was compared, outside of this repository, on random tokens and on these: for Engram `NgramHashMapping` of
github.com/deepseek-ai/Engram (engram_demo_v1.py); for LongCat-Flash-Lite `NgramEmbedding` of Meituan's modeling code, as
the model's port to vLLM carries it. The digests below are of what that code answered, not of what ours did.
"""

from __future__ import annotations

from hashlib import blake2b
from types import SimpleNamespace

import numpy as np
import pytest

from ngramstore.keys import keys_from_config

V41 = {
    "engram_layer_ids": [1, 14],
    "engram_max_ngram_size": 4,
    "engram_vocab_size": 16000000,
    "engram_n_heads": 8,
    "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99092,
}
DEMO = V41 | {"engram_layer_ids": [1, 15], "engram_max_ngram_size": 3, "engram_vocab_size": 129280 * 5}
LONGCAT = {
    "vocab_size": 131072,
    "ngram_vocab_size_ratio": 78,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "eos_token_id": 2,
}


def tokens(vocab_size: int, *, eos: int | None = None) -> np.ndarray:
    """(2, 120) ids that use the whole vocabulary; every seventh is the EOS, if there is one."""
    i = np.arange(240)
    ids = (i * i * 7919 + 104729 * i + 1) % vocab_size
    if eos is not None:
        ids[::7] = eos
    return ids.reshape(2, 120)


def digest(rows: np.ndarray) -> str:
    return blake2b(np.ascontiguousarray(rows).astype("<i8").tobytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("config", "heads", "sample", "wanted"),
    [
        (V41, [0, 23, 24, 47], [14670707, 370343045, 398552267, 767629765], "df7c49fc2186a7cd7b25d177729af1d5"),
        (DEMO, [0, 15, 16, 31], [532796, 9902507, 10773746, 20205160], "984179da6bf493050b78c22fa69ae09b"),
    ],
    ids=["V4.1", "demo"],
)
def test_engram_rows_are_those_of_deepseek_s_own_code(config, heads, sample, wanted):
    keys = keys_from_config(config, token_map=np.arange(129280) * 31 % 99092)
    rows = keys.rows(tokens(129280))
    assert rows[1, 50, heads].tolist() == sample
    assert digest(rows) == wanted


def test_longcat_rows_are_those_of_meituan_s_own_code():
    rows = keys_from_config(LONGCAT).rows(tokens(131072, eos=2))
    assert rows[1, 50, [0, 4, 8, 11]].tolist() == LONGCAT_SAMPLE
    assert digest(rows) == LONGCAT_DIGEST


LONGCAT_SAMPLE = [6275960, 47162256, 88048584, 118713351]
LONGCAT_DIGEST = "87da81d8ca33841ae3d1f2d9e663af33"


@pytest.mark.parametrize("table", [0, 1])
@pytest.mark.parametrize("base", [50, 20_000_000])
def test_qwen_rows_are_those_of_transformers(table, base, monkeypatch):
    """The class itself answers; in place of its embedding stands one that gives back the row numbers it is asked for."""
    modeling = pytest.importorskip("transformers.models.qwen4_exp.modeling_qwen4_exp")
    import torch

    class Echo(torch.nn.Module):
        def __init__(self, num_rows: int, _dim: int) -> None:
            super().__init__()
            self.num_rows = num_rows
            self.weight = torch.zeros(1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows[..., None]

    monkeypatch.setattr(modeling.nn, "Embedding", Echo)
    config = {
        "vocab_size": 248320,
        "ngram_size": 3,
        "heads_per_ngram": 8,
        "ngram_vocab_size_base": base,
        "ple_layer_ids": [2, 5],
        "make_ngram_vocab_size_divisible_by": 128,
        "eos_token_id": 248044,
        "seed": 1234,
    }
    theirs = modeling.Qwen4ExpTextNGramEmbedding(SimpleNamespace(**config), 2560, 1, table)
    keys = keys_from_config(config | {"model_type": "qwen4_exp_text"})
    ids = tokens(248320, eos=248044)
    wanted = theirs(torch.from_numpy(ids), None).numpy()
    ours = (keys.rows(ids) - keys.first_rows)[..., 16 * table : 16 * table + 16]
    assert (ours == wanted).all()
    assert keys.tables[table].num_rows == theirs.ngram_embedding.num_rows
