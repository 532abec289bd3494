"""Which models `attach` takes: those that generate, take inputs_embeds, and read token ids for nothing else."""

from __future__ import annotations

import contextlib

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


GEMMA = {
    "hidden_size": DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    **COMMON,
}
"""Small, with a second table that every layer reads."""


def gemma3n():
    """It adds vectors of a second table to every layer, by the ids: none for a caller that gives inputs_embeds."""
    config = transformers.Gemma3nTextConfig(head_dim=16, laurel_rank=8, **GEMMA)
    return transformers.Gemma3nForCausalLM(config)


def test_logits_where_no_ngram_ends_are_the_plain_model_s_or_the_model_is_refused(store):
    """Of every kind of model: what is read from ids beside the token embedding must not go missing."""
    ids = torch.tensor([[21, 22, 21, 20]])
    for model in (random(gemma3n()), random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))):
        want = model(ids).logits
        with contextlib.suppress(UsageError):
            attach(model, store)
        assert torch.equal(model(ids).logits, want)


def test_a_second_table_that_is_read_by_ids_is_named_also_where_it_makes_no_difference_yet(store):
    """A new Gemma 3n scales what the table adds with zero, until it is trained."""
    torch.manual_seed(0)
    for model in (gemma3n(), random(gemma3n())):
        with pytest.raises(UsageError, match=r"reads token ids for more.*embed_tokens_per_layer"):
            attach(model, store)
        assert type(model) is transformers.Gemma3nForCausalLM and attached(model) is None


class Doubled(transformers.GPT2LMHeadModel):
    """Vectors from ids are scaled, those of the caller are not; no module of its own is in it."""

    def forward(self, input_ids=None, inputs_embeds=None, **options):
        if inputs_embeds is None:
            inputs_embeds = 2 * self.get_input_embeddings()(input_ids)
        return super().forward(inputs_embeds=inputs_embeds, **options)


class Padded(Doubled):
    """Positions count from the first id that is no padding, as RoBERTa's do."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **options):
        if input_ids is not None:
            is_token = input_ids != self.config.pad_token_id
            options["position_ids"] = (is_token.cumsum(1) - 1).clamp(min=0)
            inputs_embeds = self.get_input_embeddings()(input_ids)
        return transformers.GPT2LMHeadModel.forward(
            self, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **options
        )


class Idonly(Doubled):
    """Takes no vectors."""

    def forward(self, input_ids, **options):
        return transformers.GPT2LMHeadModel.forward(self, input_ids, **options)


class Pictures(Doubled):
    """Wants more than ids."""

    def forward(self, input_ids=None, pixel_values=None, **options):
        if pixel_values is None:
            raise ValueError("no picture")
        return transformers.GPT2LMHeadModel.forward(self, input_ids, **options)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (Doubled, "reads token ids for more.*logits"),
        (Padded, "reads token ids for more.*logits"),
        (Idonly, "takes no inputs_embeds"),
        (Pictures, "no picture"),
    ],
)
def test_a_model_that_would_answer_otherwise_is_refused(store, own, why):
    model = random(own(transformers.GPT2Config(**GPT2)))
    with pytest.raises(UsageError, match=why):
        attach(model, store)
    assert type(model) is own and attached(model) is None
    attach(model, store, probe=False)
    detach(model)


class Lazy(torch.nn.Module):
    """Makes a part of itself at its first call, and remembers that it has."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if not hasattr(self, "is_ready"):
            self.extra, self.is_ready = torch.nn.Identity(), True
        return self.extra(self.inner(x))


def test_a_model_that_makes_parts_of_itself_at_its_first_call_still_does_after_the_probe(store):
    model = random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)))
    lazy = model.transformer.h[0].mlp = Lazy(model.transformer.h[0].mlp)
    attach(model, store)
    assert not hasattr(lazy, "is_ready")
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert lazy.is_ready


def test_the_probe_leaves_the_model_and_the_random_numbers_as_they_were(store):
    model = random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))).train()
    model.transformer.h[0].eval()
    calls, flags = [], [module.training for module in model.modules()]
    model.lm_head.register_forward_hook(lambda *_: calls.append(model.lm_head.training))
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    attach(model, store)
    assert torch.equal(torch.rand(3), want)
    assert [module.training for module in model.modules()] == flags and set(calls) == {False}
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_attends_otherwise_to_few_tokens_passes_the_probe_and_keeps_its_ways_with_many(store):
    """BigBird puts other modules in the place of its own at the first input that is short, and leaves them there."""
    config = transformers.BigBirdConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        block_size=4,
        num_random_blocks=1,
        is_decoder=True,
        use_cache=False,
        **COMMON | {"eos_token_id": 2, "sep_token_id": 3},
    )
    model = random(transformers.BigBirdForCausalLM(config))
    model.train()
    modules, ids = list(model.modules()), torch.tensor([[20, 21, 22, 20, 22, 21, 20] * 8])
    attach(model, store)
    assert list(model.modules()) == modules and model.training
    assert model.bert.attention_type == model.bert.encoder.attention_type == "block_sparse"
    found = model.eval()(ids).logits
    detach(model)
    assert torch.equal(found, model(ids).logits)
    model.bert.set_attention_type("original_full")
    assert not torch.allclose(found, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_narrow_types_pass_the_probe(store, dtype):
    attach(random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))).to(dtype), store)


def test_a_model_without_weights_yet_cannot_be_probed(store):
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    with pytest.raises(UsageError, match="no weights yet"):
        attach(model, store)
    attach(model, store, probe=False)


def gemma4():
    """It finds the ids of vectors again in its table, so it takes no others."""
    config = transformers.Gemma4TextConfig(**GEMMA)
    return transformers.Gemma4ForCausalLM(config)


@pytest.mark.skipif(not hasattr(transformers, "Gemma4ForCausalLM"), reason="this release has no Gemma 4")
def test_a_model_that_takes_only_vectors_of_its_own_table_is_refused(store):
    model = random(gemma4())
    with pytest.raises(UsageError, match="only vectors of its own table"):
        attach(model, store)
    assert attached(model) is None
