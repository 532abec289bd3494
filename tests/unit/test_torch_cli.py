"""`train`, `export` and `evaluate` from text to a served table, and what they say when asked for the impossible."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch_cases import changed_description

import ngramstore
from ngramstore.cli import build as cli_build
from ngramstore.cli.common import Count
from ngramstore.errors import UsageError
from ngramstore.mine import Vocabulary, mine_ngrams, open_corpus, train_bpe
from ngramstore_torch import RowTableEmbedding, TrainedTableHash
from ngramstore_torch.cli import evaluate as cli_evaluate
from ngramstore_torch.cli import export as cli_export
from ngramstore_torch.cli import train as cli_train
from ngramstore_torch.cli.text import open_text
from ngramstore_torch.data import corpus as tagged_corpus
from ngramstore_torch.data.batches import tag
from ngramstore_torch.export.table import SconeRows
from ngramstore_torch.training import checkpoint

SMALL = [
    "--dim",
    "32",
    "--layers",
    "1",
    "--heads",
    "2",
    "--tokens",
    "4k",
    "--batch",
    "8",
    "--seq-len",
    "32",
    "--device",
    "cpu",
    "--quiet",
    "--json",
]


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> dict[str, str]:
    """A folder of made-up text, and the vocabulary mined from it, where `mine` leaves things."""
    folder = tmp_path_factory.mktemp("mined")
    rng = random.Random(0)
    words = ["the row", "of a store", "answers", "each token", "with a vector", "and nothing", "is lost", "twice"]
    (folder / "text").mkdir()
    for i in range(20):
        (folder / "text" / f"{i}.txt").write_text(" ".join(rng.choices(words, k=150)))
    corpus = open_corpus(folder / "text", tokenizer="train:280", cache=folder / "vocab.ngv.cache")
    vocabulary = mine_ngrams(corpus, work=folder / "work", max_n=4, size=300, held_out=0.2)
    vocabulary.save(folder / "vocab.ngv")
    corpus.tokenizer.save(folder / "vocab.ngv.tokenizer.json")
    return {"--corpus": str(folder / "text"), "--vocab": str(folder / "vocab.ngv")}


def run(command, *arguments: object) -> dict:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def flat(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


def test_from_text_to_a_served_table(mined, tmp_path):
    joint = run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "scone")
    alone = run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "plain", "--plain")
    assert joint["kind"] == "scone" and alone["kind"] == "plain" and joint["step"] == 16
    assert joint["held_out"]["num_tokens"] == alone["held_out"]["num_tokens"] > 500
    assert joint["held_out"]["matched"] > 0.5
    assert (tmp_path / "scone" / "tokenizer.json").exists()
    matching = joint["matching"]
    assert matching["share"] == pytest.approx(
        (matching["tag_seconds"] + matching["batch_seconds"]) / matching["train_seconds"]
    )
    assert min(matching.values()) > 0

    export = ["--checkpoint", tmp_path / "scone", "--vocab", mined["--vocab"], "--quiet", "--json"]
    done = run(cli_export.command, *export, "--store", tmp_path / "table")
    assert done["resumed_rows"] == 0
    assert done["store_seconds"] == pytest.approx(sum(done["seconds"].values()) - done["seconds"]["model"])
    vocabulary = Vocabulary.load(mined["--vocab"])
    with ngramstore.open(tmp_path / "table") as store:
        assert len(store) == done["rows"] == len(vocabulary)
        assert store.metadata["checkpoint_id"] == checkpoint.load(tmp_path / "scone").identity
        assert store.metadata["tokenizer_id"] == vocabulary.tokenizer_id

    fitted = [*export, "--store", tmp_path / "fitted", "--codec", "int4", "--corpus", mined["--corpus"]]
    assert run(cli_export.command, *fitted)["rounding"] == "second-order"
    assert sorted(tmp_path.glob("fitted*")) == [tmp_path / "fitted"]
    with pytest.raises(UsageError, match="already holds a store"):
        run(cli_export.command, *fitted)
    with ngramstore.open(tmp_path / "fitted") as store:
        assert store.metadata["rounding"] == "second-order" and store.spec.codec.name == "int4"

    runs = ["--checkpoint", tmp_path / "plain", "--checkpoint", tmp_path / "scone", "--store", tmp_path / "table"]
    plain, live, served = run(cli_evaluate.command, *flat(mined), *runs, "--device", "cpu", "--quiet", "--json")[
        "results"
    ]
    assert plain["nats"] == pytest.approx(alone["held_out"]["nats"], abs=1e-6)
    assert live["nats"] == pytest.approx(joint["held_out"]["nats"], abs=1e-6)
    assert served["nats"] == pytest.approx(live["nats"], abs=5e-4)
    assert served["difference"] == pytest.approx(served["nats"] - plain["nats"])


def test_a_run_is_not_overwritten_and_resumes_with_the_same_settings_only(mined, tmp_path):
    options = [*flat(mined), *SMALL, "--out", tmp_path / "run"]
    first = run(cli_train.command, *options)
    with pytest.raises(UsageError, match="already holds a run"):
        run(cli_train.command, *options)
    again = run(cli_train.command, *options, "--resume")
    assert again["held_out"]["nats"] == first["held_out"]["nats"]
    assert again["matching"]["share"] is None  # of no time at all
    shown = CliRunner().invoke(cli_train.command, [str(o) for o in options if o != "--json"] + ["--resume"])
    assert "nothing was left to train" in shown.stdout and "%" not in shown.stdout
    with pytest.raises(UsageError, match=r"train\.seed = 0, this run asks for 1"):
        run(cli_train.command, *options, "--resume", "--seed", 1)


def test_what_does_not_resume_is_said_before_the_text_is_read(mined, tmp_path, monkeypatch):
    options = [*flat(mined), *SMALL, "--tokens", "1k", "--out", tmp_path / "run"]
    run(cli_train.command, *options)
    monkeypatch.setattr(cli_train, "open_text", lambda *_, **__: pytest.fail("reads the text"))
    with pytest.raises(UsageError, match=r"train\.lr = 0\.002, this run asks for 0\.5"):
        run(cli_train.command, *options, "--resume", "--lr", 0.5)


def test_one_command_line_begins_a_run_and_resumes_it(mined, tmp_path):
    options = [*flat(mined), *SMALL, "--tokens", "1k", "--out", tmp_path / "run", "--resume"]
    (note,) = notes(cli_train.command, *options)
    assert f"there is no checkpoint in {tmp_path / 'run'}: the training begins" in note
    assert notes(cli_train.command, *options) == []
    assert run(cli_train.command, *options)["matching"]["share"] is None  # nothing was left to train


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "x"], "needs its f-grams"),
        (["--plain"], "either as --corpus or as --shards"),
    ],
)
def test_what_is_missing_is_named(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(cli_train.command, "--out", tmp_path / "run", *arguments)


def test_a_plain_decoder_needs_no_vocabulary_and_no_cache(mined, tmp_path):
    options = ["--corpus", mined["--corpus"], "--tokenizer", "train:280", *SMALL, "--out", tmp_path / "run", "--plain"]
    assert run(cli_train.command, *options)["step"] == 16
    assert (tmp_path / "run.cache").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plain", "--hashed", 100], "--plain and --hashed are two models"),
        (["--hashed", 0], "0 rows do not fill"),
        (["--plain", "--flops-factor", 0], "factor must be above 0"),
        (["--plain", "--flops-factor", "nan"], "factor must be above 0"),
        (["--seed", -1], "seed must be a whole number from 0"),
        (["--seed", 10**20], "seed must be a whole number from 0"),
        (["--checkpoint-every", -3], "checkpoint_every must be a whole number from 0"),
        (["--flops-factor", 2], "scales the plain decoder only"),
        (["--lr", 0], "lr must be above 0"),
        (["--dim", 200, "--heads", 0], "dim=200 does not split into 3 heads"),
        (["--plain", "--layers", 0], "num_layers must be at least 1"),
        (["--fgram-width", 33], "33 wide does not split into 2 heads"),
        (["--fgram-layers", 0], "num_layers must be at least 1"),
        (["--device", "abacus"], "there is no device 'abacus'"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_the_text_is_read(
    mined, tmp_path, arguments, message, monkeypatch
):
    monkeypatch.setattr(cli_train, "open_text", lambda *_, **__: pytest.fail("reads the text"))
    with pytest.raises(UsageError, match=message):
        run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "run", *arguments)


@pytest.mark.parametrize("command", [cli_train.command, cli_evaluate.command])
def test_what_cannot_be_held_out_or_run_on_is_said_before_the_text_is_tokenised(mined, tmp_path, command, monkeypatch):
    monkeypatch.setattr("ngramstore.mine.open_corpus", lambda *_, **__: pytest.fail("reads the text"))
    options = [*flat(mined), "--out" if command is cli_train.command else "--checkpoint", str(tmp_path / "run")]
    refused = CliRunner().invoke(command, [*options, "--held-out", "1.5"])
    assert refused.exit_code == 2
    assert "1.5 is not in the range 0<=x<1" in refused.output
    with pytest.raises(UsageError, match="there is no device 'abacus'"):
        run(command, *options, "--device", "abacus")
    if command is cli_evaluate.command:
        with pytest.raises(UsageError, match="there is no checkpoint in"):
            run(command, *options)


def test_measuring_shows_a_bar_unless_told_to_be_quiet(mined, tmp_path):
    run(cli_train.command, *flat(mined), *SMALL, "--tokens", "1k", "--out", tmp_path / "run", "--plain")
    evaluate = [*flat(mined), "--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--max-windows", "3"]
    shown = CliRunner().invoke(cli_evaluate.command, evaluate, catch_exceptions=False)
    assert "evaluate: 100%" in shown.stderr and "1/1" in shown.stderr, shown.stderr
    assert CliRunner().invoke(cli_evaluate.command, [*evaluate, "--quiet"]).stderr == ""


def test_a_model_is_not_measured_on_what_it_was_trained_on(mined, tmp_path):
    run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "all", "--held-out", 0.05)
    evaluate = [*flat(mined), "--checkpoint", tmp_path / "all", "--device", "cpu", "--quiet", "--json"]
    with pytest.raises(UsageError, match=r"was trained with held_out=0\.05: it has seen"):
        run(cli_evaluate.command, *evaluate)
    assert run(cli_evaluate.command, *evaluate, "--held-out", 0.05)["results"][0]["tokens"] > 0


def notes(command, *arguments: object) -> list[str]:
    """The notes that a command gives on stderr."""
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [line for line in result.stderr.splitlines() if line.startswith("note:")]


def test_held_out_text_that_the_vocabulary_was_mined_from_is_told(mined, tmp_path):
    """Mining left out 0.2 of it; of what 0.4 holds out, the other half was counted."""
    train = [*flat(mined), *SMALL, "--plain"]
    (note,) = notes(cli_train.command, *train, "--out", tmp_path / "more", "--held-out", 0.4)
    assert "mined with held_out=0.2" in note and "held_out=0.4" in note
    (again,) = notes(cli_evaluate.command, *flat(mined), "--checkpoint", tmp_path / "more", "--held-out", 0.4)
    assert again == note
    assert notes(cli_train.command, *train, "--out", tmp_path / "same") == []
    assert notes(cli_train.command, *train, "--out", tmp_path / "less", "--held-out", 0.1) == []


def test_a_run_on_another_corpus_is_told(mined, tmp_path):
    run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "run", "--plain")
    evaluate = [*flat(mined), "--checkpoint", tmp_path / "run"]
    assert notes(cli_evaluate.command, *evaluate) == []
    with changed_description(tmp_path / "run") as description:
        description["data"]["corpus_id"] = "0" * 64
    (note,) = notes(cli_evaluate.command, *evaluate)
    assert "run was trained on another corpus" in note
    with changed_description(tmp_path / "run") as description:
        del description["data"]["corpus_id"]
    assert notes(cli_evaluate.command, *evaluate) == []


def test_what_is_compared_is_measured_on_the_same_windows(mined, tmp_path, capfd):
    for name, seq_len in {"long": 32, "short": 16}.items():
        run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / name, "--plain", "--seq-len", seq_len)
    evaluate = [*flat(mined), "--device", "cpu", "--quiet", "--json", "--max-windows", 5]
    found = [["--checkpoint", tmp_path / name] for name in ("long", "short")]
    long, short = run(cli_evaluate.command, *evaluate, *found[0], *found[1])["results"]
    assert long["tokens"] == short["tokens"]
    assert short == run(cli_evaluate.command, *evaluate, *found[1])["results"][0] | {"difference": short["difference"]}
    assert run(cli_evaluate.command, *evaluate, *found[0])["results"][0]["nats"] != long["nats"]


def test_another_vocabulary_is_told_or_refused(mined, tmp_path):
    run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "scone")
    run(
        cli_export.command,
        "--checkpoint",
        tmp_path / "scone",
        "--vocab",
        mined["--vocab"],
        "--store",
        tmp_path / "t",
        "--json",
    )
    corpus = open_corpus(
        mined["--corpus"], tokenizer=mined["--vocab"] + ".tokenizer.json", cache=mined["--vocab"] + ".cache"
    )
    for max_n, message in {4: "another vocabulary", 5: "n-grams of 5 tokens"}.items():
        vocab = tmp_path / f"{max_n}.ngv"
        mine_ngrams(corpus, work=tmp_path / f"work{max_n}", max_n=max_n, size=100, held_out=0.2).save(vocab)
        options = ["--corpus", mined["--corpus"], "--vocab", vocab, "--tokenizer", mined["--vocab"] + ".tokenizer.json"]
        options += [
            "--cache",
            mined["--vocab"] + ".cache",
            "--checkpoint",
            tmp_path / "scone",
            "--store",
            tmp_path / "t",
        ]
        result = CliRunner().invoke(cli_evaluate.command, [str(o) for o in [*options, "--device", "cpu", "--quiet"]])
        assert message in (str(result.exception) if max_n == 5 else result.stderr), result
        assert isinstance(result.exception, UsageError) == (max_n == 5)
        assert result.stderr.count("note:") == (2 if max_n == 4 else 0)


def test_a_run_resumes_whatever_its_tokenizer_was_called(mined, tmp_path):
    """A token cache keeps the name that its first writer gave; made anew by another command, it is called otherwise."""
    options = [*flat(mined), *SMALL, "--out", tmp_path / "run"]
    run(cli_train.command, *options)
    with changed_description(tmp_path / "run") as description:
        description["data"]["tokenizer_name"] = "as another command called it"
    assert run(cli_train.command, *options, "--resume")["step"] == 16
    with changed_description(tmp_path / "run") as description:
        description["data"]["tokenizer_id"] = "0" * 64
    with pytest.raises(UsageError, match=r"data\.tokenizer_id"):
        run(cli_train.command, *options, "--resume")


def test_a_tokenizer_that_an_earlier_vocabulary_left_is_not_taken(mined, tmp_path, capsys):
    """Mined from text, and then from token files under the same name: whose tokenizer is not known."""
    text = dict.fromkeys(("tokenizer", "cache", "held_out", "dtype", "eos_id"))
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 250, 5000).astype(np.uint16))
    mine_ngrams(open_corpus(tmp_path / "ids.npy"), work=tmp_path / "work", max_n=3, size=50).save(tmp_path / "v.ngv")
    stale = tmp_path / "v.ngv.tokenizer.json"
    stale.write_bytes(Path(mined["--vocab"] + ".tokenizer.json").read_bytes())
    options = {"documents": "file", "suffixes": (), "errors": "strict", "progress": False}
    opened = open_text((tmp_path / "ids.npy",), None, tmp_path / "v.ngv", **text, **options)
    assert opened.corpus.tokenizer is None and opened.corpus.tokenizer_id == ""
    assert f"--tokenizer {stale} takes" in capsys.readouterr().err


def test_the_tokenizer_is_beside_the_first_checkpoint(mined, tmp_path, monkeypatch):
    """A run that is killed later can be generated from, as one that was not."""
    monkeypatch.setattr(checkpoint, "save", lambda out, *_, **__: pytest.fail(f"{sorted(Path(out).iterdir())}"))
    options = [*flat(mined), *SMALL, "--out", tmp_path / "run", "--checkpoint-every", 2]
    with pytest.raises(pytest.fail.Exception, match=r"tokenizer\.json"):
        run(cli_train.command, *options)


def test_token_shards_take_no_options_of_text(mined, tmp_path):
    shards = next(Path(mined["--vocab"] + ".cache").glob("tokens-*"))
    given = ["--shards", shards, "--vocab", mined["--vocab"], *SMALL, "--out", tmp_path / "run"]
    with pytest.raises(UsageError, match="--documents, --suffix with --shards"):
        run(cli_train.command, *given, "--documents", "line", "--suffix", ".txt")


def test_token_shards_bring_their_tokenizer_into_the_run_folder(mined, tmp_path):
    shards = next(Path(mined["--vocab"] + ".cache").glob("tokens-*"))
    given = ["--shards", shards, "--vocab", mined["--vocab"], *SMALL]
    run(cli_train.command, *given, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").exists()
    other = train_bpe(["quite another text " * 20], 262)
    other.save(tmp_path / "other.json")
    with pytest.raises(UsageError, match="--shards was made with the tokenizer"):
        run(cli_train.command, *given, "--out", tmp_path / "no", "--tokenizer", tmp_path / "other.json")


def test_text_is_for_rounding_int4_only(mined, tmp_path):
    run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "scone")
    export = ["--checkpoint", tmp_path / "scone", "--vocab", mined["--vocab"], "--store", tmp_path / "table"]
    with pytest.raises(UsageError, match="for rounding int4, not for int8"):
        run(cli_export.command, *export, "--quiet", "--json", "--corpus", mined["--corpus"])
    with pytest.raises(UsageError, match="--held-out, --suffix without text"):
        run(cli_export.command, *export, "--quiet", "--codec", "int4", "--held-out", "0.1", "--suffix", ".txt")
    assert not (tmp_path / "table").exists()


def test_a_store_in_a_folder_that_is_not_there_is_refused_before_anything_is_measured(mined, tmp_path, monkeypatch):
    run(cli_train.command, *flat(mined), *SMALL, "--tokens", "1k", "--out", tmp_path / "scone")
    monkeypatch.setattr(cli_export, "open_text", lambda *_, **__: pytest.fail("reads the text"))
    export = [*flat(mined), "--checkpoint", tmp_path / "scone", "--codec", "int4", "--device", "cpu", "--quiet"]
    with pytest.raises(UsageError, match="no is not a folder"):
        run(cli_export.command, *export, "--json", "--store", tmp_path / "no" / "table")


def test_rows_are_not_rounded_for_text_that_the_run_held_out(mined, tmp_path, monkeypatch):
    """Mining held out 0.2, the run 0.4: one half of what it is measured on was mined, and none may be fitted to."""
    run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "scone", "--held-out", 0.4)
    fractions, tag_training = [], tagged_corpus.tag_training
    monkeypatch.setattr(
        tagged_corpus,
        "tag_training",
        lambda *text, held_out: fractions.append(held_out) or tag_training(*text, held_out=held_out),
    )
    export = [*flat(mined), "--checkpoint", tmp_path / "scone", "--codec", "int4", "--device", "cpu", "--quiet"]
    assert not any(
        "another corpus" in note for note in notes(cli_export.command, *export, "--store", tmp_path / "table")
    )
    run(cli_export.command, *export, "--json", "--store", tmp_path / "more", "--held-out", 0.5)
    with pytest.raises(UsageError, match=r"was trained with held_out=0\.4: held_out=0\.2 would round"):
        run(cli_export.command, *export, "--json", "--store", tmp_path / "less", "--held-out", 0.2)
    with changed_description(tmp_path / "scone") as description:
        description["data"]["corpus_id"] = "0" * 64
    assert any(
        "scone was trained on another corpus" in note
        for note in notes(cli_export.command, *export, "--store", tmp_path / "other")
    )
    with changed_description(tmp_path / "scone") as description:
        description["data"] = {
            "tokenizer_id": description["data"]["tokenizer_id"]
        }  # a run made in Python may say no more
    assert not any(
        "another corpus" in note for note in notes(cli_export.command, *export, "--store", tmp_path / "unknown")
    )
    assert fractions == [0.4, 0.5, 0.4, 0.2]


def test_an_export_that_is_refused_leaves_what_the_one_before_it_rounded_by(mined, tmp_path, monkeypatch):
    """Measured again, on an accelerator, it would differ in the last bits, and the rows that are there could not be
    gone on with."""
    run(cli_train.command, *flat(mined), *SMALL, "--tokens", "1k", "--out", tmp_path / "scone")
    export = [*flat(mined), "--checkpoint", tmp_path / "scone", "--codec", "int4", "--store", tmp_path / "table"]
    export += ["--batch", 10, "--device", "cpu", "--quiet", "--json"]
    calls, rows = [], SconeRows.rows

    def dies(self, *batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("the machine is gone")
        return rows(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(SconeRows, "rows", dies)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(cli_export.command, *export)
    kept, spooled = tmp_path / "table.sensitivity", tmp_path / "table.export"
    before = kept.read_bytes(), spooled.read_bytes()
    with pytest.raises(UsageError, match="another rounding"):
        run(cli_export.command, *export, "--held-out", 0.5)
    assert (kept.read_bytes(), spooled.read_bytes()) == before
    assert run(cli_export.command, *export)["resumed_rows"] == 10
    assert not kept.exists() and not spooled.exists()


def test_a_hashed_run_is_not_exported_and_what_is_said_instead_serves_it(mined, tmp_path):
    hashed = run(cli_train.command, *flat(mined), *SMALL, "--out", tmp_path / "hashed", "--hashed", 600)
    assert hashed["kind"] == "hashed"
    export = ["--checkpoint", tmp_path / "hashed", "--vocab", mined["--vocab"], "--store", tmp_path / "table"]
    with pytest.raises(UsageError, match="kind 'hashed' has no f-gram table") as refused:
        run(cli_export.command, *export, "--quiet", "--json")
    hint = refused.value.hint
    assert "--plain" not in hint
    model = checkpoint.load(tmp_path / "hashed").model.eval()
    assert f"TrainedTableHash({model.config.rows_per_table}, {model.config.max_n})" in hint
    assert "ngramstore build rows/ --rows RUN/model-*.safetensors --tensor tables.weight --codec f32" in hint
    (weights,) = (tmp_path / "hashed").glob("model-*.safetensors")
    build = ["--rows", weights, "--tensor", "tables.weight", "--codec", "f32", "--quiet", "--json"]
    run(cli_build.command, tmp_path / "rows", *build)
    tokens = np.random.default_rng(0).integers(0, 250, 20)
    batch = tag(tokens, np.array([0, 20]), None).at(np.arange(20)[None], history=model.history)
    with ngramstore.open(tmp_path / "rows") as store, torch.no_grad():
        hasher = TrainedTableHash(model.config.rows_per_table, model.config.max_n)
        embed = RowTableEmbedding(store, hasher, model.decoder.tokens)
        torch.testing.assert_close(embed(torch.from_numpy(tokens[None])), model.inputs(batch))


def test_as_few_hashed_rows_as_there_are_tables_will_do(mined, tmp_path):
    """How many tables there are is known when the vocabulary is read."""
    options = [*flat(mined), *SMALL, "--tokens", "1k", "--out"]
    assert run(cli_train.command, *options, tmp_path / "three", "--hashed", 3)["kind"] == "hashed"
    with pytest.raises(UsageError, match="2 rows do not fill 3 tables"):
        run(cli_train.command, *options, tmp_path / "two", "--hashed", 2)


@pytest.mark.parametrize(("text", "number"), [("2.5M", 2_500_000), ("500k", 500_000), ("1B", 10**9), ("17", 17)])
def test_counts_read_with_units(text, number):
    assert Count().convert(text, None, None) == number


def test_help_needs_no_torch():
    code = "import sys; from ngramstore_torch.cli import train, export, evaluate, generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_held_out_text_without_a_target_is_said_and_takes_no_run_along(tmp_path):
    """A file that begins with its separator: its first document is that token alone."""
    tokens = np.tile(np.array([9, *range(8)], np.uint16), 200)
    np.save(tmp_path / "t.npy", tokens)
    given = ("--corpus", tmp_path / "t.npy", "--eos-id", 9, "--held-out", 1e-6, "--plain", "--out", tmp_path / "run")
    result = CliRunner().invoke(cli_train.command, [str(word) for word in (*given, *SMALL)])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["held_out"] is None and "nothing is measured" in result.stderr
    assert answer["train_flops_per_token"] == 3 * answer["flops_per_token"]
