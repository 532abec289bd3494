"""`ngramstore dump`: files that `build` makes the same store of, complete or absent."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from failures import each_failure
from helpers import flip
from store_cases import build, build_rows, files_of, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore.cli.dump import dump
from ngramstore.cli.main import cli

METADATA = {"z": [1.5, {"a": None}], "checkpoint_id": "0123", "b": "é"}
NAMES = ["lengths.npy", "metadata.json", "rows.npy", "tokens.npy"]


def run(*args: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stderr if code else done.stdout


def build_again(said: str, new: Path, *more: object) -> None:
    """Run the command that a dump prints."""
    command = said.split("to build it again: ")[1].strip()
    words = shlex.split(command.removeprefix("ngramstore "))
    run(*(new if word == "NEW" else word for word in words), *more, "--quiet")


@pytest.fixture
def store(tmp_path) -> Path:
    return build(tmp_path / "store", some_ngrams(300), some_rows(300), metadata=METADATA, seed=7)


@pytest.mark.parametrize("codec", ["int8", {"name": "int4", "group": 16}, {"name": "e4m3", "block": 0, "scale": 0.5}])
def test_a_store_built_from_its_stored_rows_is_the_same_byte_for_byte(tmp_path, codec):
    options = {"codec": codec, "compression": "auto", "metadata": METADATA, "seed": 7}
    path = build(tmp_path / "store", some_ngrams(300), some_rows(300, 64), **options)
    build_again(run("dump", path, tmp_path / "a dump", "--encoded", "--quiet"), tmp_path / "again")
    assert sorted(os.listdir(tmp_path / "a dump")) == NAMES
    assert files_of(tmp_path / "again") == files_of(path)


def test_a_table_by_number_built_from_its_stored_rows_is_the_same_byte_for_byte(tmp_path):
    path = build_rows(tmp_path / "store", some_rows(70, 32), codec="int8", compression="auto", metadata=METADATA)
    build_again(run("dump", path, tmp_path / "dump", "--encoded", "--quiet"), tmp_path / "again")
    assert sorted(os.listdir(tmp_path / "dump")) == ["metadata.json", "rows.npy"]
    assert files_of(tmp_path / "again") == files_of(path)


def test_encoded_rows_of_another_codec_are_refused_though_they_have_as_many_bytes(tmp_path):
    ngrams, rows = some_ngrams(300), some_rows(300)
    path = build(tmp_path / "store", ngrams, rows, codec="bf16")
    run("dump", path, tmp_path / "dump", "--encoded", "--quiet")
    given = (
        "--vocab",
        tmp_path / "dump",
        "--rows",
        tmp_path / "dump" / "rows.npy",
        "--encoded",
        "--dim",
        rows.shape[1],
    )
    given += ("--metadata", tmp_path / "dump" / "metadata.json", "--quiet")
    said = run("build", tmp_path / "again", *given, "--codec", "f16", code=2)
    assert "bf16" in said and "--codec" in said
    assert not (tmp_path / "again").exists()
    run("build", tmp_path / "again", *given, "--codec", "bf16")


def test_rows_as_numbers_fit_another_codec(tmp_path):
    ngrams, rows = some_ngrams(300), some_rows(300)
    path = build(tmp_path / "store", ngrams, rows, codec="f16")
    run("dump", path, tmp_path / "dump", "--quiet")
    given = ("--vocab", tmp_path / "dump", "--rows", tmp_path / "dump" / "rows.npy", "--quiet")
    run("build", tmp_path / "again", *given, "--codec", "f32")
    with ngs.open(tmp_path / "again") as again:
        found, is_there = again.get(ngrams)
    assert is_there.all()
    np.testing.assert_array_equal(found, rows.astype(np.float16).astype(np.float32))


def test_changes_are_applied_and_files_are_those_of_numpy(tmp_path, store, monkeypatch):
    monkeypatch.setattr("ngramstore.cli.row_input.PART_BYTES", 240)  # ten rows of numbers
    ngrams = some_ngrams(300)
    with ngs.open(store, mode="rw") as writer:
        writer.put([*ngrams[:20], (77, 78)], some_rows(21, seed=1))
        writer.delete(ngrams[20:50])
    told = json.loads(run("dump", store, tmp_path / "dump", "--json", "--quiet"))
    with ngs.open(store) as reader:
        tokens, lengths, rows = (np.concatenate(arrays) for arrays in zip(*reader.batches(), strict=True))
        wanted = {"tokens.npy": tokens, "lengths.npy": lengths, "rows.npy": reader.spec.codec.decode(rows)}
    assert told["rows"] == len(rows) == 271
    for name, array in wanted.items():
        file = io.BytesIO()
        np.save(file, array)
        assert (tmp_path / "dump" / name).read_bytes() == file.getvalue(), name
    assert told["bytes"] == sum((tmp_path / "dump" / name).stat().st_size for name in wanted)
    facts = json.loads((tmp_path / "dump" / "metadata.json").read_bytes())
    assert facts["metadata"] == METADATA and (facts["seed"], facts["max_n"], facts["rows"]) == (7, 3, 271)


def test_a_replaced_row_by_number_is_dumped(tmp_path):
    rows = some_rows(70)
    path = build_rows(tmp_path / "store", rows)
    with ngs.open(path, mode="rw") as writer:
        writer.put([5], np.ones((1, 6), np.float32))
    run("dump", path, tmp_path / "dump", "--quiet")
    rows[5] = 1
    np.testing.assert_array_equal(np.load(tmp_path / "dump" / "rows.npy"), rows)


def test_ngrams_are_printed_as_build_reads_them(tmp_path, store):
    (tmp_path / "ngrams.txt").write_text(run("dump", store, "--ngrams"))
    run("dump", store, tmp_path / "dump", "--quiet")
    given = ("--rows", tmp_path / "dump" / "rows.npy", "--codec", "f32", "--max-n", 3, "--seed", 7, "--quiet")
    made = []
    for name, vocab in (("text", "ngrams.txt"), ("arrays", "dump")):
        run("build", tmp_path / name, "--vocab", tmp_path / vocab, *given)
        made.append(files_of(tmp_path / name))
    assert made[0] == made[1]


def test_a_damaged_row_ends_the_dump_and_nothing_is_left(tmp_path, store):
    flip(next(store.glob("*.rows")), 4096)
    said = run("dump", store, tmp_path / "dump", "--quiet", code=2)
    assert "fail their checksum" in said and "repair" in said
    assert os.listdir(tmp_path) == ["store"]


def test_a_dump_that_the_disk_cannot_hold_is_refused(tmp_path, store, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300 * 4 * 6))
    assert "the dump needs about" in run("dump", store, tmp_path / "dump", "--quiet", code=2)
    assert os.listdir(tmp_path) == ["store"]


def test_each_failure_leaves_a_whole_dump_or_none(quick_path, store, monkeypatch):
    with ngs.open(store, cache_bytes=0) as opened:
        dump(opened, quick_path / "wanted", is_encoded=False)
        wanted = files_of(quick_path / "wanted")

        def act(ground: object, path: Path) -> None:
            dump(opened, path / "dump", is_encoded=False)

        def check(ground: object, path: Path, error: BaseException | None) -> None:
            if error is None or (path / "dump").exists():
                assert files_of(path / "dump") == wanted

        assert each_failure(monkeypatch, lambda path: path.mkdir(), act, check, quick_path) > 10


def test_a_place_in_use_is_refused_and_an_empty_folder_is_not(tmp_path, store):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").touch()
    before = files_of(store)
    assert "is there already" in run("dump", store, tmp_path / "used", code=2)
    assert "lies in the store" in run("dump", store, store / "dump", code=2)
    assert os.listdir(tmp_path / "used") == ["notes"] and files_of(store) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    run("dump", store, tmp_path / "link", "--quiet")
    assert sorted(os.listdir(tmp_path / "empty")) == NAMES


def test_nothing_of_the_users_beside_a_dump_is_removed(tmp_path, store):
    """Folders that a killed dump has left go, by the name that only a dump gives; also where DIR is no pattern."""
    left = "dump[1].tmp-0123456789abcdef"
    kept = ["dump[1].tmp-monday", "dump1.tmp-0123456789abcdef", "dump[1].tmp-0123456789abcde"]
    for name in (left, *kept):
        (tmp_path / name).mkdir()
    run("dump", store, tmp_path / "dump[1]", "--quiet")
    assert sorted(os.listdir(tmp_path)) == sorted(["dump[1]", *kept, "store"])


def test_a_place_that_cannot_be_renamed_to_is_refused_before_anything_is_written(tmp_path, store, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("disk"))
    said = run("dump", store, tmp_path / "disk", code=2)
    assert "cannot be replaced" in said and str(tmp_path / "disk" / "dump") in said
    assert sorted(os.listdir(tmp_path)) == ["disk", "store"] and os.listdir(tmp_path / "disk") == []


def test_a_store_without_rows_has_nothing_to_dump(tmp_path):
    path = build(tmp_path / "store", some_ngrams(3), some_rows(3))
    with ngs.open(path, mode="rw") as writer:
        writer.delete(some_ngrams(3))
    assert "holds no rows" in run("dump", path, tmp_path / "dump", code=2)
    assert not (tmp_path / "dump").exists()


def test_stores_that_lack_ngrams_are_refused_with_what_is_lacking(tmp_path):
    without = build(tmp_path / "without", some_ngrams(9), some_rows(9), tokens=False)
    by_row = build_rows(tmp_path / "by-row", some_rows(9))
    assert "knows the IDs" in run("dump", without, tmp_path / "dump", code=2)
    assert "knows the IDs" in run("dump", without, "--ngrams", code=2)
    assert "holds no n-grams" in run("dump", by_row, "--ngrams", code=2)
    assert "needs DIR" in run("dump", by_row, code=2)
    assert "leave out DIR" in run("dump", by_row, tmp_path / "dump", "--ngrams", code=2)
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "holds no metadata"),
        ("{", "holds no metadata"),
        ('{"ngramstore_dump": 1}', "holds no metadata"),
        ('{"ngramstore_dump": 2, "metadata": {}}', "of version 2"),
        (None, "there is no file"),
    ],
)
def test_metadata_that_build_cannot_take(tmp_path, text, said):
    np.save(tmp_path / "rows.npy", some_rows(5))
    if text is not None:
        (tmp_path / "m.json").write_text(text)
    given = ("build", tmp_path / "new", "--rows", tmp_path / "rows.npy", "--metadata", tmp_path / "m.json")
    assert said in run(*given, code=2)
    assert not (tmp_path / "new").exists()


def test_metadata_of_another_file_are_taken_whole(tmp_path):
    np.save(tmp_path / "rows.npy", some_rows(5))
    (tmp_path / "m.json").write_text(json.dumps(METADATA))
    given = ("build", tmp_path / "new", "--rows", tmp_path / "rows.npy", "--metadata", tmp_path / "m.json", "--quiet")
    run(*given)
    with ngs.open(tmp_path / "new") as opened:
        assert opened.metadata == METADATA
