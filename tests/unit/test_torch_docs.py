"""The Python blocks of docs/scone.md run, every name the package offers is there, and what is said of held-out text is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import ngramstore_torch
from ngramstore.mine import held_out_spans, mine_ngrams, open_corpus
from ngramstore_torch.cli import train

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "scone.md"


def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


def test_every_name_the_package_offers_can_be_imported():
    for name in ngramstore_torch.__all__:
        assert getattr(ngramstore_torch, name) is not None


def test_public_names_lead_from_text_to_a_trained_model(tmp_path):
    (tmp_path / "text").mkdir()
    for name in "abcd":
        (tmp_path / "text" / f"{name}.txt").write_text(f"{name} rose is a rose is a rose. " * 40)
    corpus = open_corpus(tmp_path / "text", tokenizer="train:280", cache=tmp_path / "cache")
    vocabulary = mine_ngrams(corpus, work=tmp_path / "work", max_n=3, size=50, held_out=0.2)
    train_part, held_part = ngramstore_torch.tag_corpus(corpus, vocabulary, held_out=0.2)
    decoder = ngramstore_torch.DecoderConfig(
        vocab_size=corpus.tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, max_positions=16
    )
    fgram = ngramstore_torch.FgramConfig(dim=16, max_n=3, num_layers=1, num_heads=2)
    model = ngramstore_torch.SconeModel(decoder, fgram)
    config = ngramstore_torch.TrainConfig(tokens=128, batch_size=2, seq_len=16)
    assert ngramstore_torch.train_model(model, train_part, config).step == 4
    assert ngramstore_torch.evaluate_model(model, held_part).num_tokens > 0


def test_a_tokenizer_trained_on_a_corpus_has_seen_what_is_held_out(tmp_path):
    (tmp_path / "text").mkdir()
    for name, word in {"0": "zqxj ", "1": "other ", "2": "word "}.items():
        (tmp_path / "text" / f"{name}.txt").write_text(word * 300)
    corpus = open_corpus(tmp_path / "text", tokenizer="train:300", cache=tmp_path / "cache")
    ((begin, end),) = held_out_spans(corpus, 0.01)[0]
    assert begin == 0 and corpus.tokenizer.decode(corpus.shards[0].tokens()[:end].tolist()) == "zqxj " * 300
    assert len(corpus.tokenizer.encode(" zqxj")) == 1


@pytest.mark.parametrize("page", ["tutorial.md", "mining.md", "scone.md", "codecs.md", "../README.md"])
def test_every_page_with_a_held_out_loss_says_so(page):
    assert re.search(r"train:\w+`[^.]* has seen all of the text", " ".join((DOCS / page).read_text().split()))


def test_the_help_says_so():
    shown = " ".join(CliRunner().invoke(train.command, ["--help"]).output.split())
    assert re.search(r"train:\w+ has seen all of the text", shown)
    assert "Fraction never trained on" not in shown
