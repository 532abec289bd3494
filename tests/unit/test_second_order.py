"""Rounding by sensitivity: the same format, less of the error that is asked about, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore
from ngramstore.codec import SecondOrderInt4, codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.kernels.native import quantize as native_quantize
from ngramstore.kernels.reference import quantize as reference_quantize


def moments(dim: int, seed: int = 0, rank: int | None = None) -> np.ndarray:
    """Second moments of `rank` correlated directions."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((dim if rank is None else rank, dim)) * np.exp(rng.normal(0, 1, dim))
    return mix.T @ mix / len(mix)


def rows_of(dim: int, num_rows: int = 200, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_rows, dim)) * np.exp(rng.normal(0, 1, (num_rows, 1)))).astype(np.float32)


def costs(sensitivity: np.ndarray, rows: np.ndarray, codec, encoded: np.ndarray) -> np.ndarray:
    error = (codec.decode(encoded) - rows).astype(np.float64)
    return np.einsum("md,de,me->m", error, sensitivity, error)


@pytest.mark.parametrize(("dim", "group"), [(64, 32), (64, 16), (70, 32), (33, 32), (31, 8), (5, 2), (1, 32)])
def test_rows_stay_rows_of_the_codec_and_cost_less(dim, group):
    codec, sensitivity, rows = codec_from_spec({"name": "int4", "group": group}, dim), moments(dim), rows_of(dim)
    encoded = SecondOrderInt4(codec, sensitivity).encode(rows)
    assert encoded.shape == (len(rows), codec.row_bytes) and encoded.dtype == np.uint8
    codes, scales = codec.unpack(encoded)
    assert np.array_equal(codec.pack(codes, scales), encoded)
    plain, found = (costs(sensitivity, rows, codec, bytes_).sum() for bytes_ in (codec.encode(rows), encoded))
    assert found <= plain * (0.8 if dim > 8 else 1.05)


def test_where_every_direction_counts_alike_it_rounds_as_the_codec_does():
    codec, rows = codec_from_spec("int4", 70), rows_of(70)
    for unit in (1e-12, 1, 1e12):
        assert np.array_equal(SecondOrderInt4(codec, unit * np.eye(70)).encode(rows), codec.encode(rows))


def test_an_error_goes_where_it_does_not_matter():
    """Only the sum of two neighbours counts: what one misses, the other makes good."""
    sensitivity = np.kron(np.eye(16), np.ones((2, 2)))
    codec, rows = codec_from_spec("int4", 32), rows_of(32)
    sums = [
        np.abs((codec.decode(encoded) - rows).reshape(len(rows), 16, 2).sum(axis=2)).mean()
        for encoded in (codec.encode(rows), SecondOrderInt4(codec, sensitivity).encode(rows))
    ]
    assert sums[1] < 0.85 * sums[0]


def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_part_it_comes_in():
    codec, rows = codec_from_spec("int4", 48), rows_of(48, 9000)
    encoder = SecondOrderInt4(codec, moments(48, rank=20))
    whole = encoder.encode(rows)
    parts = np.concatenate([encoder.encode(rows[:4096]), encoder.encode(rows[4096:])])
    same = (whole == parts).all(axis=1)
    assert same.mean() > 0.999  # a product of other shape may round the other way between two levels
    assert np.array_equal(encoder.encode(rows.astype(np.float64)), whole)
    assert rows.flags.writeable and np.array_equal(rows, rows_of(48, 9000))  # what is given is not changed


@settings(max_examples=40, deadline=None)
@given(
    dim=st.integers(1, 40), group=st.sampled_from([2, 6, 32]), seed=st.integers(0, 1000), size=st.sampled_from([1e-30, 1, 1e30])
)  # fmt: skip
def test_nothing_goes_wild_whatever_the_rows(dim, group, seed, size):
    """What is stored is finite, and zeros stay zeros."""
    codec = codec_from_spec({"name": "int4", "group": group}, dim)
    sensitivity, rows = moments(dim, seed), (rows_of(dim, 40, seed) * np.float32(size)).astype(np.float32)
    rows[::7] = 0
    encoded = SecondOrderInt4(codec, sensitivity).encode(rows)
    assert np.isfinite(codec.decode(encoded)).all()
    assert not codec.decode(encoded)[::7].any()


@pytest.mark.parametrize("group", [2, 6, 32])
def test_a_handful_of_short_rows_may_be_unlucky_but_most_are_not(group):
    """Where what one value misses pushes the next beyond the last level, a row costs more than rounded plainly."""
    ratios = []
    for seed in range(120):
        dim = 1 + seed % 40
        codec, sensitivity, rows = (
            codec_from_spec({"name": "int4", "group": group}, dim),
            moments(dim, seed),
            rows_of(dim, 40, seed),
        )
        encoded = SecondOrderInt4(codec, sensitivity).encode(rows)
        plain, found = (costs(sensitivity, rows, codec, bytes_).sum() for bytes_ in (codec.encode(rows), encoded))
        ratios.append(found / plain)
    assert np.mean(ratios) < 0.8 and np.quantile(ratios, 0.95) < 1.5 and max(ratios) < 10


@pytest.mark.parametrize(("row", "column"), [(0, 0), (4099, 17)])
def test_values_whose_errors_could_overflow_are_refused_as_they_were_given(row, column):
    """At 3e38 all signs were lost, without a word; the last ones below the limit are as good as small ones."""
    codec, sensitivity = codec_from_spec("int4", 32), np.ones((32, 32)) + 0.01 * np.eye(32)
    encoder, rows = SecondOrderInt4(codec, sensitivity), rows_of(32, 4100)
    rows = (rows / np.abs(rows).max()).astype(np.float32)
    codes, _ = codec.unpack(encoder.encode(rows))
    large, _ = codec.unpack(encoder.encode(rows * np.float32(2.0**109)))
    assert np.array_equal(large, codes)
    for kind in (np.float32, np.float64):
        wild = rows.astype(kind)
        wild[row, column] = -(2.0**127)
        with pytest.raises(UsageError, match=rf"row {100 + row}, column {column}: -1\.7\d*e\+38"):
            encoder.encode(wild, first_row=100)


@pytest.mark.parametrize("size", [1, 2, 31, 32])
def test_compensation_equals_its_reference(size):
    rng = np.random.default_rng(size)
    values = rng.standard_normal((300, size)).astype(np.float32)
    scales = (np.abs(rng.standard_normal(300)) * 0.01 * rng.choice([-1, 0, 1], 300, p=[0.45, 0.1, 0.45])).astype(
        np.float32
    )
    factor = np.triu(rng.standard_normal((size, size))).astype(np.float32)
    factor[np.arange(size), np.arange(size)] = 0.5 + rng.random(size, np.float32)
    results = []
    for module in (native_quantize, reference_quantize):
        own, codes, errors = values.copy(), np.zeros(values.shape, np.int8), np.zeros_like(values)
        with np.errstate(all="ignore"):
            module.compensate_int4(own, scales, factor, codes, errors)
        results.append((codes, errors.view(np.uint32), own.view(np.uint32)))
    for native, reference in zip(*results, strict=True):
        assert np.array_equal(native, reference)
    assert not results[0][0][scales == 0].any()


@pytest.mark.parametrize(
    ("sensitivity", "message"),
    [
        (np.eye(7), "shape"),
        (np.ones(8), "shape"),
        (np.zeros((8, 8)), "positive trace"),
        (np.full((8, 8), np.nan), "finite"),
        (np.triu(np.ones((8, 8))), "symmetric"),
        (np.diag([1.0] * 7 + [-1.0]), "negative eigenvalues"),
    ],
)
def test_what_is_no_matrix_of_second_moments_is_refused(sensitivity, message):
    with pytest.raises(UsageError, match=message):
        SecondOrderInt4(codec_from_spec("int4", 8), sensitivity)


def test_the_block_of_the_page_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "codecs.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, str(page), "exec"), names)
    with ngramstore.open("fitted") as store:
        rows, found = store.get(np.arange(5000, dtype=np.uint32)[:, None])
    wanted = store.spec.codec.decode(names["encoder"].encode(names["rows_ND"]))
    assert found.all() and (rows == wanted).all(axis=1).mean() > 0.999  # parts of another size may round otherwise


def test_other_codecs_and_bad_rows_are_refused():
    with pytest.raises(UsageError, match="not for int8"):
        SecondOrderInt4(codec_from_spec("int8", 8), np.eye(8))
    rows = np.zeros((3, 8), np.float32)
    rows[1, 2] = np.nan
    with pytest.raises(UsageError, match="row 11, column 2"):
        SecondOrderInt4(codec_from_spec("int4", 8), np.eye(8)).encode(rows, first_row=10)
