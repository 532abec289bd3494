"""Wrong input, through Python and through the command line: one clear error with a hint, exit status 2, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import ROOT, build_ngrams, contents, rows_of, start_python

import ngramstore as ngs
from ngramstore import errors
from ngramstore.cli.main import cli
from ngramstore.cli.model_files import read_token_map
from ngramstore.keys import OverEncodingKeys, keys_from_spec

MODEL = {(1,): 1, (1, 2): 2, (3, 1, 2): 3}


@pytest.fixture
def store(quick_path) -> Path:
    build_ngrams(quick_path / "store", MODEL)
    return quick_path / "store"


def refused(*args: object) -> str:
    """The command fails with status 2 and says what to do."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert "error: " in result.stderr.lower()
    return result.stderr


def intact(path: Path) -> bool:
    with ngs.open(path, cache_bytes=0) as opened:
        return contents(opened) == MODEL


def raises(kind: type[errors.NgramStoreError], match: str = ""):
    return pytest.raises(kind, match=rf"(?s){match}.*hint: ")


def test_an_empty_build_leaves_nothing_behind(quick_path):
    with raises(errors.UsageError, "nothing was added"), ngs.build(quick_path / "new", dim=4, max_n=3):
        pass
    assert list(quick_path.iterdir()) == []
    (quick_path / "ngrams.txt").write_text("")
    np.save(quick_path / "rows.npy", np.zeros((0, 4), np.float32))
    arguments = ("--vocab", quick_path / "ngrams.txt", "--rows", quick_path / "rows.npy")
    assert "hint: " in refused("build", quick_path / "new", *arguments)
    assert not (quick_path / "new").exists()


@pytest.mark.parametrize("dim", [0, -1, 2.5])
def test_zero_dims_are_refused(quick_path, dim):
    with pytest.raises(errors.UsageError, match=r"dim must be a positive integer"):
        ngs.build(quick_path / "new", dim=dim, max_n=3)
    assert not (quick_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "match"), [("--dim", "dim=0"), ("--max-n", "max_n must be 1 to 16, got 0")], ids=["dim", "max_n"]
)
def test_a_width_or_length_of_zero_is_not_taken_for_none_given(quick_path, option, match):
    np.save(quick_path / "rows.npy", np.zeros((1, 5), np.float32))
    (quick_path / "ngrams.txt").write_text("3 4\n")
    arguments = ("--vocab", quick_path / "ngrams.txt", "--rows", quick_path / "rows.npy", "--quiet")
    assert match in refused("build", quick_path / "new", *arguments, option, 0)
    encoded = ("--vocab", quick_path / "ngrams.txt", "--rows", quick_path / "rows.npy", "--encoded", option, 0)
    assert "dim" in refused("build", quick_path / "new", *encoded)
    assert not (quick_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--max-n", "3"], "--max-n"),
        (["--no-tokens"], "--no-tokens"),
        (["--seed", "7"], "--seed"),
        (["--duplicates", "last"], "--duplicates"),
    ],
)
def test_what_only_n_grams_have_is_refused_for_rows_by_number(quick_path, arguments, named):
    np.save(quick_path / "rows.npy", np.zeros((3, 5), np.float32))
    said = refused("build", quick_path / "new", "--rows", quick_path / "rows.npy", "--quiet", *arguments)
    assert f"{named} needs --vocab" in said and "hint: " in said
    assert not (quick_path / "new").exists()


def test_rows_of_another_width_are_refused_and_named(quick_path, store):
    wrong = pytest.raises(errors.UsageError, match=r"\(1, 5\), wanted \(1, 4\)")
    with wrong, ngs.build(quick_path / "new", dim=4, max_n=3) as builder:
        builder.add([(1,)], np.zeros((1, 5)))
    with pytest.raises(errors.UsageError, match=r"\(1, 5\)"), ngs.open(store, mode="rw") as writer:
        writer.put([(1,)], np.zeros((1, 5), np.float32))
    np.save(quick_path / "rows.npy", np.zeros((3, 5), np.float32))
    assert "wanted 4" in refused("build", quick_path / "cli", "--rows", quick_path / "rows.npy", "--dim", 4)
    assert not (quick_path / "new").exists() and not (quick_path / "cli").exists()
    assert intact(store)


@pytest.mark.parametrize(
    ("ngram", "match"),
    [((1, 2, 3, 4), "4 tokens"), ((), "0 tokens"), ((-1,), "-1"), ((2**32,), "4294967296"), ((1.5,), "integers")],
)
def test_ngrams_that_are_none_are_refused_and_named(store, ngram, match):
    with ngs.open(store, mode="rw") as opened:
        for call in (opened.get, opened.delete, lambda keys: opened.put(keys, rows_of([1], 4))):
            with raises(errors.UsageError, match):
                call([ngram])
    assert intact(store)
    assert "hint: " in refused("get", store, "--ngram", " ".join(map(str, ngram)))


@pytest.mark.parametrize("tokens", [[[1, -1]], [[1.5]], [["a"]], [[2**32]]])
def test_token_lines_that_are_none_are_refused(store, tokens):
    with ngs.open(store) as opened, raises(errors.UsageError, "tokens"):
        opened.lookup(tokens)
    assert "hint: " in refused("lookup", store, "--tokens", " ".join(map(str, tokens[0])))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.get([[[3, 14]]]),
        lambda store: store.contains([[[3], [14]]]),
        lambda store: store.get((np.ones((2, 2), np.int64), [[2], [1, 2]])),
        lambda store: store.lookup([[1, 2]], starts=[[True], [True, False]]),
        lambda store: store.lookup([[1], [1, 2]]),
        lambda store: store.lookup([[1]], dtype=["f32"]),
        lambda store: store.put([(1,)], [[1.0], [1.0, 2.0]]),
        lambda store: ngs.build(store.path.parent / "new", dim=4, max_n=3).add([(1,)], [[1.0], [1.0, 2.0]]),
    ],
)
def test_lists_of_lists_that_are_no_array_are_refused(store, call):
    with ngs.open(store, mode="rw") as opened, pytest.raises(errors.UsageError):
        call(opened)
    assert intact(store)


def test_a_list_of_types_is_refused_on_every_path(quick_path, store):
    with ngs.build(quick_path / "table", dim=4, addressing="row") as builder:
        builder.add_rows(np.zeros((3, 4), np.float32))
    pairs = np.array([[1, 2]], np.uint32)
    with ngs.open(store) as ngrams, ngs.open(quick_path / "table") as table:
        for call in (
            lambda: ngrams.get(pairs, dtype=["f32"]),
            lambda: ngrams.get(np.repeat(pairs, 20, axis=0), dtype=["f32"]),
            lambda: table.rows(np.array([0]), dtype=["f32"]),
        ):
            with pytest.raises(errors.UsageError, match=r"dtype is \['f32'\]"):
                call()


def test_what_the_hint_for_lines_of_several_lengths_names_works(store):
    """Padded on the right, or one behind the other with marks where each begins."""
    lines = [[3, 1, 2], [1, 2], [3], [1]]
    with ngs.open(store) as opened:
        with pytest.raises(errors.UsageError, match="pad lines on the right"):
            opened.lookup(lines)
        joined = [token for line in lines for token in line]
        marks = np.array([place == 0 for line in lines for place in range(len(line))])
        found = opened.lookup(joined, starts=marks)
        padded = opened.lookup([[*line, *[2] * (3 - len(line))] for line in lines])
        is_token = np.arange(3) < np.array([[len(line)] for line in lines])
        for alone, together in ((padded.length[is_token], found.length), (padded.rows[is_token], found.rows)):
            np.testing.assert_array_equal(alone, together)
        assert found.length.tolist() == [int(n) for line in lines for n in opened.lookup(line).length]


def test_what_a_store_does_not_answer_is_refused_with_what_it_does(quick_path, store):
    with ngs.build(quick_path / "table", dim=4, addressing="row") as builder:
        builder.add_rows(np.zeros((3, 4), np.float32))
    with ngs.open(store) as ngrams, ngs.open(quick_path / "table") as table:
        for name in ("rows", "rows_encoded"):
            with pytest.raises(errors.UsageError) as raised:
                getattr(ngrams, name)([0])
            assert raised.value.message == f"{name} needs row numbers; {store} is addressed by n-gram"
            assert "get(ngrams) or lookup(tokens)" in raised.value.hint
        with pytest.raises(errors.UsageError, match=r"get needs n-grams; .*\n  hint: use rows\(numbers\)"):
            table.get([(1,)])
    assert "needs row numbers" in refused("get", store, "--row", 0)


def test_row_numbers_and_tokens_that_are_no_array_are_refused(quick_path):
    with ngs.build(quick_path / "table", dim=4, addressing="row") as builder:
        builder.add_rows(np.zeros((3, 4), np.float32))
    with (
        ngs.open(quick_path / "table") as table,
        pytest.raises(errors.UsageError, match="row numbers are not an array"),
    ):
        table.rows([[1], [1, 2]])
    with pytest.raises(errors.UsageError, match="tokens are not an array"):
        OverEncodingKeys(vocab_size=9, orders=(2,), sizes=(13,), absent_token_id=0).rows([[1], [1, 2]])
    with pytest.raises(errors.UsageError, match="not a key spec"):
        keys_from_spec({"model": ["engram"]})


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("addressing", ["ngram", "row"])
def test_a_type_whose_letter_is_that_of_half_precision_is_refused_as_output(quick_path, addressing, resident):
    """ml_dtypes.int1 has one byte and the letter of f16: rows of two bytes a value would end behind the array."""
    row = np.ones((1, 64), np.float32)
    options = {"max_n": 2} if addressing == "ngram" else {}
    with ngs.build(quick_path / "s", dim=64, addressing=addressing, codec="f16", **options) as builder:
        builder.add([(1, 2)], row) if addressing == "ngram" else builder.add_rows(row)
    memory = np.full(128, 0xAA, np.uint8)
    out = memory[:64].view(ml_dtypes.int1).reshape(1, 64)
    with ngs.open(quick_path / "s", resident=resident) as store:
        calls = [
            lambda: store.get([(1, 2)], out=out),
            lambda: store.get(np.array([[1, 2]], np.uint32), out=out),
            lambda: store.get(np.tile(np.array([[1, 2]], np.uint32), (20, 1)), out=np.repeat(out, 20, axis=0)),
            lambda: store.lookup([2], out=out),
            lambda: store.lookup_tail(np.ones((1, 1), np.uint32), np.ones((1, 1), np.uint8), out=out[None]),
            lambda: store.lookup_one(np.ones(1, np.uint32), 1, 1, out=out[0]),
        ]
        if addressing == "row":
            calls = [lambda: store.rows(np.array([0]), out=out), lambda: store.rows([0], out=out)]
        for call in calls:
            with pytest.raises(errors.UsageError, match="out has dtype int1"):
                call()
        if addressing == "ngram":  # as many bytes as a row has
            wide = memory.view(ml_dtypes.int1).reshape(1, 128)
            for call in (
                lambda: store.lookup_tail(np.ones((1, 1), np.uint32), np.ones((1, 1), np.uint8), out=wide[None]),
                lambda: store.lookup_one(np.ones(1, np.uint32), 1, 1, out=wide[0]),
            ):
                with pytest.raises(errors.UsageError):
                    call()
    assert (memory[64:] == 0xAA).all()


@pytest.mark.parametrize("number", ["9" * 400, "1" + "0" * 30, "9.3B" + "B"])
def test_numbers_beyond_any_store_are_refused(quick_path, number):
    for words in (("sizes", "--rows", number, "--dim", 8), ("mine", quick_path, "--out", "v", "--memory", number)):
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 2 and ("more than" in result.stderr or "is not a" in result.stderr), result.output


def test_an_archive_of_arrays_is_no_token_file_and_no_token_map(quick_path):
    with open(quick_path / "z.npy", "wb") as file:
        np.savez(file, a=np.arange(3, dtype=np.uint16))
    assert "archive of arrays" in refused("mine", quick_path / "z.npy", "--out", quick_path / "v.ngv")
    with pytest.raises(errors.UsageError, match="archive of arrays"):
        read_token_map(quick_path / "z.npy")


def test_bytes_that_are_no_text_are_no_tokens(store):
    done = subprocess.run(
        [sys.executable, "-m", "ngramstore", "lookup", str(store)],
        input=b"1 2\n1 \xff\n", capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 2 and b"bug" not in done.stderr and b"error: " in done.stderr.lower()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_with_row_and_column(quick_path, store, value):
    rows = rows_of([1, 2, 3], 4)
    rows[2, 1] = value
    with raises(errors.UsageError, "row 2, column 1"), ngs.build(quick_path / "new", dim=4, max_n=3) as builder:
        builder.add([(1,), (2,), (3,)], rows)
    with ngs.open(store, mode="rw") as writer, raises(errors.UsageError, "row 2, column 1"):
        writer.put([(1,), (2,), (3,)], rows)
    np.save(quick_path / "rows.npy", rows)
    assert "row 2, column 1" in refused("build", quick_path / "new", "--rows", quick_path / "rows.npy", "--quiet")
    assert not (quick_path / "new").exists()
    assert intact(store)


def test_a_file_where_a_directory_belongs(quick_path):
    path = quick_path / "file"
    path.write_text("mine")
    np.save(quick_path / "rows.npy", rows_of([1], 4))
    with raises(errors.UsageError, "is a file"):
        ngs.build(path, dim=4, max_n=3)
    with raises(errors.NotAStore, "is a file"):
        ngs.open(path)
    assert "is a file" in refused("build", path, "--rows", quick_path / "rows.npy")
    for command in ("stats", "verify", "repair", "compact", "inspect"):
        assert "is a file" in refused(command, path)
    assert path.read_text() == "mine"


def test_a_directory_that_is_no_store(quick_path):
    (quick_path / "notes.txt").write_text("mine")
    np.save(quick_path / "rows.npy", rows_of([1], 4))
    for mode in ("r", "rw"):
        with raises(errors.NotAStore, "holds no store"):
            ngs.open(quick_path, mode=mode)
    with raises(errors.UsageError, "not empty"):
        ngs.build(quick_path, dim=4, max_n=3)
    for command in ("stats", "verify", "repair", "compact", "inspect"):
        assert "hint: " in refused(command, quick_path)
    assert sorted(file.name for file in quick_path.iterdir()) == ["notes.txt", "rows.npy"]


def test_a_store_of_a_newer_version(store):
    text = (store / "MANIFEST").read_bytes()
    (store / "MANIFEST").write_bytes(text.replace(b"manifest 1 ", b"manifest 2 ", 1))
    with raises(errors.UnsupportedVersion, "version 2, this release reads 1"):
        ngs.open(store)
    assert "upgrade" in refused("stats", store)
    assert "version 2" in refused("repair", store)
    (store / "MANIFEST").write_bytes(text)
    assert intact(store)


def test_a_missing_file_and_a_foreign_one(store, quick_path):
    build_ngrams(quick_path / "other", {ngram: stamp + 1 for ngram, stamp in MODEL.items()})
    rows = store / "base-000001.rows"
    data = rows.read_bytes()
    shutil.copy(quick_path / "other" / rows.name, rows)
    with raises(errors.DamagedStore, "not the file the manifest names"):
        ngs.open(store)
    assert "hint: " in refused("stats", store)
    rows.unlink()
    with raises(errors.DamagedStore, "is missing"):
        ngs.open(store)
    assert "is missing" in refused("get", store, "--ngram", "1")
    rows.write_bytes(data)
    assert intact(store)


def test_a_second_writer_is_refused_at_once(store):
    with ngs.open(store, mode="rw") as writer:
        with raises(errors.WriterLocked, str(os.getpid())):
            ngs.open(store, mode="rw")
        assert str(os.getpid()) in refused("compact", store)
        writer.put([(9,)], rows_of([9], 4))
    with ngs.open(store) as opened:
        assert contents(opened) == MODEL | {(9,): 9}


def test_a_handle_after_close_says_so(store):
    opened = ngs.open(store, mode="rw")
    opened.close()
    opened.close()
    for call in (lambda: opened.get([(1,)]), lambda: opened.lookup([1]), lambda: opened.put([(1,)], rows_of([1], 4))):
        with raises(errors.StoreClosed):
            call()
    for call in (opened.flush, opened.compact, opened.stats, opened.verify, lambda: len(opened)):
        with raises(errors.StoreClosed):
            call()
    assert intact(store)


def test_a_change_through_a_handle_for_reading_is_refused(store):
    with ngs.open(store) as opened:
        for call in (opened.flush, opened.compact, lambda: opened.delete([(1,)])):
            with raises(errors.ReadOnlyStore):
                call()
    assert intact(store)


BECOME_NOBODY = """
import os, sys
import ngramstore as ngs
from ngramstore import errors
from ngramstore.store.repair.check import verify
path = sys.argv[1]
with ngs.open(path, cache_bytes=1000) as store:  # loads and compiles all that is not readable for others
    store.lookup([1])
    store.verify()
os.setgid(65534); os.setuid(65534)
"""
AS_NOBODY = """
with ngs.open(path) as store:
    assert store.lookup([3, 1, 2]).length.tolist() == [0, 1, 3]
    assert store.verify() == []
assert sorted(os.listdir(path)) == sys.argv[2].split(",")
for what in (lambda: ngs.open(path, mode="rw"), lambda: ngs.build(path + "/new", dim=4, max_n=3)):
    try:
        what()
    except errors.UsageError as error:
        assert "permission" in error.message and error.hint
    else:
        raise AssertionError("a directory without permission was written to")
"""
UNREADABLE = """
try:
    ngs.open(path)
except errors.UsageError as error:
    assert "permission" in str(error) and error.hint, error
else:
    raise AssertionError("opened without permission")
"""


@pytest.fixture
def of_root(store):
    """The store readable for others, and what a child needs to act as one; skipped where we are not root."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    for path in (store.parent, store):
        path.chmod(0o755)
    for file in store.iterdir():
        file.chmod(0o644)
    return store


def as_nobody(code: str, *args: object) -> None:
    child = start_python(BECOME_NOBODY + code, *args, stderr=subprocess.PIPE)
    told = child.communicate(timeout=120)[1].decode()
    assert child.returncode == 0, told


def test_a_read_only_directory_opens_for_reading_and_nothing_else(of_root):
    (of_root / "LOCK").unlink(missing_ok=True)
    of_root.chmod(0o555)
    names = sorted(file.name for file in of_root.iterdir())
    as_nobody(AS_NOBODY, of_root, ",".join(names))
    assert intact(of_root)


def test_no_permission_to_read_is_told(of_root):
    (of_root / "MANIFEST").chmod(0o600)
    as_nobody(UNREADABLE, of_root)
    (of_root / "MANIFEST").chmod(0o644)
    (of_root / "base-000001.rows").chmod(0o600)
    as_nobody(UNREADABLE, of_root)
    assert intact(of_root)


@pytest.mark.parametrize("spare", range(4))
def test_too_many_open_files_is_not_taken_for_damage(store, spare):
    """Else `verify` and `repair` would see faults in a store that is well."""
    with ngs.open(store) as opened:
        opened.get([(1,)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open(os.devnull, os.O_RDONLY)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, hard))
    try:
        with pytest.raises(errors.UsageError, match=r"(?s)open files.*ulimit"):
            ngs.open(store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert intact(store)


FULL = """
import resource, signal, sys
import numpy as np
import ngramstore as ngs
from ngramstore import errors
path = sys.argv[1]
rows = np.zeros((2000, 4), np.float32)
ngrams = np.arange(2000, dtype=np.uint32)[:, None] + 100
writer = ngs.open(path, mode="rw")
writer.get(ngrams)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    writer.put(ngrams, rows)
    writer.flush()
except errors.DiskFull as error:
    assert error.hint
else:
    raise AssertionError("the disk was not full")
try:
    with ngs.build(path + "-new", dim=4, max_n=3) as builder:
        builder.add(ngrams, rows)
except errors.DiskFull as error:
    assert error.hint
else:
    raise AssertionError("the disk was not full")
import os
os._exit(0)
"""


def test_a_full_disk_is_told_and_loses_nothing(store):
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the size of files is limited already")
    child = start_python(FULL, store, stderr=subprocess.PIPE)
    told = child.communicate(timeout=120)[1].decode()
    assert child.returncode == 0, told
    assert not Path(f"{store}-new").exists()
    with ngs.open(store, cache_bytes=0) as opened:
        assert MODEL.items() <= contents(opened).items()


def test_the_console_script_ends_with_2_and_no_traceback(quick_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ngramstore", "stats", str(quick_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "  hint: " in done.stderr and "Traceback" not in done.stderr


def _npy_with(path: Path, header: bytes) -> Path:
    """A file of version 1 with this header."""
    padded = header.ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(64))
    return path


BAD_HEADERS = {
    "a flipped bit": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4(, }",
    "a negative size": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-100, 4), }",
    "an endless size": b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 4), }",
    "more than an integer": b"{'descr': '<f4', 'fortran_order': False, 'shape': (1180591620717411303424, 4), }",
}


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_damaged_header_of_an_array_is_one_clear_error(quick_path, header):
    path = _npy_with(quick_path / "rows.npy", header)
    assert "is not an array that can be mapped" in refused("build", quick_path / "new", "--rows", path)
    tokens = _npy_with(quick_path / "t.npy", header.replace(b"<f4", b"<u2"))
    assert "is not an array that can be mapped" in refused("mine", tokens, "--out", quick_path / "v.ngv")
    with pytest.raises(errors.FormatError, match="is not an array that can be mapped"):
        read_token_map(path)


def test_archives_under_the_name_of_an_array_are_one_clear_error(quick_path):
    with open(quick_path / "rows.npy", "wb") as file:
        np.savez(file, a=np.ones((3, 4), np.float32))
    assert "archive of arrays" in refused("build", quick_path / "new", "--rows", quick_path / "rows.npy")
    whole = (quick_path / "rows.npy").read_bytes()
    (quick_path / "rows.npy").write_bytes(whole[:-30])
    assert "that can be mapped" in refused("build", quick_path / "new", "--rows", quick_path / "rows.npy")
