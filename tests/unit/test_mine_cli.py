"""`ngramstore mine` from text to file: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import pytest
from click.testing import CliRunner

from ngramstore import files
from ngramstore.cli.mine import ByteSize, command
from ngramstore.errors import UsageError
from ngramstore.mine import Vocabulary, load_tokenizer
from ngramstore.mine.workers import start_workers
from ngramstore.writer_lock import WriterLock

pytest.importorskip("tokenizers")

TEXT = "the quick brown fox jumps over the lazy dog and the quick brown cat\n" * 300


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(40):
        (tmp_path / "in" / f"{i:02d}.txt").write_text(TEXT[i * 31 : i * 31 + 5000])
    return tmp_path / "in"


def run(*arguments, fails=False):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if not fails and result.exception:
        raise result.exception
    return result


def test_a_corpus_becomes_a_vocabulary_a_tokenizer_a_plot_and_a_report(corpus, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "v.ngv"
    arguments = [corpus, "--out", out, "--tokenizer", "train:280", "--size", 50, "--held-out", 0.2]
    result = run(*arguments, "--plot", tmp_path / "v.png", "--json")
    found = json.loads(result.stdout)
    vocabulary = Vocabulary.load(out)
    assert len(vocabulary) == found["num_ngrams"] == sum(found["ngrams_by_length"].values()) == 50
    assert load_tokenizer(found["paths"]["tokenizer"]).id == vocabulary.tokenizer_id == found["tokenizer_id"]
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"
    assert found["held_out"]["num_tokens"] + found["mined"]["num_tokens"] == found["corpus_tokens"]
    assert 0.1 < found["held_out"]["coverage"] <= 1
    assert sum(found["held_out"]["by_length"].values()) == found["held_out"]["num_tokens"] > 0
    assert "corpus:" in result.stderr
    assert not (tmp_path / "v.ngv.work").exists()


def test_the_report_for_people_names_the_cutoff_and_the_file(corpus, tmp_path):
    out = tmp_path / "v.ngv"
    result = run(corpus, "--out", out, "--tokenizer", "train:280", "--size", 50, "--quiet")
    assert f"down to {Vocabulary.load(out).cutoff:,} (the cut-off)" in result.stdout
    assert str(out) in result.stdout
    assert "held out" not in result.stdout
    assert "token/s" not in result.stderr


def test_the_tokenizer_is_there_before_the_vocabulary(corpus, tmp_path, monkeypatch):
    """Killed in between, nothing would be left that could make it again: the work directory goes with the vocabulary."""
    renamed: list[str] = []
    monkeypatch.setattr(files, "observe", lambda what, path: renamed.append(path.name) if what == "rename" else None)
    run(corpus, "--out", tmp_path / "v.ngv", "--tokenizer", "train:280", "--quiet")
    assert renamed.count("v.ngv") == 1
    assert "v.ngv.tokenizer.json" in renamed[: renamed.index("v.ngv")]


@pytest.mark.parametrize("when", ["refused", "interrupted"])
def test_mining_that_does_not_end_leaves_the_tokenizer_of_the_vocabulary_that_is_there(
    corpus, tmp_path, monkeypatch, when
):
    out = tmp_path / "v.ngv"
    run(corpus, "--out", out, "--tokenizer", "train:280", "--quiet")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("v.ngv*.*") if path.is_file()}
    if when == "interrupted":

        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("ngramstore.mine.miner.select_top", interrupted)
        with suppress(KeyboardInterrupt, SystemExit):
            run(corpus, "--out", out, "--tokenizer", "train:300", "--quiet")
    else:
        (tmp_path / "v.ngv.work").mkdir()
        lock = WriterLock(tmp_path / "v.ngv.work" / "LOCK")
        assert run(corpus, "--out", out, "--tokenizer", "train:300", "--quiet", fails=True).exception
        lock.release()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("v.ngv*.*") if path.is_file()} == before


def test_a_worker_ends_by_ctrl_c_without_a_traceback(capfd):
    """Ctrl-C reaches every process of the terminal; the parent alone says so."""
    with start_workers(1) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGINT)
        with pytest.raises(BrokenProcessPool):
            max(pool.submit(os.getpid).result() for _ in range(10_000))  # until it is noticed
    assert "Traceback" not in capfd.readouterr().err


def test_workers_of_a_run_that_ignores_ctrl_c_ignore_it_too(capfd):
    """As a run that a script has started in the background: the terminal's Ctrl-C is for another command."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with start_workers(1) as pool:
            worker = pool.submit(os.getpid).result()
            os.kill(worker, signal.SIGINT)
            assert pool.submit(os.getpid).result() == worker
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_size_beyond_what_there_is_keeps_all_and_says_so(corpus, tmp_path):
    result = run(corpus, "--out", tmp_path / "v", "--tokenizer", "train:280", "--size", 10**9, "--min-count", 50)
    vocabulary = Vocabulary.load(tmp_path / "v")
    assert len(vocabulary) == vocabulary.num_frequent
    assert f"only {len(vocabulary):,} n-grams occur at least 50 times" in result.stderr


def test_a_corpus_without_a_frequent_ngram_says_what_to_do(tmp_path):
    (tmp_path / "t.txt").write_text("three little words")
    result = run(tmp_path / "t.txt", "--out", tmp_path / "v.ngv", "--tokenizer", "train:300")
    assert "no n-gram occurs at least 5 times: mine more text" in result.stderr
    assert len(Vocabulary.load(tmp_path / "v.ngv")) == 0


def test_wrong_use_is_explained(corpus, tmp_path):
    assert "--out" in run(corpus, fails=True).stderr
    assert "2GiB" in run(corpus, "--out", "v", "--memory", "lots", fails=True).stderr
    for arguments, message in (
        (["--out", tmp_path / "no" / "v"], "there is no folder"),
        (["--out", tmp_path], "is a folder"),
        (["--out", tmp_path / "v", "--plot", tmp_path / "v.bad"], "the plot cannot be written"),
        (["--out", tmp_path / "v", "--plot", tmp_path / "no" / "v.png"], "there is no folder"),
        (["--out", tmp_path / "v"], "text needs a tokenizer"),
        (["--out", tmp_path / "v", "--work", tmp_path], "lies in --work, which is deleted"),
        (["--out", tmp_path / "v", "--plot", tmp_path / "v.work" / "v.png"], "lies in --work, which is deleted"),
        (["--out", tmp_path / "v", "--tokenizer", "train:280", "--max-n", 1], "max_n is 1"),
    ):
        error = run(corpus, *arguments, fails=True).exception
        assert isinstance(error, UsageError)
        assert message in str(error)
    assert not list(tmp_path.glob("v*"))


def test_help_teaches_by_examples():
    text = run("--help").stdout
    assert text.count("ngramstore mine ") == 3
    assert "[required]" in text


@pytest.mark.parametrize(
    ("text", "size"), [("800000", 800_000), ("1GiB", 1 << 30), ("1.5 kB", 1500), ("64m", 64_000_000)]
)
def test_sizes_have_units(text, size):
    assert ByteSize().convert(text, None, None) == size
