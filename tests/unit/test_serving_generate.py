"""`ngramstore generate` and the loop behind it: the tokens of the live model, and numbers about serving."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch_cases import DECODER, language, plain, scone, shaken, vocabulary

import ngramstore
from ngramstore.errors import LookupTimeout, UsageError
from ngramstore.mine.tokenizers import load_tokenizer, train_bpe
from ngramstore_torch import NGramEmbedding, export_table, generate
from ngramstore_torch.cli import generate as cli_generate
from ngramstore_torch.export.table import SconeRows
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.serving.generation import choose, live_embedding
from ngramstore_torch.serving.loop import generate_served
from ngramstore_torch.training import checkpoint


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    vocab = vocabulary(*language())
    model = shaken(scone()).eval()
    path = tmp_path_factory.mktemp("generate") / "store"
    export_table(SconeRows(model), vocab, path, codec="f32")
    return model, vocab, path


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}, {"seed": 4, "candidates": 5, "chunk": 3}])
def test_served_tokens_are_those_of_the_live_model(case, options):
    model, vocab, path = case
    prompt = language()[0][:11]
    live = {k: v for k, v in options.items() if k in ("temperature", "seed")}
    want = list(generate(model.decoder, live_embedding(model, vocab), prompt, 15, **live))
    with ngramstore.open(path) as store:
        embedding = NGramEmbedding(store, model.decoder.tokens)
        assert list(generate_served(model.decoder, embedding, prompt, 15, **options)) == want
        stats = embedding.stats.as_dict()
        assert stats["positions"] == 11 + 14 and stats["found"] >= 3


LOGITS = torch.tensor([1.0, 3.0, -2.0, 2.999])


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-50, 1e-38, 0.7, 1e30])
def test_the_only_token_there_is_to_choose_is_the_likeliest(temperature):
    random = torch.Generator().manual_seed(0)
    assert {choose(LOGITS, temperature, 1, random) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-50, 1e-38, 1e-5])
@pytest.mark.parametrize("shift", [-1e4, 0, 1e4])
def test_a_tiny_temperature_chooses_the_likeliest(temperature, shift):
    """Divided by it, logits are beyond float32, or so far apart that no other token has a chance."""
    random = torch.Generator().manual_seed(0)
    assert {choose(LOGITS + shift, temperature, 50, random) for _ in range(50)} == {int((LOGITS + shift).argmax())}


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature):
    """The standard deviation of a share of 10,000 draws is 0.005 at most."""
    logits, random = np.array([0.0, 1.0, 2.0]), torch.Generator().manual_seed(0)
    drawn = [choose(torch.tensor(logits, dtype=torch.float32), temperature, 50, random) for _ in range(10_000)]
    chances = np.exp(logits / temperature)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 10_000, chances / chances.sum(), atol=0.02)
    of_two = {choose(torch.tensor(logits), temperature, 2, random) for _ in range(1000)}
    assert of_two == {1, 2}


def test_a_prompt_that_does_not_fit_is_refused(case):
    model, _, path = case
    with ngramstore.open(path) as store:
        embedding = NGramEmbedding(store, model.decoder.tokens)
        for prompt, count in (([], 3), (np.zeros(30, int), DECODER.max_positions)):
            with pytest.raises(UsageError):
                next(generate_served(model.decoder, embedding, prompt, count))
        for options in ({"chunk": 0}, {"candidates": -1}):
            with pytest.raises(UsageError, match="chunk="):
                next(generate_served(model.decoder, embedding, [1], 2, **options))


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ([1.7, 2.9], 3, "tokens of the prompt must be integers, got dtype float64"),
        ([-1], 3, "tokens of the prompt hold -1"),
        ([], 3, "0 prompt tokens and 3 new ones"),
        ([1, 2], 0, "2 prompt tokens and 0 new ones"),
        ([1, 2], -1, "2 prompt tokens and -1 new ones"),
    ],
)
def test_both_loops_refuse_what_is_no_prompt_and_no_number_of_tokens(case, prompt, count, message):
    model, vocab, path = case
    with ngramstore.open(path) as store:
        embedding = NGramEmbedding(store, model.decoder.tokens)
        with pytest.raises(UsageError, match=message):
            next(generate_served(model.decoder, embedding, prompt, count))
        with pytest.raises(UsageError, match=message):
            next(generate(model.decoder, live_embedding(model, vocab), prompt, count))


def test_a_store_of_another_width_is_refused(case, tmp_path):
    with ngramstore.build(tmp_path / "wide", dim=64, max_n=2) as build:
        build.add([(1, 2)], np.ones((1, 64), np.float32))
    with ngramstore.open(tmp_path / "wide") as store:
        embedding = NGramEmbedding(store, torch.nn.Embedding(case[0].decoder.config.vocab_size, 64))
        with pytest.raises(UsageError, match="rows are 64 wide"):
            next(generate_served(case[0].decoder, embedding, [1, 2], 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with its tokenizer, and the store exported from it."""
    folder = tmp_path_factory.mktemp("cli")
    words = train_bpe(["a store answers each token with a row " * 20], 270)
    decoder = DecoderConfig(vocab_size=words.vocab_size, dim=32, num_layers=1, num_heads=2, max_positions=64)
    torch.manual_seed(0)
    model = shaken(scone(fgram=FgramConfig(dim=32, max_n=4, num_layers=1, num_heads=2), decoder=decoder))
    checkpoint.save(folder / "run", model, step=1, optimizer={}, train={}, data={})
    checkpoint.save(folder / "plain", plain(decoder=decoder), step=1, optimizer={}, train={}, data={})
    words.save(folder / "run" / "tokenizer.json")
    tokens = words.encode("a store answers each token with a row " * 20)
    vocab = vocabulary(tokens, np.array([0, len(tokens)]))
    for name, identity in (("store", checkpoint.load(folder / "run").identity), ("foreign", "0" * 64)):
        export_table(SconeRows(model), vocab, folder / name, codec="f32", metadata={"checkpoint_id": identity})
    return folder


def run(folder, *arguments, store="store", run="run"):
    given = ["--checkpoint", str(folder / run), "--store", str(folder / store), "--prompt", "a store answers"]
    return CliRunner().invoke(cli_generate.command, [*given, "--max-new-tokens", "20", "--device", "cpu", *arguments])


def test_json_has_text_tokens_and_serving_numbers(folder):
    result = run(folder, "--json", "--temperature", "0")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["text"].startswith("a store answers") and len(found["tokens"]) == 20
    assert found["ngram_share"] > 0 and 0 < found["wait_p50_us"] <= found["wait_p99_us"]
    assert found["tokens_per_s"] > 0 and 0 <= found["hit_rate"] <= 1
    again = json.loads(run(folder, "--json", "--temperature", "0", "--cache-bytes", "0").stdout)
    assert again["tokens"] == found["tokens"] and again["hit_rate"] is None


def test_text_goes_to_stdout_and_statistics_to_stderr(folder):
    result = run(folder, "--seed", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("a store answers")
    assert "tokens/s" in result.stderr and "wait p50" in result.stderr and "tokens/s" not in result.stdout
    assert run(folder, "--seed", "1", "--quiet").stderr == ""


@pytest.mark.parametrize("end", [1, 2, 3])
def test_text_that_ends_within_a_character_is_printed_whole(folder, monkeypatch, end):
    """What comes next could end the character, so it waits; in the end nothing comes."""
    words = load_tokenizer(folder / "run")
    tokens = [*words.encode("é").tolist(), *words.encode("é").tolist()]
    assert len(tokens) == 4
    monkeypatch.setattr("ngramstore_torch.serving.loop.generate_served", lambda *_, **__: iter(tokens[:end]))
    text = json.loads(run(folder, "--json").stdout)["text"]
    assert text.endswith("\N{REPLACEMENT CHARACTER}") == (end != 2)
    assert run(folder, "--quiet").stdout == f"{text}\n"


def test_a_store_of_another_checkpoint_and_a_plain_model_are_refused(folder):
    with pytest.raises(UsageError, match="was exported from checkpoint 000"):
        raise run(folder, store="foreign").exception
    assert run(folder, "--any-store", store="foreign").exit_code == 0
    with pytest.raises(UsageError, match="kind 'plain'"):
        raise run(folder, run="plain").exception


def test_a_store_that_does_not_say_where_its_rows_come_from_is_used_with_a_note(folder, tmp_path):
    with ngramstore.build(tmp_path / "store", dim=32, max_n=2) as build:
        build.add([(1, 2)], np.zeros((1, 32)))
    given = [
        "--checkpoint",
        folder / "run",
        "--store",
        tmp_path / "store",
        "--prompt",
        "a store",
        "--max-new-tokens",
        "3",
    ]
    result = CliRunner().invoke(cli_generate.command, list(map(str, given)))
    assert result.exit_code == 0 and "does not say which checkpoint" in result.stderr
    assert "does not say" not in run(folder).stderr


def test_another_tokenizer_is_refused(folder, tmp_path):
    """Also with --any-store: token ids would mean something else."""
    saved = checkpoint.load(folder / "run")
    tokenizer_id = load_tokenizer(folder / "run").id
    known = {"tokenizer_id": tokenizer_id, "tokenizer_name": "mine"}
    checkpoint.save(tmp_path / "run", saved.model, step=1, optimizer={}, train={}, data=known)
    other = train_bpe(["quite another text " * 20], 262)
    other.save(tmp_path / "other.json")
    (tmp_path / "run" / "tokenizer.json").write_bytes((folder / "run" / "tokenizer.json").read_bytes())
    given = ["--checkpoint", str(tmp_path / "run"), "--prompt", "a store", "--max-new-tokens", "3", "--any-store"]
    run = CliRunner().invoke
    assert run(cli_generate.command, [*given, "--store", str(folder / "store")]).exit_code == 0
    with pytest.raises(UsageError, match="was made with the tokenizer 'mine'"):
        raise run(
            cli_generate.command,
            [*given, "--store", str(folder / "store"), "--tokenizer", str(tmp_path / "other.json")],
        ).exception
    with ngramstore.build(tmp_path / "store", dim=32, max_n=2, metadata={"tokenizer_id": other.id}) as build:
        build.add([(1, 2)], np.zeros((1, 32)))
    with pytest.raises(UsageError, match="was made with the tokenizer"):
        raise run(cli_generate.command, [*given, "--store", str(tmp_path / "store")]).exception


@pytest.mark.parametrize("options", [["--temperature", "nan"], ["--timeout", "0"], ["--timeout", "nan"]])
def test_numbers_that_mean_nothing_are_refused(folder, options):
    with pytest.raises(UsageError):
        raise run(folder, *options).exception


def test_statistics_leave_out_the_loading_of_kernels(folder, monkeypatch):
    """A first call compiles them or loads them, a fifth of a second at least."""
    calls = []
    load = cli_generate._load_kernels
    monkeypatch.setattr(cli_generate, "_load_kernels", lambda *given: calls.append(load(*given)))
    found = json.loads(run(folder, "--json").stdout)
    assert len(calls) == 1
    assert found["lookups_per_s"] * found["seconds"] == pytest.approx(found["prompt_tokens"] + 19)


@pytest.fixture
def slow_look_ups(monkeypatch):
    """Calling it makes the first look-ups wait for so many seconds each."""
    look_up = ngramstore.Store.lookup_tail

    def slow(seconds: float, number: int) -> None:
        waits = [seconds] * number

        def wait_and_look_up(*arguments, **options):
            if waits:
                time.sleep(waits.pop())
            return look_up(*arguments, **options)

        monkeypatch.setattr(ngramstore.Store, "lookup_tail", wait_and_look_up)

    return slow


def test_code_that_is_compiled_first_does_not_count_as_a_slow_disk(folder, slow_look_ups):
    slow_look_ups(1.0, 1)
    result = run(folder, "--json", "--timeout", "0.5")
    assert result.exit_code == 0, result.exception
    assert len(json.loads(result.stdout)["tokens"]) == 20


def test_a_disk_that_does_not_answer_the_first_look_up_is_given_up_on(folder, slow_look_ups, monkeypatch):
    slow_look_ups(20.0, 100)
    monkeypatch.setattr(cli_generate, "_LOADING_S", 0.1)
    began = time.perf_counter()
    with pytest.raises(LookupTimeout):
        raise run(folder, "--timeout", "0.05").exception
    assert time.perf_counter() - began < 10


def test_a_disk_that_does_not_answer_the_prompt_is_given_up_on(folder, slow_look_ups, monkeypatch):
    slow_look_ups(20.0, 100)
    monkeypatch.setattr(cli_generate, "_load_kernels", lambda *given: None)
    began = time.perf_counter()
    with pytest.raises(LookupTimeout):
        raise run(folder, "--timeout", "0.05").exception
    assert time.perf_counter() - began < 10


def test_candidates_without_a_cache_and_prompts_that_are_no_text_are_refused(folder):
    with pytest.raises(UsageError, match="--cache-bytes is 0"):
        raise run(folder, "--candidates", "4", "--cache-bytes", "0").exception
    with pytest.raises(UsageError, match="not UTF-8, or half a character"):
        raise run(folder, "--prompt", "a \udcff").exception
