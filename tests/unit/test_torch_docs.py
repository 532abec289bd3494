"""The Python blocks of docs/scone.md run, and what is said of held-out text is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ngramstore.mine import held_out_spans, open_corpus
from ngramstore_torch.cli import evaluate, export, generate, train

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scone.md"
SMALLER = {
    "train:1024": "train:280",
    "size=100_000, held_out=0.05": "size=50, held_out=0.2",
    "dim=192": "dim=16",
    "num_heads=3": "num_heads=2",
    "max_positions=256": "max_positions=16",
    "tokens=1_500_000, batch_size=8": "tokens=128, batch_size=2, seq_len=16",
}
"""What these tests change in the blocks, and nothing else."""


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Text in corpus/ of the folder where the blocks run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in "abcd":
        (tmp_path / "corpus" / f"{name}.txt").write_text(f"{name} rose is a rose is a rose. " * 40)


def test_the_blocks_of_the_page_run(corpus):
    blocks = _blocks()
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_a_block_leads_from_text_to_a_run_folder_that_the_commands_take(corpus):
    (block,) = (block for block in _blocks() if "tag_corpus(" in block)
    found: dict = {}
    exec(compile(block, str(PAGE), "exec"), found)
    assert len(found["train"]) + len(found["held"]) == found["corpus"].num_tokens and len(found["held"])
    for command, more in {
        export.command: ["--store", "table"],
        evaluate.command: ["--corpus", "corpus", "--cache", "corpus.cache", "--tokenizer", "scone/tokenizer.json"],
        generate.command: ["--prompt", "a rose", "--max-new-tokens", "2", "--store", "table"],
    }.items():
        needs = [] if command is generate.command else ["--vocab", "vocab.ngv"]
        done = CliRunner().invoke(command, ["--checkpoint", "scone", *needs, *more], catch_exceptions=False)
        assert done.exit_code == 0 and "note:" not in done.output, done.output


def _blocks() -> list[str]:
    """The page's blocks of Python, with smaller numbers."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for wanted, smaller in SMALLER.items():
        assert any(wanted in block for block in blocks)
        blocks = [block.replace(wanted, smaller) for block in blocks]
    return blocks


def test_a_tokenizer_trained_on_a_corpus_has_seen_what_is_held_out(tmp_path):
    (tmp_path / "text").mkdir()
    for name, word in {"0": "zqxj ", "1": "other ", "2": "word "}.items():
        (tmp_path / "text" / f"{name}.txt").write_text(word * 300)
    corpus = open_corpus(tmp_path / "text", tokenizer="train:300", cache=tmp_path / "cache")
    ((begin, end),) = held_out_spans(corpus, 0.01)[0]
    assert begin == 0 and corpus.tokenizer.decode(corpus.shards[0].tokens()[:end].tolist()) == "zqxj " * 300
    assert len(corpus.tokenizer.encode(" zqxj")) == 1


def _pages_with_a_loss() -> list[Path]:
    """Those in which a number stands beside nats or a perplexity."""
    pages = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    number = r"(\d\.\d+ nats|perplexity[ |]+\d+\.\d|held[- ]out[^.]{0,40}\d\.\d{2})"
    return [page for page in pages if re.search(number, page.read_text())]


def test_there_are_pages_with_a_held_out_loss():
    assert {page.name for page in _pages_with_a_loss()} >= {"README.md", "scone.md", "results.md", "measurements.md"}


@pytest.mark.parametrize("page", _pages_with_a_loss(), ids=lambda page: page.name)
def test_every_page_with_a_held_out_loss_says_so(page):
    assert re.search(r"train:\w+`?[^.]* has seen all of the text", " ".join(page.read_text().split()))


def test_the_help_says_so():
    shown = " ".join(CliRunner().invoke(train.command, ["--help"]).output.split())
    assert re.search(r"train:\w+ has seen all of the text", shown)
    assert "Fraction never trained on" not in shown
