"""Rows and n-grams of a build, read from every kind of file there may be, and files that are not what they say."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from store_cases import some_rows

from ngramstore.errors import FormatError, UsageError
from ngramstore.mine.vocab import Vocabulary
from ngramstore.safetensors_header import read_safetensors_header
from ngramstore.store.building.ngram_files import open_ngrams
from ngramstore.store.building.row_files import open_table

ROWS = some_rows(10, 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_floats_come_back_as_they_are_from_npy_and_safetensors(tmp_path, dtype):
    rows = ROWS.astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    save_file({"emb": rows, "bias": rows[0].copy()}, tmp_path / "rows.safetensors")
    for path in (tmp_path / "rows.npy", tmp_path / "rows.safetensors"):
        table = open_table(path)
        assert (table.num_rows, table.width) == (10, 6)
        assert table.floats(3, 4).dtype == dtype
        np.testing.assert_array_equal(table.floats(3, 4), rows[3:7])


def test_bf16_and_e4m3_are_decoded_like_ml_dtypes(tmp_path):
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensors = {"bf16": ROWS.astype(ml_dtypes.bfloat16), "fp8": codes.view(ml_dtypes.float8_e4m3fn)}
    save_file(tensors, tmp_path / "rows.safetensors")
    bf16, fp8 = (open_table(tmp_path / "rows.safetensors", name) for name in tensors)
    np.testing.assert_array_equal(bf16.floats(0, 10), tensors["bf16"].astype(np.float32))
    np.testing.assert_array_equal(fp8.floats(0, 16), tensors["fp8"].astype(np.float32))
    np.testing.assert_array_equal(fp8.raw(0, 16), codes)


def test_a_checkpoint_is_mapped_and_its_tensors_found_by_dotted_name(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"model": {"emb": torch.from_numpy(ROWS), "half": torch.from_numpy(ROWS).bfloat16()}, "step": 3}, path)
    np.testing.assert_array_equal(open_table(path, "model.emb").floats(2, 5), ROWS[2:7])
    wanted = ROWS.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(open_table(path, "model.half").floats(0, 10), wanted)
    with pytest.raises(UsageError, match=r"model\.emb"):
        open_table(path, "model.emd")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"emb": Path("anything")}, path)
    with pytest.raises(FormatError, match="cannot be mapped"):
        open_table(path)


def test_codes_without_scales_are_not_taken_for_numbers(tmp_path):
    save_file({"codes": np.zeros((2, 4), np.int8)}, tmp_path / "rows.safetensors")
    with pytest.raises(UsageError, match="I8, which are codes"):
        open_table(tmp_path / "rows.safetensors").floats(0, 1)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("missing.npy", lambda path: None),
        ("rows.csv", lambda path: path.write_text("1,2\n")),
        ("flat.npy", lambda path: np.save(path, np.zeros(3))),
        ("empty.npy", lambda path: np.save(path, np.zeros((0, 3)))),
        ("ints.npy", lambda path: np.save(path, np.array([["a"]]))),
        ("two.safetensors", lambda path: save_file({"a": ROWS, "b": ROWS}, path)),
    ],
)
def test_wrong_files_of_rows_are_one_usage_error(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        open_table(tmp_path / name)
    assert caught.value.hint


def test_scales_in_a_file_of_one_array_are_refused_by_their_option(tmp_path):
    np.save(tmp_path / "codes.npy", ROWS)
    with pytest.raises(UsageError, match="holds one array, not a tensor 'scales'") as refused:
        open_table(tmp_path / "codes.npy", "scales", may_be_vector=True)
    assert "--scales" in refused.value.hint and "--tensor" in refused.value.hint


def test_a_pickled_npy_is_refused(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(FormatError):
        open_table(tmp_path / "rows.npy")


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 40) + b"{}",
        _safetensors([1, 2]),
        _safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(15)),
        _safetensors({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}, bytes(16)),
        _safetensors({"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, bytes(16)),
        _safetensors({"a": {"dtype": "F32", "shape": [2.0, 2], "data_offsets": [0, 16]}}, bytes(16)),
        _safetensors({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, bytes(16)),
    ],
)
def test_a_safetensors_header_that_lies_is_a_format_error(tmp_path, data):
    path = tmp_path / "rows.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        open_table(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 200), value=st.integers(0, 255))
def test_any_byte_changed_reads_in_bounds_or_is_an_error_of_ours(tmp_path, at, value):
    path = tmp_path / "rows.safetensors"
    save_file({"emb": ROWS}, path)
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)
    try:
        for entry in read_safetensors_header(path).values():
            assert entry.begin <= len(data)
        table = open_table(path)
        assert table.raw(0, table.num_rows).nbytes <= len(data)
    except (FormatError, UsageError):
        pass


NGRAMS = [(3, 14), (15,), (9, 2, 2**32 - 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spaces.txt", "3 14\n15\n\n9 2 4294967295\n"),
        ("commas.txt", "3,14\n15\n9, 2, 4294967295"),
        ("lists.jsonl", '[3, 14]\n[15]\n{"tokens": [9, 2, 4294967295]}\n'),
    ],
)
def test_text_holds_an_ngram_a_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    ngrams = open_ngrams(tmp_path / name)
    assert (ngrams.num_ngrams, ngrams.max_n) == (3, 3)
    assert [_listed(chunk) for chunk in ngrams.chunks(2)] == [NGRAMS[:2], NGRAMS[2:]]


@pytest.mark.parametrize("line", ["3 x", "-1 2", "4294967296", "[3.5]", "[]", '{"ids": [3]}', "1 " * 17, "[[3]]"])
def test_a_line_that_is_no_ngram_is_named(tmp_path, line):
    (tmp_path / "ngrams.txt").write_text(f"1 2\n{line}\n")
    with pytest.raises(UsageError, match="line 2") as caught:
        open_ngrams(tmp_path / "ngrams.txt")
    assert "token ids" in caught.value.hint


def test_arrays_and_vocabularies_hold_ngrams(tmp_path):
    tokens, lengths = np.array([[3, 14, 0], [9, 2, 7]]), np.array([2, 3])
    np.save(tmp_path / "equal.npy", tokens[:, :2])
    assert _listed(next(open_ngrams(tmp_path / "equal.npy").chunks(9))) == [(3, 14), (9, 2)]
    np.save(tmp_path / "tokens.npy", tokens)
    np.save(tmp_path / "lengths.npy", lengths)
    assert _listed(next(open_ngrams(tmp_path).chunks(9))) == [(3, 14), (9, 2, 7)]
    Vocabulary(tokens, lengths, np.array([5, 4]), tokenizer_name="mine").save(tmp_path / "v.ngv")
    vocabulary = open_ngrams(tmp_path / "v.ngv")
    assert _listed(next(vocabulary.chunks(9))) == [(3, 14), (9, 2, 7)]
    assert vocabulary.facts["tokenizer_name"] == "mine"


def test_wrong_arrays_of_ngrams_are_one_usage_error(tmp_path):
    np.save(tmp_path / "floats.npy", np.zeros((2, 2)))
    np.save(tmp_path / "tokens.npy", np.zeros((2, 2), int))
    for path in (tmp_path / "floats.npy", tmp_path, tmp_path / "missing.ngv", tmp_path / "missing.txt"):
        with pytest.raises(UsageError):
            open_ngrams(path)


def _listed(chunk: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, ...]]:
    tokens, lengths = chunk
    return [tuple(line[:n].tolist()) for line, n in zip(tokens, lengths, strict=True)]


def test_a_folder_for_a_file_is_called_one(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        open_table(tmp_path)
    with pytest.raises(UsageError, match="there is no file"):
        open_table(tmp_path / "rows.npy")
