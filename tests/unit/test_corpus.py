"""Reading a corpus: what is a document, what is refused, and that the cache is what was written."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ngramstore import files
from ngramstore.errors import DamagedStore, FormatError, MissingExtra, UsageError
from ngramstore.mine import TokenShards, load_tokenizer, open_corpus, python_sources, train_bpe
from ngramstore.mine import inputs as inputs_module

pytest.importorskip("tokenizers")

TEXTS = ["the cat sat on the mat.\n", "the dog sat on the log.\n", "naïve café ☕ 🦋\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS * 5, 300)


def decoded(corpus: TokenShards, tokenizer) -> list[str]:
    return [tokenizer.decode(document) for document in corpus.documents()]


def test_every_kind_of_text_file_gives_the_same_documents(tmp_path, tokenizer):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name, text in zip(("a.txt", "b.txt", "deep/c.md"), TEXTS, strict=True):
        (folder / name).write_text(text, "utf-8")
    (folder / "ignored.xyz").write_text("no")
    (folder / ".hidden.txt").write_text("no")
    lines = "".join(json.dumps({"text": text, "other": 1}) + "\n" for text in TEXTS).encode()
    (tmp_path / "d.jsonl").write_bytes(lines + b"\n")
    half = len(lines) // 2
    frames = [zstandard.ZstdCompressor().compress(part) for part in (lines[:half], lines[half:])]
    (tmp_path / "d.jsonl.zst").write_bytes(b"".join(frames))
    for given in (folder, tmp_path / "d.jsonl", tmp_path / "d.jsonl.zst"):
        corpus = open_corpus(given, tokenizer=tokenizer, cache=tmp_path / "cache")
        assert decoded(corpus, tokenizer) == TEXTS
        assert corpus.num_documents == 3
        assert corpus.tokenizer_id == tokenizer.id


def test_a_compressed_file_that_is_cut_or_changed_is_refused(tmp_path, tokenizer):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    path = tmp_path / "d.jsonl.zst"
    for bad in [packed[:n] for n in range(1, len(packed))] + [packed[:-1] + bytes([packed[-1] ^ 1]), b"x" * 30]:
        path.write_bytes(bad)
        with pytest.raises(UsageError, match="cannot be decompressed"):
            open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")
    assert not list((tmp_path / "c").glob("tokens-*"))


def test_parquet_gives_its_column_text(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None], "n": [1, 2, 3, 4]}), path)
    assert decoded(open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c"), tokenizer) == TEXTS
    parquet.write_table(pyarrow.table({"body": TEXTS}), path)
    with pytest.raises(UsageError, match=r"no column \"text\".*body"):
        open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"d\.parquet"):
        open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "texts" / "b.txt")
    a, b = tmp_path / "texts" / "a.txt", tmp_path / "texts" / "b.txt"
    assert inputs_module.find_files([b, tmp_path / "texts", a]) == [b, a]
    assert inputs_module.find_files([tmp_path / "texts" / ".." / "texts", b]) == [
        tmp_path / "texts" / ".." / "texts" / "a.txt",
        tmp_path / "texts" / ".." / "texts" / "b.txt",
    ]
    assert inputs_module.find_files([tmp_path / "link.txt", tmp_path]) == [tmp_path / "link.txt", a]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "d.parquet").write_bytes(b"x")
    with pytest.raises(MissingExtra, match="parquet"):
        open_corpus(tmp_path / "d.parquet", tokenizer=tokenizer, cache=tmp_path / "c")


def test_lines_can_be_documents(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("".join(TEXTS) + "\nlast", "utf-8")
    corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c", documents="line")
    assert decoded(corpus, tokenizer) == [*(text.rstrip("\n") for text in TEXTS), "last"]


@pytest.mark.parametrize("piece_bytes", [16, 64, 1000])
def test_a_text_read_in_pieces_has_the_tokens_of_the_whole(tmp_path, monkeypatch, piece_bytes):
    text = "the cat \n\n  sat\n\non \n the\nmat\n" * 60
    tokenizer = train_bpe([text], 290)  # joins runs of white space, so a cut inside one would show
    (tmp_path / "a.txt").write_text(text, "utf-8")
    monkeypatch.setattr(inputs_module, "PIECE_BYTES", piece_bytes)
    pieces = list(inputs_module.read_documents(tmp_path / "a.txt", "file", "strict"))
    assert len(pieces) > 3 or piece_bytes == 1000
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    assert np.array_equal(next(corpus.documents()), tokenizer.encode(text))


def test_invalid_utf8_is_an_error_with_its_byte_unless_replaced(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(inputs_module, "PIECE_BYTES", 8)
    (tmp_path / "a.txt").write_bytes("ä".encode() * 20 + b"ok\n\xff more")
    for documents in ("file", "line"):
        with pytest.raises(UsageError, match=r"a\.txt: invalid UTF-8 at byte 43"):
            open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c", documents=documents)
    corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c", errors="replace")
    assert decoded(corpus, tokenizer) == ["ä" * 20 + "ok\n\ufffd more"]


def test_a_cut_character_at_the_end_is_invalid_too(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"abc\xe2\x98")
    with pytest.raises(UsageError, match="at byte 3"):
        open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")


def test_binary_files_are_left_out_with_a_warning_and_alone_are_an_error(tmp_path, tokenizer, caplog):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.txt").write_bytes(b"\x7fELF\0\0")
    with caplog.at_level(logging.WARNING, "ngramstore"):
        corpus = open_corpus(tmp_path, tokenizer=tokenizer, cache=tmp_path / "c")
    assert corpus.num_documents == 1
    assert "b.txt" in caplog.text
    with pytest.raises(UsageError, match="look binary"):
        open_corpus(tmp_path / "b.txt", tokenizer=tokenizer, cache=tmp_path / "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1]\n", "line 1"), (b'{"text": "a"}\n{"text": 3}\n', "line 2"), (b"{}\n", "no string"), (b"{\n", "not JSON")],
)
def test_bad_records_are_named_by_line(tmp_path, tokenizer, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        open_corpus(tmp_path / "a.jsonl", tokenizer=tokenizer, cache=tmp_path / "c")


def test_an_empty_corpus_is_an_error(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "e").mkdir()
    for given, message in (
        (tmp_path / "a.txt", "empty"),
        (tmp_path / "e", "nothing to read"),
        (tmp_path / "no", "no such"),
    ):
        with pytest.raises(UsageError, match=message):
            open_corpus(given, tokenizer=tokenizer, cache=tmp_path / "c")
    with pytest.raises(UsageError, match="empty list"):
        open_corpus([], tokenizer=tokenizer, cache=tmp_path / "c")
    assert not list((tmp_path / "c").glob("tokens-*"))


def test_a_corpus_is_tokenised_once(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    first = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    monkeypatch.setattr("ngramstore.mine.corpus._tokenise", None)
    again = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    assert again.identity == first.identity
    assert again.shards[0].path == first.shards[0].path


def test_other_text_and_other_tokenizers_have_other_entries(tmp_path, tokenizer):
    entries = set()
    for text, size in ((TEXTS[0], 300), (TEXTS[1], 300), (TEXTS[0], 280)):
        (tmp_path / "a.txt").write_text(text)
        bpe = train_bpe(TEXTS * 5, size)
        entries.add(open_corpus(tmp_path / "a.txt", tokenizer=bpe, cache=tmp_path / "c").shards[0].path)
    assert len(entries) == 3


def test_shards_end_with_documents(tmp_path, tokenizer):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(TEXTS[i % 2])
    corpus = open_corpus(tmp_path, tokenizer=tokenizer, cache=tmp_path / "c", shard_tokens=20)
    assert len(corpus.shards) > 1
    assert decoded(corpus, tokenizer) == [TEXTS[i % 2] for i in range(6)]
    assert corpus.num_tokens == sum(map(len, corpus.documents()))
    shard = corpus.shards[0]
    assert shard.tokens().dtype == np.uint16
    assert np.array_equal(shard.read(3, 7), shard.tokens()[3:7])


def test_every_changed_byte_of_a_cache_entry_is_noticed(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("".join(TEXTS[:2]))
    entry = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c").shards[0].path.parent
    for path in sorted(entry.iterdir()):
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            try:
                TokenShards.load(entry)
            except FormatError:
                continue
            assert json.loads(path.read_bytes()) == json.loads(good)  # white space of the manifest
        path.write_bytes(good[:-1])
        with pytest.raises(FormatError):
            TokenShards.load(entry)
        path.write_bytes(good)
    TokenShards.load(entry)
    (entry / "tokens-00000.u16").unlink()
    with pytest.raises(DamagedStore, match="tokens-00000"):
        TokenShards.load(entry)


@pytest.mark.parametrize("block", [1, 3, 1 << 20], ids=lambda block: f"{block} tokens a block")
@pytest.mark.parametrize("suffix", [".bin", ".npy"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_token_files_are_cut_after_each_separator(tmp_path, monkeypatch, suffix, dtype, block):
    tokens = np.array([5, 6, 0, 0, 7, 8, 9], dtype)
    path = tmp_path / f"t{suffix}"
    if suffix == ".npy":
        np.save(path, tokens)
    else:
        path.write_bytes(tokens.tobytes())
    identity = open_corpus(path, eos_id=0, dtype=dtype).identity
    monkeypatch.setattr("ngramstore.mine.token_files._BLOCK_TOKENS", block)
    corpus, whole = open_corpus(path, eos_id=0, dtype=dtype), open_corpus(path, dtype=dtype)
    assert [d.tolist() for d in corpus.documents()] == [[5, 6, 0], [0], [7, 8, 9]]
    assert [d.tolist() for d in whole.documents()] == [tokens.tolist()]
    assert corpus.identity == identity != whole.identity
    assert corpus.tokenizer_id == ""
    with pytest.raises(UsageError, match="separator 77"):
        open_corpus(path, eos_id=77, dtype=dtype)


def test_bad_token_files_are_refused(tmp_path):
    (tmp_path / "t.bin").write_bytes(b"123")
    with pytest.raises(UsageError, match="dtype"):
        open_corpus(tmp_path / "t.bin")
    with pytest.raises(UsageError, match="3 bytes"):
        open_corpus(tmp_path / "t.bin", dtype="uint16")
    (tmp_path / "t.bin").write_bytes(b"\xff" * 8)
    with pytest.raises(UsageError, match=r"2\*\*32 - 1"):
        open_corpus(tmp_path / "t.bin", dtype="uint32")
    (tmp_path / "t.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="empty"):
        open_corpus(tmp_path / "t.bin", dtype="uint16")
    for array in (np.zeros((2, 2), np.uint16), np.zeros(3, np.int64), np.array([None])):
        np.save(tmp_path / "t.npy", array, allow_pickle=True)
        with pytest.raises((UsageError, FormatError), match=r"t\.npy"):
            open_corpus(tmp_path / "t.npy")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="token files and text"):
        open_corpus([tmp_path / "a.txt", tmp_path / "t.npy"])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, ">u2"])
def test_ids_of_another_type_are_refused_with_what_to_save(tmp_path, dtype):
    np.save(tmp_path / "t.npy", np.arange(5).astype(dtype))
    with pytest.raises(UsageError, match="wanted a vector of uint16 or uint32") as refused:
        open_corpus(tmp_path / "t.npy")
    assert refused.value.hint == "save `ids.astype(np.uint32)`"
    np.save(tmp_path / "t.npy", np.load(tmp_path / "t.npy").astype(np.uint32))
    assert next(open_corpus(tmp_path / "t.npy").documents()).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"documents": "page"}, "page"),
        ({"errors": "ignore"}, "ignore"),
        ({"cache": None}, "cache"),
        ({"tokenizer": None}, "tokenizer"),
        ({"tokenizer": "train:many"}, "many"),
        ({"tokenizer": "train:12"}, "12"),
        ({"tokenizer": "no/such/place"}, "no/such/place"),
    ],
)
def test_wrong_options_show_the_value(tmp_path, tokenizer, options, message):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    with pytest.raises(UsageError, match=message):
        open_corpus(tmp_path / "a.txt", **({"tokenizer": tokenizer, "cache": tmp_path / "c"} | options))


def test_a_tokenizer_trained_on_the_corpus_is_found_again(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXTS[0] * 9)
    first = open_corpus(tmp_path / "a.txt", tokenizer="train:280", cache=tmp_path / "c")
    monkeypatch.setattr("ngramstore.mine.corpus.train_bpe", None)
    again = open_corpus(tmp_path / "a.txt", tokenizer="train:280", cache=tmp_path / "c")
    assert again.tokenizer_id == first.tokenizer_id
    assert again.tokenizer.name == first.tokenizer.name == "bpe-280"


def test_tokenizers_of_other_sizes_and_other_texts_are_trained_beside_one_another(tmp_path):
    """In one cache: neither is taken for the other."""
    found = set()
    for text, size in ((TEXTS[0] + TEXTS[1], 262), (TEXTS[0] + TEXTS[1], 270), (TEXTS[2], 262)):
        (tmp_path / "a.txt").write_text(text * 5, "utf-8")
        found.add(open_corpus(tmp_path / "a.txt", tokenizer=f"train:{size}", cache=tmp_path / "c").tokenizer_id)
    assert len(found) == 3


def test_two_may_save_one_tokenizer_at_once(tmp_path, tokenizer, monkeypatch):
    """As two processes that train it for one cache: neither takes the other's half for its own, or for a left-over."""

    def save_as_well(operation: str, path: Path) -> None:
        if operation == "rename":
            monkeypatch.undo()
            tokenizer.save(tmp_path / "t.json")

    monkeypatch.setattr(files, "observe", save_as_well)
    tokenizer.save(tmp_path / "t.json")
    assert files.observe is not save_as_well
    assert load_tokenizer(tmp_path / "t.json").id == tokenizer.id
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_training_twice_gives_the_same_tokenizer_and_saving_keeps_its_identity(tmp_path, tokenizer):
    assert train_bpe(TEXTS * 5, 300).id == tokenizer.id
    assert train_bpe(TEXTS * 5, 270).id != tokenizer.id
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).id == tokenizer.id
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocab_and_merges_are_the_tokenizer_that_they_came_from(tmp_path, tokenizer):
    model = json.loads(tokenizer._backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges)
    assert load_tokenizer(tmp_path).id == tokenizer.id
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UsageError, match="can be read"):
        load_tokenizer(tmp_path)


def test_the_vocabulary_decides_the_identity_down_to_token_zero(tmp_path, tokenizer):
    whole = json.loads(tokenizer._backend.to_str())
    vocab = whole["model"]["vocab"]
    whole["added_tokens"] = []
    names = {number: token for token, number in vocab.items()}
    identities = set()
    for changed in ({}, {names[1]: 2, names[2]: 1}, {names[0]: None, "zero": 0}):
        whole["model"]["vocab"] = {token: number for token, number in (vocab | changed).items() if number is not None}
        (tmp_path / "t.json").write_text(json.dumps(whole))
        identities.add(load_tokenizer(tmp_path / "t.json").id)
    assert len(identities) == 3


@pytest.mark.skipif(not os.environ.get("NGRAMSTORE_DATA"), reason="NGRAMSTORE_DATA is not set")
def test_gpt2_gives_its_published_ids():
    gpt2 = load_tokenizer(Path(os.environ["NGRAMSTORE_DATA"]) / "gpt2-bpe")
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode("<|endoftext|>").tolist() == [50256]
    assert gpt2.vocab_size == 50257


@pytest.mark.parametrize("newline", ["\r\n", " ", "\r\n\r\n"])
def test_a_long_text_without_plain_newlines_is_read_in_pieces_too(tmp_path, monkeypatch, newline):
    """Lines that end in CR LF, or one long line: whole, it would be held in memory and searched again for each block."""
    text = newline.join(["the cat sat on the mat, he's there", "naïve 12 ☕  and more"] * 60)
    tokenizer = train_bpe([text], 290)
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(inputs_module, "PIECE_BYTES", 64)
    pieces = list(inputs_module.read_documents(tmp_path / "a.txt", "file", "strict"))
    assert len(pieces) > 10 and max(len(piece.text) for piece in pieces) <= 4 * 64
    assert "".join(piece.text for piece in pieces) == text
    corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    assert np.array_equal(next(corpus.documents()), tokenizer.encode(text))


@pytest.mark.parametrize("separator", ["", "\u3000", "\n\n", "\r\n\r\n"])
def test_a_long_text_in_a_script_without_spaces_is_read_in_pieces_too(tmp_path, monkeypatch, separator):
    text = separator.join(["吾輩は猫である。名前はまだ無い。", "どこで生れたかとんと見当がつかぬ。"] * 60)
    tokenizer = train_bpe([text], 290)
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(inputs_module, "PIECE_BYTES", 64)
    pieces = list(inputs_module.read_documents(tmp_path / "a.txt", "file", "strict"))
    assert len(pieces) > 5 and max(len(piece.text) for piece in pieces) <= 4 * 64
    assert "".join(piece.text for piece in pieces) == text
    if separator:  # else there is no good place
        corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
        assert np.array_equal(next(corpus.documents()), tokenizer.encode(text))


@pytest.mark.parametrize("newline", ["", "\n"])
@pytest.mark.parametrize("size", [64, 128, 255, 256, 257, 512, 1024])
def test_a_text_of_a_round_size_ends_where_it_ends(tmp_path, monkeypatch, size, newline):
    """The last cut may fall on the end of the text: the document still ends there."""
    texts = ["x" * (size - len(newline)) + newline, "y" * size]
    tokenizer = train_bpe(["x" * 40 + "y" * 40], 270)
    monkeypatch.setattr(inputs_module, "PIECE_BYTES", 64)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    for given in ([tmp_path / "d.jsonl"], [tmp_path / "0.txt", tmp_path / "1.txt"]):
        corpus = open_corpus(given, tokenizer=tokenizer, cache=tmp_path / "c")
        assert decoded(corpus, tokenizer) == texts
        assert TokenShards.load(next((tmp_path / "c").glob("tokens-*"))).num_documents == 2


def test_ids_that_a_tokenizer_leaves_out_still_count(tmp_path):
    """Ids must fit the shards' type and the model's table: the number of entries does not say how large they are."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 70_000}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "gaps.json"))
    tokenizer = load_tokenizer(tmp_path / "gaps.json")
    assert tokenizer.vocab_size == 70_001
    (tmp_path / "a.txt").write_text("a b c", "utf-8")
    corpus = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    assert next(corpus.documents()).tolist() == [0, 1, 70_000]


def test_half_a_character_in_json_is_an_error_with_its_line_unless_replaced(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "a \\ud83e\\udd8b, half: \\ud800 b"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: half a character, \\ud800, at 11"):
        open_corpus(tmp_path / "a.jsonl", tokenizer=tokenizer, cache=tmp_path / "c")
    corpus = open_corpus(tmp_path / "a.jsonl", tokenizer=tokenizer, cache=tmp_path / "c", errors="replace")
    assert decoded(corpus, tokenizer) == ["fine", "a 🦋, half: \ufffd b"]


def test_json_too_deep_for_the_parser_is_an_error_with_its_line(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 200_000)
    with pytest.raises(UsageError, match="line 1: not JSON"):
        open_corpus(tmp_path / "a.jsonl", tokenizer=tokenizer, cache=tmp_path / "c")


def test_parquet_may_hold_invalid_utf8_and_damaged_pages(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "d.parquet"
    parts = [None, pyarrow.py_buffer(np.array([0, 2, 6], "<i4").tobytes()), pyarrow.py_buffer(b"okb\xffad")]
    parquet.write_table(pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, parts)}), path)
    with pytest.raises(UsageError, match=r"d\.parquet: invalid UTF-8 in row 1, at byte 1"):
        open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")
    corpus = open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c", errors="replace")
    assert decoded(corpus, tokenizer) == ["ok", "b\ufffdad"]
    texts = pyarrow.array(TEXTS * 200)
    for kind in (texts.dictionary_encode(), texts.cast(pyarrow.large_string())):
        parquet.write_table(pyarrow.table({"text": kind}), path)
        assert decoded(open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c"), tokenizer) == TEXTS * 200
    parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(UsageError, match='column "text" holds int64, not strings'):
        open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")
    parquet.write_table(pyarrow.table({"text": [f"{i} {i * i}" for i in range(9999)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 200] = b"\x55" * 200
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"d\.parquet is not a Parquet file that can be read"):
        open_corpus(path, tokenizer=tokenizer, cache=tmp_path / "c")


def test_a_tokenizer_cannot_be_trained_on_tokens(tmp_path):
    np.arange(9, dtype="<u2").tofile(tmp_path / "t.bin")
    with pytest.raises(UsageError, match="no text to train it on"):
        open_corpus(tmp_path / "t.bin", dtype="uint16", tokenizer="train:300")


def test_token_ids_that_the_tokenizer_does_not_have_are_refused(tmp_path, tokenizer):
    np.array([1, tokenizer.vocab_size - 1], "<u2").tofile(tmp_path / "t.bin")
    assert open_corpus(tmp_path / "t.bin", dtype="uint16", tokenizer=tokenizer).tokenizer_id == tokenizer.id
    with pytest.raises(UsageError, match=r"t\.bin: token id \d+, the tokenizer 'bpe-300' has \d+ tokens"):
        open_corpus(tmp_path / "t.bin", dtype="uint32", tokenizer=tokenizer)


def test_a_corpus_that_changes_while_it_is_tokenised_is_refused(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    read = inputs_module.read_documents

    def read_and_change(path, *options):
        yield from read(path, *options)
        path.write_text(TEXTS[1])

    monkeypatch.setattr("ngramstore.mine.corpus.read_documents", read_and_change)
    with pytest.raises(UsageError, match="changed while it was tokenised"):
        open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c")
    monkeypatch.undo()
    assert decoded(open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=tmp_path / "c"), tokenizer) == [TEXTS[1]]


def test_what_a_process_left_that_was_killed_while_it_tokenised_goes_with_the_next_run(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    cache = tmp_path / "c"
    open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=cache)
    (entry,) = cache.iterdir()
    entry.rename(entry.with_name(entry.name + ".tmp-00000000000000a1"))  # process 1 runs, but does not tokenise
    other = cache / "tokens-of-another-corpus.tmp-00000000000000a1"
    other.mkdir()
    assert decoded(open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=cache), tokenizer) == TEXTS[:1]
    assert sorted(path.name for path in cache.iterdir()) == sorted([entry.name, other.name])


def test_two_may_tokenise_one_corpus_at_once(tmp_path, tokenizer, monkeypatch):
    """Threads, or processes with one number in two containers: neither takes the other's folder for its own, or for a
    left-over."""
    (tmp_path / "a.txt").write_text(TEXTS[0])
    cache = tmp_path / "c"
    folders = []

    def encode_while_another_does(texts):
        monkeypatch.undo()
        (folder,) = cache.iterdir()
        other = threading.Thread(
            target=lambda: folders.append(open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=cache))
        )
        other.start()
        other.join()
        assert folder.exists() and list(folder.iterdir()) == []
        return tokenizer.encode_batch(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", encode_while_another_does)
    mine = open_corpus(tmp_path / "a.txt", tokenizer=tokenizer, cache=cache)
    (theirs,) = folders
    assert decoded(mine, tokenizer) == decoded(theirs, tokenizer) == TEXTS[:1]
    assert len(list(cache.iterdir())) == 1


def test_folders_behind_links_are_read_once_and_loops_end(tmp_path):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "y.txt").write_text("y")
    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    (tmp_path / "in" / ".hidden" / "h.txt").write_text("h")
    (tmp_path / "in" / "x.txt").write_text("x")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "deep" / "up").symlink_to(tmp_path / "in")
    found = inputs_module.find_files(tmp_path / "in")
    assert sorted(path.resolve() for path in found) == [
        tmp_path / "in" / "x.txt",
        tmp_path / "other" / "deep" / "y.txt",
    ]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "in" / "private").mkdir(parents=True)
    (tmp_path / "in" / "x.txt").write_text("x")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"no permission for .*private"):
        inputs_module.find_files(tmp_path / "in")


def test_a_part_of_the_standard_library_is_spread_over_all_of_it():
    every, some = python_sources(), python_sources(1_000_000)
    assert set(some) < set(every) and len(every) > 300
    assert sum(path.stat().st_size for path in some) < 4_000_000
    assert len({path.parent for path in some}) > 5


def test_one_file_under_two_names_is_read_once(tmp_path):
    """As on a file system to which two spellings are one name."""
    (tmp_path / "a.txt").write_text(TEXTS[0])
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    assert inputs_module.find_files([tmp_path / "b.txt", tmp_path]) == [tmp_path / "b.txt"]


@pytest.mark.parametrize("is_text", [False, True])
def test_a_change_of_directory_changes_no_corpus(tmp_path, monkeypatch, tokenizer, is_text):
    for name, last in (("here", 3), ("there", 4)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "tokens.npy", np.array([1, 2, last], np.uint16))
        (tmp_path / name / "a.txt").write_text(TEXTS[last - 3])
    monkeypatch.chdir(tmp_path / "here")
    corpus = open_corpus("a.txt", tokenizer=tokenizer, cache="cache") if is_text else open_corpus("tokens.npy")
    wanted = [document.tolist() for document in corpus.documents()]
    monkeypatch.chdir(tmp_path / "there")
    assert [document.tolist() for document in corpus.documents()] == wanted
