"""`ngramstore put`: rows inserted, replaced and deleted from files, published when the command ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import assert_verifies, contents, published, rows_of
from store_cases import build, build_rows, files_of, some_rows

import ngramstore as ngs
from ngramstore.cli.main import cli
from ngramstore.cli.row_input import open_row_input
from ngramstore.errors import UsageError

OLD = [(token,) for token in range(10)]
NEW = [(token,) for token in range(5, 25)]


def run(*args: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stderr if code else done.stdout


def counted(*args: object) -> dict:
    return json.loads(run(*args, "--json", "--quiet"))


def write_ngrams(path: Path, ngrams: list[tuple[int, ...]]) -> Path:
    path.write_text("".join(f"{' '.join(map(str, ngram))}\n" for ngram in ngrams))
    return path


@pytest.fixture
def store(tmp_path) -> Path:
    """n-gram (t,) -> stamp t."""
    return build(tmp_path / "store", OLD, rows_of(range(10), 4))


@pytest.fixture
def given(tmp_path) -> tuple[object, ...]:
    """The options that put n-gram (t,) -> stamp 100 + t."""
    np.save(tmp_path / "rows.npy", rows_of([100 + token for (token,) in NEW], 4))
    return ("--vocab", write_ngrams(tmp_path / "new.txt", NEW), "--rows", tmp_path / "rows.npy")


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr("ngramstore.cli.row_input.PART_BYTES", 60)  # three rows and their n-grams


@pytest.mark.usefixtures("small_parts")
def test_rows_are_inserted_and_replaced_and_published(store, given):
    told = counted("put", store, *given)
    assert (told["put"], told["inserted"], told["replaced"], told["found_unpublished"]) == (20, 15, 5, 0)
    assert (told["rows"], told["generation"]) == (25, 2)
    assert published(store) == {(t,): t for t in range(5)} | {(t,): 100 + t for (t,) in NEW}
    assert_verifies(store)
    again = counted("put", store, *given)
    assert (again["inserted"], again["replaced"]) == (0, 20)


@pytest.mark.usefixtures("small_parts")
def test_ngrams_are_deleted_and_absent_ones_are_fine(store, tmp_path):
    told = counted("put", store, "--delete", write_ngrams(tmp_path / "old.txt", NEW))
    assert (told["deleted"], told["absent"], told["rows"]) == (5, 15, 5)
    assert published(store) == {(t,): t for t in range(5)}
    assert "0 rows deleted, 20 n-grams were not stored" in run(
        "put", store, "--delete", tmp_path / "old.txt", "--quiet"
    )


def test_the_last_row_of_an_ngram_counts(store, tmp_path):
    np.save(tmp_path / "rows.npy", rows_of([50, 51, 52], 4))
    vocab = write_ngrams(tmp_path / "new.txt", [(1,), (1,), (30,)])
    told = counted("put", store, "--vocab", vocab, "--rows", tmp_path / "rows.npy")
    assert (told["inserted"], told["replaced"]) == (1, 2)
    assert published(store) == {(t,): t for t in range(10)} | {(1,): 51, (30,): 52}


@pytest.mark.usefixtures("small_parts")
def test_stored_rows_and_codes_are_kept_bit_for_bit(tmp_path):
    from safetensors.numpy import save_file

    path = build(tmp_path / "store", OLD, some_rows(10, 64), codec="int8")
    rng = np.random.default_rng(0)
    codes, steps = rng.integers(-127, 128, (10, 64)).astype(np.int8), rng.random(10).astype(np.float32)
    with ngs.open(path) as opened:
        packed = opened.spec.codec.pack(codes, steps)
    save_file({"codes": codes, "steps": steps, "packed": packed}, tmp_path / "t.safetensors")
    vocab = write_ngrams(tmp_path / "ngrams.txt", OLD)
    given = ("put", path, "--vocab", vocab, "--rows", tmp_path / "t.safetensors", "--quiet", "--tensor")
    for words in (("codes", "--scales", "steps"), ("packed", "--encoded")):
        run(*given, *words)
        with ngs.open(path) as opened:
            found, is_there = opened.get_encoded(OLD)
        assert is_there.all()
        np.testing.assert_array_equal(found, packed)
    assert "no use for --scales" in run(*given, "packed", "--encoded", "--scales", "steps", code=2)
    steps[8] = np.inf
    save_file({"codes": codes, "steps": steps}, tmp_path / "t.safetensors")
    assert "row 8" in run(*given, "codes", "--scales", "steps", code=2)


@pytest.mark.usefixtures("small_parts")
def test_an_ngram_that_is_too_long_is_named_by_its_place_in_the_file_before_anything_is_changed(tmp_path):
    path = build(tmp_path / "store", OLD, rows_of(range(10), 4), max_n=2)
    before = files_of(path)
    ngrams = [(100 + i,) for i in range(60)] + [(1, 2, 3)]
    np.save(tmp_path / "rows.npy", rows_of(range(61), 4))
    vocab = write_ngrams(tmp_path / "ngrams.txt", ngrams)
    for words in (("--vocab", vocab, "--rows", tmp_path / "rows.npy"), ("--delete", vocab)):
        assert "n-gram 60 has 3 tokens, the store's have 2 at most" in run("put", path, *words, "--quiet", code=2)
    assert files_of(path) == before


def test_a_file_of_ngrams_that_changes_while_it_is_read_is_told(tmp_path):
    np.save(tmp_path / "rows.npy", rows_of(range(3), 4))
    vocab = write_ngrams(tmp_path / "ngrams.txt", [(1,), (2,), (3,)])
    given = open_row_input(
        tmp_path / "rows.npy", vocab, tensor=None, scales=None, is_encoded=False, codec="int8", dim=None
    )
    write_ngrams(vocab, [(1,), (2,)])
    with pytest.raises(UsageError, match="changed while it was read"):
        list(given.parts())


@pytest.mark.usefixtures("small_parts")
def test_rows_by_number_are_replaced_and_not_added(tmp_path):
    rows = rows_of(range(30), 4)
    path = build_rows(tmp_path / "store", rows)
    rows[7:27] = rows_of(range(100, 120), 4)
    np.save(tmp_path / "rows.npy", rows[7:27])
    given = ("put", path, "--rows", tmp_path / "rows.npy", "--first")
    assert "do not all exist" in run(*given, 11, code=2)
    told = counted(*given, 7)
    assert (told["inserted"], told["replaced"], told["rows"]) == (0, 20, 30)
    with ngs.open(path) as opened:
        np.testing.assert_array_equal(opened.rows(range(30)), rows)
    assert_verifies(path)


@pytest.mark.usefixtures("small_parts")
def test_what_a_failed_command_left_in_the_journal_is_published_by_the_next(store, given, tmp_path):
    rows = np.load(tmp_path / "rows.npy")
    rows[7, 2] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    said = run("put", store, *given[:2], "--rows", tmp_path / "bad.npy", "--quiet", code=2)
    assert "row 7, column 2: nan" in said and "put: at least 6 of 20 are in the journal" in said
    assert published(store) == {(t,): t for t in range(10)}
    with ngs.open(store, mode="r") as reader:
        assert reader.generation == 1
    told = counted("put", store, "--delete", write_ngrams(tmp_path / "old.txt", [(0,)]))
    assert (told["found_unpublished"], told["deleted"]) == (6, 1)
    assert published(store) == {(t,): t for t in range(1, 10)} | {(t,): 100 + t for (t,) in NEW[:6]}
    told = counted("put", store, *given)
    assert (told["found_unpublished"], told["inserted"]) == (0, 14)


def test_a_second_writer_and_rows_of_another_width_are_refused(store, given, tmp_path):
    with ngs.open(store, mode="rw") as writer:
        assert "is held by" in run("put", store, *given, code=2)
        assert len(contents(writer)) == 10
    np.save(tmp_path / "wide.npy", np.ones((20, 5), np.float32))
    said = run("put", store, *given[:2], "--rows", tmp_path / "wide.npy", code=2)
    assert "has rows of 5, wanted 4" in said and "a row is 4 numbers" in said


def test_options_that_do_not_fit_are_refused(store, given, tmp_path):
    by_row = build_rows(tmp_path / "by-row", some_rows(30, 4))
    vocab, rows = given[:2], given[2:]
    assert "give --rows or --delete" in run("put", store, code=2)
    assert "give --rows or --delete" in run("put", store, *given, "--delete", vocab[1], code=2)
    assert "no use for --first" in run("put", store, "--delete", vocab[1], "--first", 0, code=2)
    assert "addressed by n-gram" in run("put", store, *rows, code=2)
    assert "addressed by n-gram" in run("put", store, *given, "--first", 0, code=2)
    assert "addressed by row number" in run("put", by_row, *rows, code=2)
    assert "addressed by row number" in run("put", by_row, *given, "--first", 0, code=2)
    assert "not deleted" in run("put", by_row, "--delete", vocab[1], code=2)
    assert published(store) == {(t,): t for t in range(10)}
