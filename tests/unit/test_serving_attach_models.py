"""Which models `attach` takes: those that generate, take inputs_embeds, and read token ids for nothing else."""

from __future__ import annotations

import pytest
import torch
from serving_cases import table, write

import ngramstore
from ngramstore.errors import UsageError

transformers = pytest.importorskip("transformers")

from ngramstore_transformers import attach, attached, detach  # noqa: E402

VOCAB, DIM = 24, 32
COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 23}
GPT2 = {"n_embd": DIM, "n_layer": 2, "n_head": 2, "n_positions": 64, **COMMON}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """No n-gram of it has a token above 19."""
    rows = table(dim=DIM, vocab=20)
    with ngramstore.open(write(tmp_path_factory.mktemp("models") / "store", rows)) as opened:
        yield opened


def random(model, seed=0):
    """The model with random weights, none of them zero, as after training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"])
def test_a_model_that_does_not_generate_is_refused_and_left_as_it_was(store, name):
    """A classifier finds its last token by the ids; a base model has no step for `generate` to prepare."""
    own = getattr(transformers, name)
    model = random(own(transformers.GPT2Config(**GPT2)))
    for _ in range(2):
        with pytest.raises(UsageError, match=f"{name} does not generate"):
            attach(model, store)
        assert type(model) is own and attached(model) is None
    with pytest.raises(UsageError, match="no store"):
        detach(model)


def test_detach_leaves_a_class_alone_that_attach_did_not_put_there(store):
    model = random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
    attach(model, store)
    ours = type(model)

    class Theirs(ours):
        pass

    model.__class__ = Theirs
    with pytest.raises(UsageError, match="Theirs"):
        detach(model)
    assert type(model) is Theirs and attached(model) is not None
    model.__class__ = ours
    detach(model)
    assert type(model) is transformers.GPT2LMHeadModel
