"""What the command line is given by mistake: pipes for files, options without use, places where nothing may be written,
no streams."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from store_cases import build, build_rows, some_ngrams, some_rows

from ngramstore.cli.main import cli
from ngramstore.errors import UsageError
from ngramstore.mine.corpus import open_corpus
from ngramstore.mine.inputs import find_files
from ngramstore.store.building.ngram_files import open_ngrams
from ngramstore.store.building.row_files import open_table
from ngramstore.store.trace import Trace


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "a.txt").write_text("one two three four " * 300)
    return tmp_path / "a.txt"


@pytest.fixture
def store(tmp_path) -> Path:
    return build_rows(tmp_path / "store", some_rows(20))


def test_a_pipe_is_no_corpus_no_table_and_no_list_of_ngrams(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (find_files, open_table, open_ngrams):
        with pytest.raises(UsageError, match="no regular file"):
            read(tmp_path / "pipe")


def test_standard_input_may_be_a_file(text):
    code = "from ngramstore.mine.inputs import find_files; print(find_files('/dev/stdin'))"
    with text.open() as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True, check=True)
    assert "/dev/stdin" in done.stdout


@pytest.mark.parametrize("option", [{"eos_id": 3}, {"dtype": "uint16"}])
def test_options_of_token_files_are_refused_for_text(text, tmp_path, option):
    with pytest.raises(UsageError, match="is for token files"):
        open_corpus(text, tokenizer="train:300", cache=tmp_path / "cache", **option)


def test_lines_are_no_documents_of_token_files(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(9, dtype=np.uint16))
    with pytest.raises(UsageError, match="--eos-id"):
        open_corpus(tmp_path / "a.npy", documents="line")


@pytest.mark.parametrize("tokenizer", ["train:x", "nowhere"])
def test_a_corpus_that_fails_leaves_no_empty_cache(text, tmp_path, tokenizer):
    with pytest.raises(UsageError):
        open_corpus(text, tokenizer=tokenizer, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    with pytest.raises(UsageError):
        open_corpus(text, tokenizer=tokenizer, cache=tmp_path / "cache")
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize("work", ["a.txt", "others"])
def test_a_work_directory_of_others_is_refused_before_the_text_is_read(text, tmp_path, work):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes").touch()
    done = run("mine", text, "--tokenizer", "train:300", "--out", tmp_path / "v.ngv", "--work", tmp_path / work)
    assert done.exit_code == 2 and "another work directory" in done.output
    assert not (tmp_path / "v.ngv.cache").exists()


def test_lengths_beyond_their_lines_name_their_file(tmp_path):
    np.save(tmp_path / "tokens.npy", np.ones((4, 3), np.uint32))
    for bad in (4, 0):
        np.save(tmp_path / "lengths.npy", np.array([3, 3, bad, 1]))
        with pytest.raises(UsageError, match=rf"lengths.npy: n-gram 2 has {bad} tokens"):
            open_ngrams(tmp_path)
    np.save(tmp_path / "lengths.npy", np.array([3, 3, 2, 1]))
    assert open_ngrams(tmp_path).num_ngrams == 4


def test_a_copy_does_not_go_into_the_store_it_copies(store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    with (store / "base-000001.rows").open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"bad")
    for target in (store / "in", tmp_path / "link" / "deep" / "in"):
        before = sorted(os.listdir(store))
        assert "lies in the store" in run("backup", store, target, "--quiet").output
        assert "lies in the store" in run("repair", store, "--out", target, "--quiet").output
        assert sorted(os.listdir(store)) == before
    assert run("backup", store, tmp_path / "store-2", "--quiet").exit_code == 0


def test_verify_does_not_send_a_store_without_manifest_to_repair(store):
    (store / "MANIFEST").write_bytes(b"")
    done = run("verify", store, "--quiet")
    assert done.exit_code == 1 and "put a copy back" in done.output and "repair` saves" not in done.output


def test_a_cut_trace_is_to_be_recorded_again(store, tmp_path):
    Trace.of("row", 20, 3, [1, 2], [2, 1]).save(tmp_path / "t")
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-3])
    done = run("warm", store, tmp_path / "t")
    assert done.exit_code == 2 and "record it again" in done.output and "repair" not in done.output


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        ("lookup {} <&-", 2, "no tokens"),
        ("lookup {} >&-", 2, "stdout is closed"),
        ("verify {} 2>&-", 0, "all is well"),  # with a bar that nobody sees
    ],
)
def test_closed_streams_are_said(tmp_path, words, code, wanted):
    path = build(tmp_path / "s", some_ngrams(5), some_rows(5))
    command = f"{sys.executable} -m ngramstore {words.format(path)}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, input="", check=False)
    assert done.returncode == code and wanted in done.stdout + done.stderr, done


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_of_ours_gets_the_number_of_a_closed_stderr():
    code = (
        "import os\nfrom ngramstore.cli import main as module\n"
        "module.cli = lambda **_: print(os.path.realpath('/proc/self/fd/2'), os.get_inheritable(2))\nmodule.main()"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "/dev/null True\n"


@pytest.mark.parametrize("command", ["mine", "trace"])
def test_an_out_that_holds_something_else_is_refused_before_the_work(tmp_path, command, monkeypatch):
    """`mine --out corpus/*` names a file of the corpus."""
    monkeypatch.setattr("ngramstore.mine.corpus.open_corpus", lambda *_, **__: pytest.fail("reads the corpus"))
    monkeypatch.setattr("ngramstore.mine.open_corpus", lambda *_, **__: pytest.fail("reads the corpus"))
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.arange(9, dtype=np.uint16))
    before = tokens.read_bytes()
    given = [build(tmp_path / "s", some_ngrams(5), some_rows(5))] if command == "trace" else []
    done = run(command, *given, tokens, "--out", tokens)
    kind = {"mine": "vocabulary", "trace": "trace"}[command]
    assert done.exit_code == 2 and f"holds something else than a {kind}" in done.stderr, done.stderr
    assert tokens.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in run(command, *given, tokens, "--out", tmp_path / "pipe").stderr


@pytest.mark.parametrize("command", ["mine", "trace"])
def test_an_out_of_the_same_kind_and_an_empty_one_are_replaced(tmp_path, command):
    np.save(tmp_path / "tokens.npy", np.arange(500, dtype=np.uint16) % 7)
    given = [build(tmp_path / "s", some_ngrams(5), some_rows(5))] if command == "trace" else []
    (tmp_path / "out").touch()
    for _ in range(2):
        done = run(command, *given, tmp_path / "tokens.npy", "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        assert {"mine": "coverage:", "trace": "trace:"}[command] in done.stderr  # and shows a bar
        assert "100%" in done.stderr
    assert run(command, *given, tmp_path / "tokens.npy", "--out", tmp_path / "out", "--quiet").stderr.count("%|") == 0


@pytest.mark.parametrize(("encoding", "name"), [("utf-8:strict", os.fsdecode(b"bad\xff")), ("latin-1:strict", "☃")])
def test_a_path_that_stdout_cannot_show_fails_no_command(quick_path, encoding, name):
    build_rows(quick_path / name, some_rows(20))
    done = subprocess.run(
        [sys.executable, "-m", "ngramstore", "verify", str(quick_path / name)],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"all is well" in done.stdout


def test_the_quick_demo_is_not_the_demo_of_the_store(tmp_path):
    done = run("demo", "--store", "--quick", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "--quick" in done.stderr and not (tmp_path / "out").exists()
