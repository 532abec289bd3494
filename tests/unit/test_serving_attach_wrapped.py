"""What others do to an attached model: a step that fails within it, a `forward` put in front, activations computed twice."""

from __future__ import annotations

import functools

import pytest
import torch
from serving_cases import table, write
from test_serving_transformers import DIM, VOCAB, from_scratch, make, prompts

import ngramstore

transformers = pytest.importorskip("transformers")

from ngramstore_transformers import attach, detach  # noqa: E402

ROWS = table(dim=DIM, vocab=VOCAB - 1, per_length=150)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with ngramstore.open(write(tmp_path_factory.mktemp("wrapped") / "store", ROWS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def full_store(tmp_path_factory):
    """Every single token has a row."""
    rows = {**{(token,): torch.randn(DIM).numpy() for token in range(VOCAB)}, **ROWS}
    with ngramstore.open(write(tmp_path_factory.mktemp("full") / "store", rows)) as opened:
        yield opened


def fail(*arguments):
    raise RuntimeError("out of memory")


def test_a_step_that_failed_in_the_model_can_be_tried_again(store):
    model = make("llama")
    attach(model, store)
    ids = prompts(1)["input_ids"]
    with torch.no_grad():
        past = model(ids[:, :6], use_cache=True).past_key_values
        hook = model.model.layers[0].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(ids[:, 6:8], past_key_values=past)
        hook.remove()
        got = model(ids[:, 6:8], past_key_values=past).logits
        want = from_scratch(make("llama"))(ids[:, :8]).logits[:, 6:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_forward_put_in_front_since_attach_is_the_plain_model_s_after_detach(store):
    model, ids = make("llama"), prompts(1)["input_ids"]
    attach(model, store)
    ours, prepare = model.forward, model.prepare_inputs_for_generation
    model.forward = functools.wraps(ours)(functools.partial(ours))
    model.prepare_inputs_for_generation = functools.wraps(prepare)(functools.partial(prepare))
    detach(model)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, make("llama")(ids).logits)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert model.generate(ids, **options).tolist() == make("llama").generate(ids, **options).tolist()


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_activations_computed_twice_give_all_gradients_though_every_token_has_a_row(full_store, is_reentrant):
    model, plain = make("llama").train(), make("llama").train()
    attach(model, full_store, min_length=1)
    ids = prompts(1)["input_ids"]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": is_reentrant})
    model(input_ids=ids, labels=ids).loss.backward()
    attach(plain, full_store, min_length=1)
    plain(input_ids=ids, labels=ids).loss.backward()
    for (name, got), want in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert got.grad is not None, name
        torch.testing.assert_close(got.grad, want.grad)


def test_only_some_weights_train_behind_rows_alone(full_store):
    """What training adapters asks for: the hook that makes T's output need a gradient has an output to do it to."""
    model = make("llama").train()
    attach(model, full_store, min_length=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ids = prompts(1)["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters() if "q_proj" in name)
