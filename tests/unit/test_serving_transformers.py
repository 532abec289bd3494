"""Transformers models on a store: every way to generate gives the tokens of a model that recomputes everything from a dict.

The reference keeps no cache and looks at the whole sequence at every step; its vectors come from `serving_cases.vectors`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from serving_cases import table, vectors, write

import ngramstore
from ngramstore.errors import FormatError, LookupTimeout, StaleStore, UsageError

transformers = pytest.importorskip("transformers")

from transformers import DynamicCache, StaticCache  # noqa: E402

from ngramstore_transformers import attach, attached, detach, load_reference, record, save_reference  # noqa: E402

VOCAB, DIM, PAD = 24, 32, 23
COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD}
LLAMA = {
    "hidden_size": DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}


def make(kind, seed=0):
    """A small model with random weights whose tokens depend on its input."""
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=DIM, n_layer=2, n_head=2, n_positions=128, **COMMON)
    else:
        maker = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config"}[kind]
        config = getattr(transformers, maker)(**LLAMA, **COMMON)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return model


ROWS = table(dim=DIM, vocab=VOCAB - 1, per_length=150)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with ngramstore.open(write(tmp_path_factory.mktemp("transformers") / "store", ROWS)) as opened:
        yield opened


def from_scratch(model):
    """A copy that computes every vector from the whole sequence and the dict, at each call, without a cache."""
    reference = copy.deepcopy(model)
    own = reference.get_input_embeddings().weight.detach().numpy()
    plain_forward = type(reference).forward

    @functools.wraps(plain_forward)
    def forward(self, input_ids=None, attention_mask=None, **options):
        assert options.get("past_key_values") is None and options.get("cache") is None
        mask = None if attention_mask is None else attention_mask.numpy()
        embeds = torch.from_numpy(vectors(ROWS, own, input_ids.numpy(), mask))
        return plain_forward(self, inputs_embeds=embeds, attention_mask=attention_mask, **options)

    reference.forward = functools.partial(forward, reference)
    functools.update_wrapper(reference.forward, plain_forward)
    return reference


def prompts(B=3, T=9, seed=0):
    """Prompts made of stored n-grams, left-padded by different amounts."""
    rng = np.random.default_rng(seed)
    ngrams = list(ROWS)
    lines = [np.concatenate([ngrams[i] for i in rng.integers(0, len(ngrams), 6)])[:T] for _ in range(B)]
    ids = torch.from_numpy(np.stack(lines))
    mask = torch.ones_like(ids)
    for b in range(B):
        mask[b, : 2 * b] = 0
        ids[b, : 2 * b] = PAD
    return {"input_ids": ids, "attention_mask": mask}


MODES = {
    "greedy": {},
    "greedy, no cache": {"use_cache": False},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 10},
    "sampling, no cache": {"do_sample": True, "use_cache": False},
    "beam search": {"num_beams": 3},
    "beam search, no cache": {"num_beams": 3, "use_cache": False},
    "beam search, 2 results": {"num_beams": 4, "num_return_sequences": 2},
    "chunked prefill": {"prefill_chunk_size": 4},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}
KINDS = ["gpt2", "llama", "qwen2", "qwen3"]


@functools.cache
def wanted(kind, mode, B):
    options = {k: v for k, v in MODES[mode].items() if k not in ("prefill_chunk_size", "cache_implementation")}
    reference = from_scratch(make(kind))
    torch.manual_seed(7)
    return reference.generate(**prompts(B), max_new_tokens=14, **{**options, "use_cache": False})


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_generate_gives_the_tokens_of_the_from_scratch_model(store, kind, mode, B):
    model = make(kind)
    attach(model, store)
    torch.manual_seed(7)
    got = model.generate(**prompts(B), max_new_tokens=14, **MODES[mode])
    assert torch.equal(got, wanted(kind, mode, B))
    stats = attached(model).stats.as_dict()
    assert stats["found"] > 0  # n-grams did take part


@pytest.mark.parametrize("kind", KINDS)
def test_assisted_decoding_gives_the_same_tokens(store, kind):
    model, assistant = make(kind), make(kind, seed=1)
    attach(model, store)
    want = wanted(kind, "greedy", 1)
    assert torch.equal(model.generate(**prompts(1), max_new_tokens=14, assistant_model=assistant), want)
    assert torch.equal(model.generate(**prompts(1), max_new_tokens=14, prompt_lookup_num_tokens=3), want)
    twin = make(kind)  # an assistant that is always right, on the same store
    attach(twin, store)
    assert torch.equal(model.generate(**prompts(1), max_new_tokens=14, assistant_model=twin), want)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_loop_of_ones_own_agrees_with_generate(store, kind):
    """No `generate` on the reference's side: vectors from the dict, all logits anew, argmax."""
    model = make(kind)
    own = model.get_input_embeddings().weight.detach().numpy()
    ids = prompts(1)["input_ids"]
    for _ in range(14):
        with torch.no_grad():
            logits = model(inputs_embeds=torch.from_numpy(vectors(ROWS, own, ids.numpy()))).logits
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
    attach(model, store)
    assert torch.equal(model.generate(prompts(1)["input_ids"], max_new_tokens=14), ids)


@pytest.mark.parametrize("size", [1, 5])
def test_a_loop_that_writes_its_steps_into_one_buffer_gets_the_vectors_of_the_tokens_it_gave(store, size):
    """Ids and mask of a call are the caller's: the record of the cache keeps a copy."""
    model = make("llama")
    attach(model, store)
    ids = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(3))
    want = model(input_ids=ids).logits
    cache, buffer, logits = transformers.DynamicCache(), torch.empty((2, size), dtype=torch.int64), []
    mask = torch.ones_like(buffer)
    for at in range(0, 20, size):
        buffer.copy_(ids[:, at : at + size])
        mask.fill_(1)
        options = {"attention_mask": mask} if at == 0 else {}
        logits.append(model(input_ids=buffer, past_key_values=cache, use_cache=True, **options).logits)
        mask.fill_(0)
    torch.testing.assert_close(torch.cat(logits, 1), want, rtol=1e-3, atol=1e-4)


def test_generation_without_the_store_would_differ(store):
    assert not torch.equal(make("llama").generate(**prompts(), max_new_tokens=14), wanted("llama", "greedy", 3))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_in_steps_with_a_cache_is_forward_at_once(store, kind):
    model = make(kind)
    attach(model, store)
    inputs = prompts(3, 12)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        want = from_scratch(make(kind))(**inputs).logits[mask.bool()]
        got = model(**inputs).logits[mask.bool()]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        past, parts = None, []
        for first, last in ((0, 5), (5, 6), (6, 7), (7, 12)):
            out = model(
                ids[:, first:last],
                attention_mask=mask[:, :last],
                position_ids=position[:, first:last],
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            parts.append(out.logits)
        stepwise = torch.cat(parts, 1)[mask.bool()]
        whole = model(**inputs, position_ids=position).logits[mask.bool()]
    torch.testing.assert_close(stepwise, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_cache_that_is_reordered_copied_and_cropped_keeps_its_tokens(store, seed):
    model = make("llama")
    attach(model, store)
    ids = torch.randint(0, VOCAB - 1, (3, 10), generator=torch.Generator().manual_seed(seed))
    more = torch.randint(0, VOCAB - 1, (3, 4), generator=torch.Generator().manual_seed(seed + 50))
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        for _ in range(2):
            past = copy.deepcopy(past)
            past.reorder_cache(torch.tensor([2, 0, 0]))
            ids = ids[[2, 0, 0]]
        past.batch_select_indices(torch.tensor([1, 2]))
        past.batch_repeat_interleave(2)
        ids = ids[[1, 1, 2, 2]]
        before = past.get_seq_length()
        past.crop(-3)
        ids = ids[:, : past.get_seq_length()]
        assert ids.shape[1] < before
        new = more[[0, 1, 2, 0]]
        got = model(new, past_key_values=past).logits
        want = from_scratch(make("llama"))(torch.cat((ids, new), 1)).logits[:, -4:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_hole_in_the_mask_wider_than_an_ngram_is_looked_across(store, seed):
    model = make("llama")
    attach(model, store)
    ids = torch.randint(0, VOCAB - 1, (2, 16), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 5:11] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        past = model(ids[:, :11], attention_mask=mask[:, :11], position_ids=position[:, :11], use_cache=True)
        rest = {"attention_mask": mask, "position_ids": position[:, 11:], "past_key_values": past.past_key_values}
        got = model(ids[:, 11:], **rest).logits
        want = from_scratch(make("llama"))(ids, attention_mask=mask, position_ids=position).logits[:, 11:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


CACHE_NAMES = sorted(
    {"cache", "past_key_values"}
    & {*inspect.signature(transformers.LlamaForCausalLM.forward).parameters, "past_key_values"}
)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_counts_by_every_name_that_transformers_takes(store, name):
    """Release 5.24 renamed the argument; a cache that is overlooked loses the tokens before it without a sound."""
    model = make("llama")
    attach(model, store)
    ids = prompts(1)["input_ids"]
    with torch.no_grad():
        output = model(ids[:, :6], use_cache=True)
        past = next(value for value in output.values() if isinstance(value, transformers.Cache))
        got = model(ids[:, 6:], **{name: past}).logits
        want = from_scratch(make("llama"))(ids).logits[:, 6:]
        plain = make("llama")(ids).logits[:, 6:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)


def test_a_cache_filled_by_somebody_else_is_refused(store):
    model = make("llama")
    ids = prompts(1)["input_ids"]
    past = model(ids, use_cache=True).past_key_values
    attach(model, store)
    with pytest.raises(UsageError, match="on record is nothing"):
        model(ids[:, :1], past_key_values=past)


def test_generation_continues_from_a_returned_cache(store):
    model = make("qwen2")
    attach(model, store)
    ids = prompts(1)["input_ids"]
    first = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, return_dict_in_generate=True)
    mask = torch.ones_like(first.sequences)
    past = first.past_key_values
    rest = model.generate(first.sequences, attention_mask=mask, past_key_values=past, max_new_tokens=9)
    assert torch.equal(rest, wanted("qwen2", "greedy", 1))


def test_detach_gives_the_plain_model_back(store):
    model = make("gpt2")
    own_class, want = type(model), model(**prompts()).logits
    attach(model, store)
    assert isinstance(model, own_class) and not torch.equal(model(**prompts()).logits, want)
    detach(model)
    assert type(model) is own_class
    assert torch.equal(model(**prompts()).logits, want)
    with pytest.raises(UsageError, match="no store"):
        detach(model)


def test_the_token_table_trains_where_no_ngram_matched(store):
    model = make("llama").train()
    attach(model, store)
    ids = prompts(1)["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    lengths = store.match(ids.numpy())
    unmatched = set(ids.numpy()[lengths < 2].tolist())
    touched = set(torch.nonzero(model.get_input_embeddings().weight.grad.abs().sum(1))[:, 0].tolist())
    assert unmatched and touched == unmatched


def test_a_copied_and_a_pickled_model_answer_the_same(store):
    model = make("llama")
    attach(model, store)
    want = model(**prompts()).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**prompts()).logits, want)
    assert attached(twin).token_embedding is twin.get_input_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(**prompts()).logits, want)
    assert torch.equal(pickle.loads(pickle.dumps(twin))(**prompts()).logits, want)


def test_a_model_folder_names_its_store_and_checks_it(store, tmp_path):
    model = make("gpt2")
    attach(model, store, min_length=3)
    want = model.generate(**prompts(), max_new_tokens=8)
    model.save_pretrained(tmp_path)
    save_reference(model, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again).__name__ == "GPT2LMHeadModel"
    with load_reference(again, tmp_path).store:
        assert torch.equal(again.generate(**prompts(), max_new_tokens=8), want)
    detach(again)
    other = write(tmp_path / "other", table(seed=9, dim=DIM))
    with pytest.raises(StaleStore):
        load_reference(again, tmp_path, store=other)
    reference = json.loads((tmp_path / "ngramstore.json").read_text())
    del reference["crc32"]
    for bad in ({**reference, "version": 2}, {**reference, "store": 7}, {"format": "x"}, []):
        (tmp_path / "ngramstore.json").write_text(json.dumps(bad))
        with pytest.raises(FormatError):
            load_reference(again, tmp_path)
    assert attached(again) is None


def test_every_flipped_bit_of_a_reference_is_noticed_or_changes_nothing(store, tmp_path):
    """The store's identity says nothing of `min_length`."""
    model = make("gpt2")
    attach(model, store, min_length=3)
    save_reference(model, tmp_path)
    detach(model)
    path = tmp_path / "ngramstore.json"
    text = path.read_bytes()

    def loaded() -> tuple[str, int]:
        embedding = load_reference(model, tmp_path, probe=False)
        with embedding.store:
            detach(model)
            return str(embedding.store.path), embedding.min_length

    want, num_unharmed = loaded(), 0
    for bit in range(8 * len(text)):
        bad = bytearray(text)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            assert loaded() == want
        except FormatError:
            continue
        num_unharmed += 1
    assert num_unharmed < 100  # the checksum's own name, and white space
    older = json.loads(text)
    del older["crc32"]
    path.write_text(json.dumps(older))
    assert loaded() == want


def test_a_store_inside_the_model_folder_is_named_from_there_however_both_are_written(store, tmp_path, monkeypatch):
    del store
    (tmp_path / "model" / "sub").mkdir(parents=True)
    write(tmp_path / "model" / "table", table(dim=DIM))
    monkeypatch.chdir(tmp_path / "model" / "sub")
    model = make("gpt2")
    with ngramstore.open("../table") as inside:
        attach(model, inside)
        save_reference(model, "../../model")
    assert json.loads((tmp_path / "model" / "ngramstore.json").read_text())["store"] == "table"


def test_what_cannot_work_is_refused(store):
    model = make("gpt2")
    attach(model, store)
    with pytest.raises(UsageError, match="has a store already"):
        attach(model, store)
    with pytest.raises(UsageError, match="by keyword"):
        model(prompts()["input_ids"], None)
    with pytest.raises(UsageError, match="attention_mask"):
        model(prompts()["input_ids"], attention_mask=torch.ones(3, 1, 9, 9))
    with pytest.raises(UsageError, match="attention_mask has type dict"):
        model(prompts()["input_ids"], attention_mask={"full_attention": None})
    with pytest.raises(UsageError, match="attention_mask"):
        model(prompts()["input_ids"], attention_mask=torch.ones(3, 8))
    cache = model(prompts()["input_ids"]).past_key_values
    for shape in ((3, 1, 1, 10), (3, 7)):
        with pytest.raises(UsageError, match="attention_mask"):
            model(prompts()["input_ids"][:, :1], attention_mask=torch.ones(shape), past_key_values=cache)
    narrow = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=1, **COMMON))
    with pytest.raises(UsageError, match="32 wide"):
        attach(narrow, store)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=DIM, d_ff=8, d_kv=8, num_layers=1, num_heads=1, **COMMON)
    )
    with pytest.raises(UsageError, match="encoder-decoder"):
        attach(t5, store)


def test_a_step_whose_look_up_failed_can_be_tried_again(store, monkeypatch):
    model = make("llama")
    embedding = attach(model, store)
    ids = prompts(1)["input_ids"]
    with torch.no_grad():
        past = model(ids[:, :6], use_cache=True).past_key_values
        with monkeypatch.context() as broken:
            broken.setattr(embedding, "_fetch", raise_timeout)
            with pytest.raises(LookupTimeout):
                model(ids[:, 6:8], past_key_values=past)
        got = model(ids[:, 6:8], past_key_values=past).logits
        want = from_scratch(make("llama"))(ids[:, :8]).logits[:, 6:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def raise_timeout(*arguments):
    raise LookupTimeout("a slow disk")


def test_the_model_s_token_embedding_may_be_replaced(store):
    model, ids = make("llama"), prompts(1)["input_ids"]
    attach(model, store)
    model.set_input_embeddings(torch.nn.Embedding(VOCAB, DIM))
    with torch.no_grad():
        got = model(ids).logits
        want = from_scratch(detached(model))(ids).logits
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    model.set_input_embeddings(torch.nn.Embedding(VOCAB, DIM + 1))
    with pytest.raises(UsageError, match="is 33 wide now"):
        model(ids)


def detached(model):
    twin = copy.deepcopy(model)
    detach(twin)
    return twin


def test_a_state_that_is_no_cache_is_refused_and_generate_goes_without(store):
    """RWKV's state says nothing of the tokens behind it: gone on from, n-grams would end at its edge without a word."""
    torch.manual_seed(0)
    config = transformers.RwkvConfig(hidden_size=DIM, num_hidden_layers=2, context_length=64, **COMMON)
    model = transformers.RwkvForCausalLM(config).eval()
    reference, tokens = from_scratch(model), torch.tensor([[*next(ngram for ngram in ROWS if len(ngram) == 3), 5, 2]])
    attach(model, store)
    first = model(tokens[:, :2], use_cache=True)
    torch.testing.assert_close(model(tokens).logits, reference(tokens).logits)
    with pytest.raises(UsageError, match="state is a list, no Cache"):
        model(tokens[:, 2:], state=first.state, use_cache=True)
    want = reference.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(tokens, max_new_tokens=8, do_sample=False), want)


@pytest.mark.parametrize("name", ["past_buckets_states", "past_key_values", "cache", "cache_params", "mems", "state"])
def test_a_state_by_whatever_name_that_is_no_cache_is_refused(store, name):
    """Of Reformer, of releases with tuples of keys and values, of xLSTM, XLNet and RWKV."""
    model = make("llama")
    attach(model, store)
    with pytest.raises(UsageError, match=f"{name} is a tuple, no Cache"):
        model(prompts(1)["input_ids"], **{name: ((torch.zeros(1), torch.zeros(1)),)})


@pytest.fixture
def mamba():
    """Its cache is a running state, which does not count positions."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(hidden_size=DIM, state_size=8, num_hidden_layers=2, **COMMON)
    return transformers.MambaForCausalLM(config).eval()


def cache_of(output):
    return next(value for value in output.values() if isinstance(value, transformers.Cache))


def test_a_cache_that_does_not_count_its_positions_is_stepped_with(store, mamba):
    reference, ids = from_scratch(mamba), prompts(1)["input_ids"]
    attach(mamba, store)
    with torch.no_grad():
        output = mamba(ids[:, :4], use_cache=True)
        past, parts = cache_of(output), [output.logits]
        for new in ids[:, 4:].split(1, 1):
            parts.append(mamba(new, **{CACHE_NAMES[0]: past}, use_cache=True).logits)
        torch.testing.assert_close(torch.cat(parts, 1), reference(ids).logits, atol=1e-4, rtol=1e-4)
        past.reset()
        again = mamba(ids, **{CACHE_NAMES[0]: past}, use_cache=True).logits
        torch.testing.assert_close(again, reference(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generate_with_a_cache_that_does_not_count_its_positions_gives_the_same_tokens(store, mamba, options):
    given = {"max_new_tokens": 14, "do_sample": False, **options}
    want = from_scratch(mamba).generate(prompts(1)["input_ids"], use_cache=False, **given)
    attach(mamba, store)
    assert torch.equal(mamba.generate(prompts(1)["input_ids"], **given), want)


def test_a_running_state_made_by_somebody_else_is_refused(store, mamba):
    ids = prompts(1)["input_ids"]
    past = cache_of(mamba(ids, use_cache=True))
    attach(mamba, store)
    with pytest.raises(UsageError, match="on record is nothing"):
        mamba(ids[:, :1], **{CACHE_NAMES[0]: past}, use_cache=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_static", [False, True], ids=["dynamic", "static"])
def test_of_a_mask_for_all_that_will_come_the_first_columns_count(store, kind, is_static):
    """As in Transformers' sdpa and eager attention: columns are positions from the left, whatever has been computed yet."""
    model, given = make(kind), prompts(T=12)
    ids, mask = given["input_ids"], given["attention_mask"]
    attach(model, store)

    def chunked(mask_of) -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=16) if is_static else DynamicCache()
        with torch.no_grad():
            parts = [
                model(ids[:, at : at + 4], attention_mask=mask_of(at + 4), past_key_values=cache).logits
                for at in (0, 4, 8)
            ]
        return torch.cat(parts, 1)

    whole = torch.cat((mask, torch.zeros(3, 4, dtype=mask.dtype)), 1)
    want = chunked(lambda end: mask[:, :end])[mask.bool()]
    torch.testing.assert_close(chunked(lambda end: mask)[mask.bool()], want)
    torch.testing.assert_close(chunked(lambda end: whole)[mask.bool()], want)


def test_a_cache_whose_first_layer_keeps_nothing_counts_what_the_others_hold():
    """MiniMax's linear layers: the cache is filled with empty layers up to the first that keeps keys."""
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 5, 4), torch.zeros(2, 1, 5, 4), 1)
    assert cache.get_seq_length() == 0
    assert record.length(cache) == 5
    record.write(cache, torch.zeros(2, 5, dtype=torch.long), None)
    cache.crop(-2)
    assert record.length(cache) == 3
    assert record.continued(cache, 3, torch.ones(2, 1, dtype=torch.long), None)[0].tolist() == [[0, 0, 0, 1]] * 2


def test_a_model_that_generates_from_other_tokens_is_refused(store):
    """XLM puts a mask token behind the sequence: the vectors of the last ids would be of other positions."""
    config = transformers.XLMConfig(emb_dim=DIM, n_layers=1, n_heads=2, n_langs=1, mask_token_id=3, **COMMON)
    model = transformers.XLMWithLMHeadModel(config).eval()
    attach(model, store, probe=False)
    with pytest.raises(UsageError, match="other tokens than the last of its ids"):
        model.generate(prompts(B=1)["input_ids"], max_new_tokens=2)


@pytest.mark.parametrize(("deltas", "images"), [(None, True), (torch.ones(1, 1), False)])
def test_positions_around_images_are_not_left_to_a_model_without_ids(store, monkeypatch, deltas, images):
    """As Qwen2-VL's: it computes them from ids and images, and without ids takes what an earlier call left."""
    model = make("llama")
    attach(model, store)
    ids = prompts()["input_ids"]
    monkeypatch.setattr(type(model.base_model), "compute_3d_position_ids", lambda *given: None, raising=False)
    model(ids)
    model.base_model.rope_deltas = deltas
    inputs = {"image_grid_thw": torch.ones(1, 3)} if images else {}
    with pytest.raises(UsageError, match="give position_ids"):
        model(ids, **inputs)
    model(ids, position_ids=torch.arange(9)[None])
    model.base_model.rope_deltas = torch.zeros(3, 1)  # what generate leaves of text alone
    model(ids)


def test_what_wraps_a_model_is_refused(store):
    for wrap in (torch.compile, torch.nn.DataParallel):
        with pytest.raises(UsageError, match="attach the model itself"):
            attach(wrap(make("gpt2")), store)


def test_a_replica_of_data_parallel_reads_a_table_of_its_own(store, monkeypatch):
    """Replicas run in threads, and share what lies beside the model's modules."""
    model, ids = make("gpt2"), prompts()["input_ids"]
    embedding = attach(model, store)
    want = model(ids).logits
    replica = model._replicate_for_data_parallel()
    inner = replica._modules["transformer"] = model.transformer._replicate_for_data_parallel()
    inner._modules["wte"] = torch.nn.Embedding(VOCAB, DIM)
    with torch.no_grad():
        assert not torch.equal(replica(ids).logits, want)
    assert embedding.token_embedding is model.get_input_embeddings()
    assert attached(model) is embedding and attached(replica) is not embedding
    assert torch.equal(model(ids).logits, want)
