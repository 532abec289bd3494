"""Traces: counts are those of a plain counter, files are checked, caches are warmed with what is wanted most."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from store_cases import build, build_rows, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore import files
from ngramstore.cli.main import cli
from ngramstore.errors import DamagedStore, FormatError, NotAStore, UnsupportedVersion, UsageError
from ngramstore.hashing import ngram_ids
from ngramstore.keys import keys_from_config
from ngramstore.serve import recorder as recording
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES
from ngramstore.store.trace import TRACE_HEADER, Trace

QWEN = {
    "model_type": "qwen4_exp_text",
    "vocab_size": 500,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "ple_layer_ids": [2],
    "eos_token_id": 499,
}


def counted(trace: Trace) -> dict[int, int]:
    return dict(zip(trace.keys.tolist(), trace.counts.tolist(), strict=True))


@pytest.fixture
def rows_store(tmp_path):
    return build_rows(tmp_path / "rows", some_rows(300))


@pytest.fixture
def ngram_store(tmp_path):
    ngrams = some_ngrams(200, vocabulary=20)
    return build(tmp_path / "ngrams", ngrams, some_rows(200))


def test_counts_are_those_of_a_plain_counter_in_falling_order():
    rng = np.random.default_rng(1)
    recorder, wanted = recording.Recorder("row", 10**9), Counter()
    for size in (0, 1, 48, 30_000, 7):
        keys = (rng.zipf(1.3, size) * 977 % 10**9).astype(np.int64)
        recorder.add(keys)
        wanted.update(keys.tolist())
    trace = recorder.result()
    assert counted(trace) == wanted and trace.num_lookups == wanted.total()
    pairs = list(zip(trace.counts.tolist(), trace.keys.tolist(), strict=True))
    assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def test_a_recording_of_many_rows_grows():
    """Beyond the table that it begins with."""
    recorder, keys = recording.Recorder("row", 10**9), np.arange(40_000)
    for _ in range(2):
        recorder.add(keys)
    trace = recorder.result()
    assert len(trace.keys) == 40_000 and (trace.counts == 2).all()


def test_a_bounded_recording_keeps_what_is_asked_for_often():
    rng = np.random.default_rng(2)
    recorder = recording.Recorder("row", 10**9, max_entries=500)
    for _ in range(200):
        recorder.add(np.concatenate([np.arange(50), rng.integers(50, 10**9, 100)]))
    trace = recorder.result()
    assert set(range(50)) <= set(trace.keys[:50].tolist()) and (trace.counts[:50] == 200).all()
    assert len(trace.keys) <= 500 and trace.num_lookups == 200 * 150


def test_threads_lose_no_count():
    recorder = recording.Recorder("row", 1000)
    threads = [
        threading.Thread(target=lambda: [recorder.add(np.arange(100)) for _ in range(50)], daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (recorder.result().counts == 200).all()


def test_a_file_comes_back_as_it_was_and_shares_are_those_of_the_counts(tmp_path):
    trace = Trace.of("ngram", (1 << 64) - 1, 10, [7, 1 << 63, 5], [2, 5, 2])
    trace.save(tmp_path / "t")
    again = Trace.load(tmp_path / "t")
    assert (again.addressing, again.space, again.num_lookups) == ("ngram", (1 << 64) - 1, 10)
    assert again.keys.tolist() == [1 << 63, 5, 7] and again.counts.tolist() == [5, 2, 2]
    assert [again.share(n) for n in (0, 1, 2, 3)] == [0, 0.5, 0.7, 0.9]
    assert [again.rows_for(share) for share in (0.5, 0.51, 0.9, 0.91)] == [1, 2, 3, None]
    assert again.top(1).keys.tolist() == [1 << 63] and again.top(1).share(1) == 0.5


def test_every_flip_and_every_cut_of_a_file_is_an_error(tmp_path):
    path = tmp_path / "t"
    Trace.of("row", 100, 10, [7, 3], [2, 5]).save(path)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            Trace.load(path)
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError):
            Trace.load(path)
    path.write_bytes(b"something else altogether, and long enough")
    with pytest.raises(NotAStore, match="not a trace"):
        Trace.load(path)
    path.write_bytes(good[:8] + b"\x02" + good[9:])
    with pytest.raises(UnsupportedVersion, match="version 2"):
        Trace.load(path)
    with pytest.raises(UsageError, match="there is no file"):
        Trace.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="irectory"):
        Trace.load(tmp_path)


def test_a_trace_goes_nowhere_but_into_a_file_of_a_directory(tmp_path):
    trace = Trace.of("row", 100, 10, [7, 3], [2, 5])
    with pytest.raises(UsageError, match=r"no directory .*missing"):
        trace.save(tmp_path / "missing" / "t")
    with pytest.raises(UsageError, match="is a directory"):
        trace.save(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("counts", [[], [6, 2]])
def test_a_share_of_nought_takes_no_rows_and_fewer_than_none_are_refused(counts):
    trace = Trace.of("row", 100, 10, range(len(counts)), counts)
    assert trace.rows_for(0.0) == 0 and trace.share(0) == 0.0 and len(trace.top(0).keys) == 0
    for wrong in (trace.share, trace.top):
        with pytest.raises(UsageError, match="-1"):
            wrong(-1)


def test_the_bytes_of_a_file_are_pinned(tmp_path):
    """As docs/tracing.md draws them; a change needs another version."""
    Trace.of("row", 100, 9, [7, 3], [2, 5]).save(tmp_path / "t")
    assert (tmp_path / "t").read_bytes().hex() == (
        "6e6774726163651a" "0100" "0000" "00000000" "6400000000000000" "0900000000000000" "0200000000000000"
        "0300000000000000" "0700000000000000" "0500000000000000" "0200000000000000" "6cecb29e"
    )  # fmt: skip
    document = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()
    assert TRACE_HEADER.markdown() in document


def test_a_store_records_what_it_is_asked_for_and_nothing_else(rows_store):
    with ngs.open(rows_store) as store:
        store.rows([1, 2])
        with store.trace() as recorder:
            with pytest.raises(UsageError, match="being traced already"):
                store.trace()
            store.rows([[5, 7], [5, 9]])
            store.rows_encoded([5])
            store.warm([20, 21])
            assert counted(recorder.result()) == {5: 3, 7: 1, 9: 1}
        store.rows([5])
        assert counted(recorder.result()) == {5: 3, 7: 1, 9: 1} and recorder.result().space == 300
        with store.trace() as recorder:
            store.rows([8])
        assert counted(recorder.stop()) == {8: 1}


def test_a_store_of_ngrams_records_the_ids_it_found_whatever_the_call(ngram_store):
    with ngs.open(ngram_store) as store:
        there = next(ngram for ngram, _ in store.items() if len(ngram) == 3)
        tokens = np.array([there], np.uint32)
        wanted = int(ngram_ids(tokens, None, 0)[0])
        store.get(tokens)  # from here on it is cached, and a few n-grams have a way of their own
        with store.trace() as recorder:
            store.get(tokens)
            store.get([there, (19, 19, 18)])
            assert store.lookup(tokens[0]).length[-1] == 3
            store.lookup_tail(tokens, np.array([[3]], np.uint8), out=np.empty((1, 1, store.dim), np.float32))
            store.contains(tokens)
        trace = recorder.result()
    assert trace.addressing == "ngram" and counted(trace)[wanted] == 4


def test_a_recording_goes_on_when_the_store_is_refreshed(ngram_store):
    with ngs.open(ngram_store) as store:
        there = np.array([next(ngram for ngram, _ in store.items() if len(ngram) == 3)], np.uint32)
        store.get(there)  # cached: outside a recording the short way
        with store.trace() as recorder:
            with ngs.open(ngram_store, mode="rw") as writer:
                writer.put([(19, 19, 19)], some_rows(1))
            assert store.refresh()
            for _ in range(2):
                store.get(there)
            assert recorder.result().num_lookups == 2


def test_a_recording_of_changed_rows_holds_their_numbers(rows_store):
    with ngs.open(rows_store, mode="rw") as writer:
        writer.put([3], some_rows(1))
    with ngs.open(rows_store) as store:
        with store.trace() as recorder:
            store.rows([3, 4])
        assert counted(recorder.result()) == {3: 1, 4: 1}
        assert store.warm(recorder.result()) == 2


@pytest.mark.parametrize("kind", ["rows", "ngrams"])
def test_warming_from_a_trace_holds_what_is_wanted_most(rows_store, ngram_store, kind, tmp_path):
    path = rows_store if kind == "rows" else ngram_store
    with ngs.open(path) as store:
        if kind == "rows":
            keys = np.random.default_rng(3).permutation(300)
            ask = store.rows
        else:
            keys = [ngram for ngram, _ in store.items()]
            ask = lambda wanted: store.get(wanted)[0]  # noqa: E731
        with store.trace() as recorder:
            for i in range(60):
                ask(keys[: 60 - i])
        recorder.result().save(tmp_path / "hot")
        slot = store.spec.codec.row_bytes + SLOT_OVERHEAD_BYTES
    with ngs.open(path) as store:
        trace = Trace.load(tmp_path / "hot")
        assert store.warm(trace, max_bytes=10 * slot + 5) == 10
        ask = store.rows if kind == "rows" else lambda wanted: store.get(wanted)[0]
        ask(keys[:10])
        stats = store.stats()
        assert (stats["cache_hits"], stats["cache_misses"], stats["rows_read"]) == (10, 0, 10)
        assert store.warm(trace) == 60
    with ngs.open(path, cache_bytes=20 * slot) as store:
        assert store.warm(trace) == 20
        ask = store.rows if kind == "rows" else lambda wanted: store.get(wanted)[0]
        ask(keys[:20])
        assert store.stats()["cache_misses"] == 0
    with ngs.open(path, cache_bytes=0) as store:
        assert store.warm(trace) == 0


def test_a_trace_of_another_store_is_refused(rows_store, ngram_store):
    of_rows, of_ngrams = Trace.of("row", 300, 1, [299], [1]), Trace.of("ngram", 0, 1, [5], [1])
    with ngs.open(rows_store) as store:
        assert store.warm(of_rows) == 1
        for trace in (of_ngrams, Trace.of("row", 301, 1, [0], [1])):
            with pytest.raises(UsageError, match="300 rows addressed by number"):
                store.warm(trace)
    with ngs.open(ngram_store) as store:
        for trace in (of_rows, Trace.of("ngram", 1, 1, [5], [1])):
            with pytest.raises(UsageError, match="n-grams under the seed 0"):
                store.warm(trace)
        assert store.warm(of_ngrams) == 0  # it is not stored any more


def test_traces_add_up():
    joined = Trace.join([Trace.of("row", 9, 5, [1, 2], [3, 2]), Trace.of("row", 9, 4, [2, 8], [3, 1])])
    assert counted(joined) == {2: 5, 1: 3, 8: 1} and joined.num_lookups == 9
    with pytest.raises(UsageError, match="two stores"):
        Trace.join([Trace.of("row", 9, 1, [1], [1]), Trace.of("row", 8, 1, [1], [1])])


def test_the_command_warms_more_rows_than_its_own_cache_holds(tmp_path, rows_store, monkeypatch):
    really_open = ngs.open
    slot = 24 + SLOT_OVERHEAD_BYTES
    monkeypatch.setattr(ngs, "open", lambda path, **options: really_open(path, **{**options, "cache_bytes": 5 * slot}))
    Trace.of("row", 300, 30, np.arange(30), np.ones(30, np.int64)).save(tmp_path / "t.ngt")
    assert run("warm", rows_store, tmp_path / "t.ngt", "--json")["rows_read"] == 30


def test_documents_are_recorded_whole_however_long(ngram_store, monkeypatch):
    rng = np.random.default_rng(4)
    documents = [rng.integers(0, 20, size).astype(np.uint32) for size in (1, 2, 7, 8, 50)]
    keys = keys_from_config(QWEN)
    of_rows = Counter(row for tokens in documents for row in keys.rows(tokens).reshape(-1).tolist())
    monkeypatch.setattr(recording, "_STEP_TOKENS", 7)
    assert counted(recording.record_rows(keys, documents)) == of_rows
    with ngs.open(ngram_store) as store:
        of_ngrams: Counter[int] = Counter()
        for tokens in documents:
            for end, length in enumerate(store.match(tokens).tolist(), 1):
                if length:
                    of_ngrams[int(ngram_ids(tokens[None, end - length : end], None, 0)[0])] += 1
        assert counted(recording.record_matches(store, documents)) == of_ngrams and of_ngrams


def run(*words: object) -> dict:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_trace_and_warm(tmp_path, ngram_store):
    tokens = np.random.default_rng(5).integers(0, 20, 500).astype(np.uint16)
    np.save(tmp_path / "t.npy", tokens)
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    keys = keys_from_config(QWEN)
    out = tmp_path / "hot.ngt"
    said = run("trace", tmp_path / "config.json", tmp_path / "t.npy", "--out", out, "--top", 30, "--json", "--quiet")
    assert (said["lookups"], said["kept"]) == (2000, 30) and said["distinct"] > 30 and 0 < said["kept_share"] < 1
    store = build_rows(tmp_path / "table", some_rows(keys.num_rows), metadata={"keys": keys.spec()})
    again = run("trace", store, tmp_path / "t.npy", "--out", tmp_path / "b.ngt", "--top", 30, "--json", "--quiet")
    assert (tmp_path / "b.ngt").read_bytes() == out.read_bytes()
    run("trace", store, tmp_path / "t.npy", "--out", tmp_path / "all.ngt", "--json", "--quiet")
    everything = Trace.load(tmp_path / "all.ngt")
    assert again["rows_for_share"] == {share: everything.rows_for(float(share)) for share in again["rows_for_share"]}
    assert len(again["rows_for_share"]) > 3
    wanted = again["rows_for_share"]["0.5"]
    with ngs.open(store, cache_bytes=again["cache_bytes_for_share"]["0.5"]) as opened:
        assert opened.stats()["cache_slots"] == wanted  # a cache of the size that is said holds them all
    assert run("warm", store, out, "--json")["rows_read"] == 30
    assert run("warm", store, out, "--max-bytes", 24 * 9, "--json")["rows_read"] == 9
    run("trace", ngram_store, tmp_path / "t.npy", "--out", tmp_path / "n.ngt", "--json", "--quiet")
    trace = Trace.load(tmp_path / "n.ngt")
    with ngs.open(ngram_store) as opened:
        assert trace.counts.sum() == np.count_nonzero(opened.match(tokens.astype(np.int64)))
    assert run("warm", ngram_store, tmp_path / "n.ngt", "--json")["rows_read"] == len(trace.keys)
    text = CliRunner().invoke(cli, ["warm", str(ngram_store), str(tmp_path / "n.ngt")])
    assert "100.0% of the look-ups" in text.stdout
    text = CliRunner().invoke(cli, ["trace", str(store), str(tmp_path / "t.npy"), "--out", str(out), "--quiet"])
    assert "50% of the look-ups" in text.stdout


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_command_reads_text_with_the_model_s_tokenizer_and_makes_its_token_map(tmp_path, is_nested):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["The", "the", "cat", "sat", "pad", "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    config = {
        "engram_layer_ids": [1],
        "engram_max_ngram_size": 2,
        "engram_vocab_size": 20,
        "engram_n_heads": 2,
        "engram_pad_token_id": 4,
        "engram_compressed_vocab_size": 5,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps({"text_config": config} if is_nested else config))
    (tmp_path / "a.txt").write_text("The cat sat")
    (tmp_path / "b.txt").write_text("the cat sat")
    said = run(
        "trace", tmp_path / "model", tmp_path / "a.txt", tmp_path / "b.txt", "--out", tmp_path / "hot",
        "--tokenizer", tmp_path / "model", "--json", "--quiet",
    )  # fmt: skip
    assert said["lookups"] == 12
    assert (Trace.load(tmp_path / "hot").counts % 2 == 0).all()  # both lines ask for the same rows


def test_the_command_says_what_is_missing(tmp_path, rows_store):
    np.save(tmp_path / "t.npy", np.arange(9, dtype=np.uint16))
    for words, message in (
        ([rows_store, tmp_path / "t.npy"], "does not say how its rows are numbered"),
        ([tmp_path / "nothing.json", tmp_path / "t.npy"], "there is no file"),
    ):
        result = CliRunner().invoke(cli, ["trace", *map(str, words), "--out", str(tmp_path / "hot"), "--quiet"])
        assert result.exit_code == 2 and message in result.stderr
    (tmp_path / "hot").write_bytes(b"text")
    result = CliRunner().invoke(cli, ["warm", str(rows_store), str(tmp_path / "hot")])
    assert result.exit_code == 2 and "not a trace" in result.stderr


def test_the_command_says_of_a_wrong_out_before_it_reads_the_text(tmp_path, rows_store, monkeypatch):
    monkeypatch.setattr("ngramstore.mine.open_corpus", lambda *_, **__: pytest.fail("reads the text"))
    np.save(tmp_path / "t.npy", np.arange(4, dtype=np.uint16))
    words = ["trace", str(rows_store), str(tmp_path / "t.npy"), "--out"]
    for out, message in ((tmp_path / "none" / "x.ngt", "there is no folder"), (tmp_path, "is a folder")):
        result = CliRunner().invoke(cli, [*words, str(out)])
        assert result.exit_code == 2 and message in result.stderr


def test_the_command_reads_the_text_that_mining_reads(tmp_path):
    pytest.importorskip("tokenizers")
    from ngramstore.mine import train_bpe

    train_bpe(["some words of text"] * 9, 270).save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.xyz").write_bytes(b"some words \xff of text")
    (tmp_path / "plain.txt").write_text("some words \ufffd of text")
    words = ["trace", tmp_path / "config.json", "--tokenizer", tmp_path / "tokenizer.json", "--quiet", "--json"]
    bad = run(*words, tmp_path / "text", "--out", tmp_path / "x", "--suffix", ".xyz", "--errors", "replace")
    good = run(*words, tmp_path / "plain.txt", "--out", tmp_path / "y")
    assert bad["lookups"] == good["lookups"] > 0
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_store_whose_keys_are_none_is_told(tmp_path):
    with ngs.build(tmp_path / "s", dim=4, addressing="row", metadata={"keys": {"version": 1}}) as builder:
        builder.add_rows(np.zeros((3, 4), np.float32))
    np.save(tmp_path / "t.npy", np.arange(4, dtype=np.uint16))
    result = CliRunner().invoke(
        cli, ["trace", str(tmp_path / "s"), str(tmp_path / "t.npy"), "--out", str(tmp_path / "x")]
    )
    assert result.exit_code == 2 and "not a key spec" in result.stderr


def test_damage_is_told_apart_from_other_files(tmp_path):
    Trace.of("row", 1, 1, [0], [1]).save(tmp_path / "t")
    data = bytearray((tmp_path / "t").read_bytes())
    data[-6] ^= 1
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(DamagedStore, match="checksum"):
        Trace.load(tmp_path / "t")


def test_the_command_refuses_text_of_another_tokenizer_than_the_store_s(tmp_path):
    pytest.importorskip("tokenizers")
    from ngramstore.mine import load_tokenizer, train_bpe

    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 20)
    for name, text in (("its", "the cat sat on the mat"), ("other", "quite another text")):
        train_bpe([text] * 9, 270).save(tmp_path / f"{name}.json")
    tokenizer = load_tokenizer(tmp_path / "its.json")
    names = {"tokenizer_id": tokenizer.id, "tokenizer_name": tokenizer.name}
    store = build(tmp_path / "store", some_ngrams(50, vocabulary=20), some_rows(50), metadata=names)
    words = ["trace", str(store), str(tmp_path / "a.txt"), "--out", str(tmp_path / "t"), "--quiet", "--tokenizer"]
    assert CliRunner().invoke(cli, [*words, str(tmp_path / "its.json")]).exit_code == 0
    result = CliRunner().invoke(cli, [*words, str(tmp_path / "other.json")])
    assert result.exit_code == 2 and "was made with the tokenizer 'its'" in result.stderr


def test_ngrams_of_any_integer_type_warm_a_cache(tmp_path):
    ngrams = [(i, i + 1) for i in range(20)]
    build(tmp_path / "s", ngrams, some_rows(20, 4))
    for dtype in (np.uint64, np.int64, np.uint32, np.uint8):
        with ngs.open(tmp_path / "s") as store:
            assert store.warm(np.array(ngrams, dtype)) == 20


def test_of_processes_that_save_to_one_path_each_trace_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "hot.ngt"
    first, second = (
        Trace("row", 9, sum(counts), np.array(keys, np.uint64), np.array(counts, np.uint64))
        for keys, counts in (([1, 2], [2, 1]), ([7], [4]))
    )
    for step in ("write", "fsync", "rename"):

        def come_between(operation, where, step=step):
            if operation == step:
                monkeypatch.setattr(files, "observe", lambda *given: None)
                second.save(path)
                assert Trace.load(path).keys.tolist() == [7]

        monkeypatch.setattr(files, "observe", come_between)
        first.save(path)
        assert Trace.load(path).keys.tolist() == [1, 2]
        assert [file.name for file in tmp_path.iterdir()] == ["hot.ngt"]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, ">i8", np.uint64])
def test_a_recorder_counts_integers_of_any_type_and_shape(dtype):
    recorder = recording.Recorder("row", 9)
    recorder.add(np.array([[1, 2], [2, 3]], dtype))
    assert counted(recorder.result()) == {2: 2, 1: 1, 3: 1} and recorder.result().num_lookups == 4
    with pytest.raises(UsageError, match="integers"):
        recorder.add(np.array([1.0, 2.0]))
    recorder.add([])
    assert recorder.result().num_lookups == 4


def test_numbers_of_rows_are_whole():
    trace = Trace.of("row", 9, 3, [1, 2], [2, 1])
    for call in (trace.top, trace.share, lambda value: recording.Recorder("row", 9, max_entries=value)):
        with pytest.raises(UsageError):
            call(2.0)
