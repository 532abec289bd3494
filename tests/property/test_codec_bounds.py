"""The promise of each codec: |decode(encode(x)) - x| <= error_bound(x), element by element, whatever the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.codec import codec_from_spec

LARGEST = float(np.finfo(np.float32).max)
E4M3_LARGEST = float(np.nextafter(np.float32(float.fromhex("0x1.fp127")), np.float32(0)))  # above: 2**128
SPECS = {
    "f32": LARGEST,
    "f16": 65504.0,
    "bf16": 3.3895313892515355e38,
    "int8": LARGEST,
    "int4": LARGEST,
    "int4 group 2": LARGEST,
    "int4 group 64": LARGEST,
    "e4m3": E4M3_LARGEST,
    "e4m3 block 5": E4M3_LARGEST,
    "e4m3 table": 448.0,
}
DIMS = st.sampled_from([1, 2, 3, 31, 32, 33, 65, 127])
SMALLEST = 2.0**-149


def codec_of(name: str, dim: int):
    options = {
        "int4 group 2": {"name": "int4", "group": 2},
        "int4 group 64": {"name": "int4", "group": 64},
        "e4m3 block 5": {"name": "e4m3", "block": 5},
        "e4m3 table": {"name": "e4m3", "block": 0, "scale": 1.0},
    }
    return codec_from_spec(options.get(name, name), dim)


@st.composite
def adversarial_rows(draw: st.DrawFn, largest: float) -> np.ndarray:
    """A few rows that are hard in different ways, none beyond `largest`."""
    dim = draw(DIMS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.floats(min_value=SMALLEST, max_value=largest))
    kind = draw(
        st.sampled_from(["zeros", "one", "signs", "constant", "normal", "tailed", "powers", "few steps", "any"])
    )
    if kind == "zeros":
        rows = np.zeros((2, dim))
    elif kind == "one":
        rows = rng.standard_normal((3, dim)) * draw(st.sampled_from([0.0, SMALLEST, 1e-3, 1.0]))
        rows[:, rng.integers(dim)] = size * draw(st.sampled_from([-1, 1]))
    elif kind == "signs":
        rows = size * np.where(np.arange(dim) % 2, -1, 1)[None, :] * np.ones((2, 1))
    elif kind == "constant":
        rows = np.full((2, dim), size * draw(st.sampled_from([-1, 1])))
    elif kind == "normal":
        rows = rng.standard_normal((3, dim)) * (size / 8)
    elif kind == "tailed":
        rows = rng.standard_t(1, (3, dim)) * (size / 1e3)
    elif kind == "powers":
        rows = 2.0 ** rng.uniform(-149, np.log2(largest), (3, dim)) * rng.choice([-1, 1], (3, dim))
    elif kind == "few steps":
        rows = rng.integers(-300, 301, (3, dim)) * SMALLEST * 2.0 ** draw(st.integers(0, 30))
    else:
        rows = np.array([draw(st.lists(st.floats(-largest, largest, width=64), min_size=dim, max_size=dim))])
    return np.clip(rows, -largest, largest)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_error_stays_within_the_bound(name, data):
    rows = data.draw(adversarial_rows(SPECS[name]))
    if data.draw(st.booleans()):
        rows = rows.astype(np.float32)
    codec = codec_of(name, rows.shape[1])
    stored = codec.encode(rows)
    decoded = codec.decode(stored)
    assert np.isfinite(decoded).all()
    error = np.abs(decoded.astype(np.float64) - rows.astype(np.float64))
    bound = np.broadcast_to(codec.error_bound(rows), rows.shape)
    assert (error <= bound).all(), (error - bound).max()
    served = np.empty_like(decoded)
    codec.scatter(stored.reshape(-1), np.arange(len(rows)) * codec.row_bytes, served)
    assert served.tobytes() == decoded.tobytes()


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3"])
def test_the_bound_is_not_idle(name):
    """On Gaussian rows the worst error comes near its bound, and the bound is a small part of the row's largest value."""
    rows = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    codec = codec_of(name, 64)
    bound = np.broadcast_to(codec.error_bound(rows), rows.shape)
    error = np.abs(codec.decode(codec.encode(rows)) - rows)
    assert (error / bound).max() > 0.98
    part = {"int8": 0.005, "int4": 0.2, "e4m3": 0.07}[name]
    assert np.median(bound.max(axis=1) / np.abs(rows).max(axis=1)) < part
