"""What callers hand to a model with a store: several documents in one line, ids on another device than the model."""

from __future__ import annotations

import copy
import functools
from typing import ClassVar

import pytest
import torch
from serving_cases import table, write

import ngramstore
from ngramstore.errors import UsageError

transformers = pytest.importorskip("transformers")

from ngramstore_transformers import attach, detach, record  # noqa: E402

VOCAB, DIM = 24, 32
ROWS = table(dim=DIM, vocab=VOCAB, per_length=60)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with ngramstore.open(write(tmp_path_factory.mktemp("inputs") / "store", ROWS)) as opened:
        yield opened


@pytest.fixture
def model(store):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=None,
        pad_token_id=VOCAB - 1,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    attach(made, store)
    return made


def across():
    """A 3-gram a, b, c of the store whose b, c is no 2-gram: at a document's second token it must not be found."""
    return next(ngram for ngram in ROWS if len(ngram) == 3 and ngram[1:] not in ROWS)


@pytest.mark.parametrize("B", [1, 2])
def test_ngrams_end_where_positions_restart_in_a_packed_line(model, B):
    a, b, c = across()
    ids, position = torch.tensor([[7, a, b, c, 5]] * B), torch.tensor([[0, 1, 0, 1, 2]])
    with torch.no_grad():
        got = model(ids, position_ids=position, use_cache=False).logits
        first, second = (model(part, use_cache=False).logits for part in (ids[:, :2], ids[:, 2:]))
    torch.testing.assert_close(got, torch.cat((first, second), 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("told", [{}, {"return_flash_attn_kwargs": True, "return_position_ids": False}])
def test_the_documents_of_the_flattening_collator_are_kept_apart(model, told):
    """It says where they begin in positions, in cumulative lengths, or in both."""
    a, b, c = across()
    batch = transformers.DataCollatorWithFlattening(**told)([{"input_ids": [7, a]}, {"input_ids": [b, c, 5]}])
    seen = []
    model.model.register_forward_pre_hook(lambda _, given, named: seen.append(named["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        for given in (batch, {"input_ids": torch.tensor([[7, a]])}, {"input_ids": torch.tensor([[b, c, 5]])}):
            model(**given, use_cache=False)
    packed, *apart = seen
    assert torch.equal(packed, torch.cat(apart, 1))


def test_positions_that_only_go_on_start_no_document(model):
    ids = torch.tensor([[7, *across(), 5]])
    with torch.no_grad():
        got = model(ids, position_ids=torch.arange(5)[None] + 3, use_cache=False).logits
        want = model(ids, use_cache=False).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_positions_beside_a_mask_start_no_document(model):
    """Padding repeats positions: with a mask, they say nothing of documents."""
    a, b, c = across()
    mask, position = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[1, 1, 0, 1, 2]])
    with torch.no_grad():
        got = model(torch.tensor([[7, 7, a, b, c]]), attention_mask=mask, position_ids=position).logits[:, 2:]
        want = model(torch.tensor([[a, b, c]])).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_the_cache_of_a_packed_line_is_not_continued(model):
    """Which of its documents goes on is not known."""
    a, b, c = across()
    with torch.no_grad():
        output = model(torch.tensor([[7, a, b]]), position_ids=torch.tensor([[0, 1, 0]]), use_cache=True)
        past = next(value for value in output.values() if isinstance(value, transformers.Cache))
        with pytest.raises(UsageError, match="on record is nothing"):
            model(torch.tensor([[c]]), past_key_values=past)


class Ids(torch.Tensor):
    """Ids that note where they are moved to."""

    moves: ClassVar[list] = []

    def to(self, *arguments, **options):
        Ids.moves.extend([*arguments, *options.values()])
        return super().to(*arguments, **options)


def test_ids_are_moved_to_where_the_model_s_embedding_is(model):
    ids = torch.tensor([[7, *across(), 5]])
    for call in (model.forward, model.prepare_inputs_for_generation):
        Ids.moves.clear()
        call(ids.as_subclass(Ids))
        assert model.device in Ids.moves


def call_old(model, *arguments, **options):
    return model._old_forward(*arguments, **options)


def test_a_forward_that_the_model_has_of_its_own_reads_the_store_too(model, store):
    """As where weights are spread over devices, or `forward` was compiled in place: that goes past the class."""
    ids = torch.tensor([[7, *across(), 5]])
    want, tokens = model(ids).logits, model.generate(ids, max_new_tokens=6, do_sample=False)
    detach(model)
    plain, model._old_forward = model(ids).logits, model.forward
    model.forward = theirs = functools.update_wrapper(functools.partial(call_old, model), model.forward)
    attach(model, store)
    for one in (model, copy.deepcopy(model)):
        assert torch.equal(one(ids).logits, want) and torch.equal(one(input_ids=ids).logits, want)
        assert torch.equal(one.generate(ids, max_new_tokens=6, do_sample=False), tokens)
        detach(one)
        assert torch.equal(one(ids).logits, plain)
    assert model.forward is theirs


@pytest.mark.parametrize("mask", [None, torch.ones(2, 3, dtype=torch.long)])
def test_a_record_made_on_one_device_goes_on_with_ids_on_another(mask):
    """`generate` records ids where its caller had them; a step of one's own brings those of the model's device."""
    cache = transformers.DynamicCache()
    record.write(cache, torch.ones(2, 3, dtype=torch.long), mask)
    ids, mask = record.continued(cache, 3, torch.ones(2, 1, dtype=torch.long, device="meta"), None)
    assert ids.shape == (2, 4) and ids.is_meta and (mask is None or mask.is_meta)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_ids_on_the_host_generate_what_ids_on_the_gpu_do(model, options):
    model = model.to("cuda")
    ids = torch.tensor([[7, *across(), 5], [VOCAB - 1, *across(), 9]])
    mask = (ids != VOCAB - 1).long()
    given = {"max_new_tokens": 9, "do_sample": False, **options}
    want = model.generate(ids.cuda(), attention_mask=mask.cuda(), **given)
    assert torch.equal(model.generate(ids, attention_mask=mask, **given).cpu(), want.cpu())
    past = model(ids[:, :3], attention_mask=mask[:, :3], use_cache=True).past_key_values
    model(ids[:, 3:].cuda(), attention_mask=mask, past_key_values=past)
