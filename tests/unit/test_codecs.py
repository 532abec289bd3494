"""Row codecs: their bytes, what they refuse, and that compiled and plain kernels agree byte for byte."""

from __future__ import annotations

import inspect
import json
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from ngramstore.codec import CODECS, Codec, codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.kernels.native import dequantize as native_dequantize
from ngramstore.kernels.native import quantize as native_quantize
from ngramstore.kernels.reference import dequantize as reference_dequantize
from ngramstore.kernels.reference import quantize as reference_quantize

SPECS = [
    *CODECS,
    {"name": "int4", "group": 2},
    {"name": "int4", "group": 64},
    {"name": "e4m3", "block": 7},
    {"name": "e4m3", "block": 0, "scale": "0x1.8p-3"},
]
DIMS = [1, 2, 31, 32, 33, 64, 130]
OUTPUTS = [np.float32, np.float16, np.uint16]
every_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def some_rows(dim: int, num_rows: int = 40, seed: int = 0) -> np.ndarray:
    """Gaussian rows of different sizes that every codec in SPECS takes."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, dim)) * np.exp(rng.uniform(-8, 2, (num_rows, 1)))
    return np.clip(rows, -80, 80).astype(np.float32)


# Names and specs


@every_spec
def test_a_spec_survives_json(spec):
    codec = codec_from_spec(spec, 33)
    again = codec_from_spec(json.loads(json.dumps(codec.spec())), 33)
    assert again == codec and again.row_bytes == codec.row_bytes and again.name == codec.name


@pytest.mark.parametrize(
    ("spec", "dim", "row_bytes"),
    [
        ("f32", 1024, 4096),
        ("f16", 1024, 2048),
        ("bf16", 1024, 2048),
        ("int8", 1024, 1028),
        ("int4", 1024, 576),
        ("int4", 33, 17 + 4),
        ({"name": "int4", "group": 64}, 1024, 544),
        ({"name": "int4", "group": np.int64(64)}, 1024, 544),
        ("e4m3", 256, 264),
        ("e4m3", 33, 35),
        ({"name": "e4m3", "block": 0, "scale": 0.5}, 160, 160),
    ],
)
def test_bytes_of_a_row(spec, dim, row_bytes):
    codec = codec_from_spec(spec, dim)
    assert codec.row_bytes == row_bytes == codec.encode(np.ones((1, dim), np.float32)).shape[1]


@pytest.mark.parametrize("spec", ["int5", "", None, 3, {}, {"name": None}, {"group": 32}, {"name": ["int4"]}])
def test_an_unknown_name_lists_the_known_ones(spec):
    with pytest.raises(UsageError, match="f32, f16, bf16, int8, int4, e4m3"):
        codec_from_spec(spec, 8)


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown option block(?s:.)*int4 knows group"):
        codec_from_spec({"name": "int4", "block": 32}, 8)
    with pytest.raises(UsageError, match=r"unknown option group(?s:.)*int8 has no options"):
        codec_from_spec({"name": "int8", "group": 32}, 8)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "int4", "group": 3},
        {"name": "int4", "group": 0},
        {"name": "int4", "group": 2048},
        {"name": "int4", "group": True},
        {"name": "int4", "group": "32"},
        {"name": "e4m3", "block": -1},
        {"name": "e4m3", "block": 0},
        {"name": "e4m3", "block": 32, "scale": "0x1p0"},
        {"name": "e4m3", "block": 0, "scale": "one"},
        {"name": "e4m3", "block": 0, "scale": float("nan")},
        {"name": "e4m3", "block": 0, "scale": 0.0},
        {"name": "e4m3", "block": 0, "scale": 0.1},
        {"name": "e4m3", "block": 0, "scale": 1e300},
        {"name": "e4m3", "block": 0, "scale": [1]},
    ],
    ids=str,
)
def test_impossible_options_are_refused(spec):
    with pytest.raises(UsageError):
        codec_from_spec(spec, 64)


@pytest.mark.parametrize("dim", [0, -1, 1.5, True, (1 << 20) + 1, None])
def test_impossible_widths_are_refused(dim):
    with pytest.raises(UsageError):
        codec_from_spec("int8", dim)


# Bytes, written out by hand from docs/codecs.md


@pytest.mark.parametrize(
    ("spec", "row", "stored"),
    [
        ("f32", [1.0, -2.5], "0000803f 000020c0"),
        ("f16", [1.0, -2.5], "003c 00c1"),
        ("bf16", [1.0, -2.5], "803f 20c0"),
        ("int8", [127.0, -1.0, 0.0], "7f ff 00 0000803f"),
        ("int8", [0.0, 0.0], "00 00 00000000"),
        # scale 1: levels 0, 9, 20, 33, ... 105 above and -9 ... -128 below; low halves are the first values
        ("int4", [-128.0, 105.0, 0.0, -9.0], "80 7f 803f"),
        ("int4", [-128.0, 9.0, 20.0], "a0 09 803f"),
        ({"name": "int4", "group": 2}, [-128.0, 105.0, -256.0], "f0 00 803f 0040"),
        # the largest is positive: the sign goes into the scale
        ("int4", [128.0, -105.0], "f0 80bf"),
        ("int4", [0.0, 0.0, 0.0], "88 08 0000"),
        ("e4m3", [1.0, -448.0, 2.0**-6], "38 fe 08 7f"),
        ("e4m3", [449.0, 1.0], "76 30 80"),
        ("e4m3", [0.0, -0.0], "00 80 01"),
        ({"name": "e4m3", "block": 1}, [448.0, 1.75], "7e 7e 7f 77"),
        ({"name": "e4m3", "block": 0, "scale": 0.5}, [0.5, -224.0, 0.0], "38 fe 00"),
    ],
    ids=str,
)
def test_the_bytes_of_a_row_are_pinned(spec, row, stored):
    codec = codec_from_spec(spec, len(row))
    assert codec.encode(np.array([row], np.float32)).tobytes().hex() == stored.replace(" ", "")


@every_spec
def test_the_bytes_of_a_row_depend_on_that_row_alone(spec):
    codec = codec_from_spec(spec, 20_000)
    rows = some_rows(20_000, num_rows=8)  # more than one chunk
    together = codec.encode(rows)
    assert together.flags.c_contiguous and together.dtype == np.uint8
    for i in range(len(rows)):
        assert np.array_equal(codec.encode(rows[i : i + 1])[0], together[i])
    assert np.array_equal(codec.encode(np.asfortranarray(rows)), together)


@every_spec
def test_no_rows_are_no_bytes(spec):
    codec = codec_from_spec(spec, 5)
    assert codec.encode(np.empty((0, 5), np.float32)).shape == (0, codec.row_bytes)
    assert codec.decode(np.empty((0, codec.row_bytes), np.uint8)).shape == (0, 5)


# What is kept


@pytest.mark.parametrize(("spec", "dtype"), [("f32", np.float32), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_a_float_codec_keeps_every_number_of_its_type(spec, dtype):
    bits = np.arange(65536, dtype=np.uint16)
    numbers = bits.view(np.float16 if spec == "f32" else dtype)
    numbers = numbers[np.isfinite(numbers.astype(np.float32))][None, :].astype(dtype)
    codec = codec_from_spec(spec, numbers.shape[1])
    stored = codec.encode(numbers)
    assert stored.tobytes() == numbers.tobytes()
    assert codec.decode(stored).tobytes() == numbers.astype(np.float32).tobytes()


@pytest.mark.parametrize(("spec", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_floats_round_to_nearest_even(spec, dtype):
    bits = np.random.default_rng(1).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits = np.concatenate([bits, bits & 0xFFFF8000, bits & 0xFFFFF000])  # many ties
    rows = bits.view(np.float32)
    with np.errstate(all="ignore"):
        expected = rows.astype(dtype)
    fine = np.isfinite(expected.astype(np.float32))
    rows, expected = rows[fine][None, :], expected[fine]
    assert codec_from_spec(spec, rows.shape[1]).encode(rows).tobytes() == expected.tobytes()


@every_spec
@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_other_float_types_are_read_as_f32(spec, dtype):
    rows = some_rows(33).astype(dtype)
    codec = codec_from_spec(spec, 33)
    assert np.array_equal(codec.encode(rows), codec.encode(rows.astype(np.float32)))


@pytest.mark.parametrize("scale", [0, 1, 100, 119, 127, 130, 254, 255])
def test_e4m3_codes_mean_what_ml_dtypes_says(scale):
    codes = np.arange(256, dtype=np.uint8)[None, :]
    codec = codec_from_spec({"name": "e4m3", "block": 256}, 256)
    stored = codec.pack(codes, np.full((1, 1), scale, np.uint8))
    with np.errstate(all="ignore"):
        factor = np.uint8(scale).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * factor
    assert np.array_equal(codec.decode(stored), expected, equal_nan=True)
    assert np.array_equal(scattered(codec, stored, np.float32), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("2", 2.0), ("1e3", 1000.0), ("0x1.8p-3", 0.1875), ("0X10", 16.0)]
)
def test_a_table_scale_in_words_is_decimal_unless_it_says_0x(text, value):
    assert codec_from_spec({"name": "e4m3", "block": 0, "scale": text}, 8).spec()["scale"] == value.hex()


@pytest.mark.parametrize("spec", ["f32", "f16", "bf16", {"name": "e4m3", "block": 0, "scale": 0.5}])
def test_scales_for_a_codec_without_any_are_refused(spec):
    codec = codec_from_spec(spec, 4)
    codes, _ = codec.unpack(codec.encode(np.zeros((2, 4), np.float32)))
    with pytest.raises(UsageError, match="has no scales"):
        codec.pack(codes, np.ones((2, 1), np.float32))


@pytest.mark.parametrize("scale", ["0x1p0", "0x1.8p-3", "0x1.a1p-13", "0x1p-126", "0x1p118"])
def test_e4m3_with_a_table_scale_means_code_times_scale(scale):
    codes = np.arange(256, dtype=np.uint8)[None, :]
    codec = codec_from_spec({"name": "e4m3", "block": 0, "scale": scale}, 256)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(float.fromhex(scale))
    assert np.array_equal(codec.decode(codec.pack(codes)), expected, equal_nan=True)
    finite = codes[np.isfinite(expected)][None, :]
    again = codec_from_spec(codec.spec(), 254)
    assert np.array_equal(again.encode(again.decode(again.pack(finite))), finite)


def test_e4m3_rounds_to_nearest_even_as_ml_dtypes_does():
    codes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (codes[1:] + codes[:-1]) / 2
    near = np.concatenate(
        [codes, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(500))]
    )
    rows = np.concatenate([near, -near, [464, 463, 1e-30, 1e-45]])[None, :].astype(np.float32)
    codec = codec_from_spec({"name": "e4m3", "block": 0, "scale": "0x1p0"}, rows.shape[1])
    assert np.array_equal(codec.encode(rows)[0], rows[0].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_e4m3_takes_the_least_block_scale_that_cuts_nothing():
    rows = np.array(
        [[448.0], [np.nextafter(np.float32(448), np.float32(500))], [224.0], [1e38], [3.2e38], [1e-45]], "f4"
    )
    _, scales = codec_from_spec("e4m3", 1).unpack(codec_from_spec("e4m3", 1).encode(rows))
    powers = scales[:, 0].astype(int) - 127
    assert (np.abs(rows[:, 0].astype(np.float64)) <= 448 * 2.0**powers).all()
    assert (np.abs(rows[:-1, 0].astype(np.float64)) > 448 * 2.0 ** (powers[:-1] - 1)).all()
    assert scales[-1, 0] == 1, "2**-126 is the least: 0 would be a subnormal scale, which some readers take for zero"


@every_spec
@pytest.mark.parametrize("dim", DIMS)
def test_rows_that_arrive_encoded_come_back_bit_by_bit(spec, dim):
    codec = codec_from_spec(spec, dim)
    rng = np.random.default_rng(dim)
    codes, scales = codec.unpack(codec.encode(some_rows(dim)))
    if codec.name == "int4":
        codes = rng.integers(-8, 8, codes.shape, dtype=np.int8)
        scales = rng.integers(0, 0x7F80, scales.shape, dtype=np.uint16)
    elif codec.name in ("e4m3", "bf16"):
        codes = rng.integers(0, 256, codes.shape, dtype=np.uint8).astype(codes.dtype)
        scales = None if scales is None else rng.integers(0, 256, scales.shape, dtype=np.uint8)
    elif codec.name == "int8":
        codes = rng.integers(-128, 128, codes.shape, dtype=np.int8)
    codes_again, scales_again = codec.unpack(codec.pack(codes, scales))
    assert codes_again.dtype == codes.dtype and codes_again.tobytes() == codes.tobytes()
    assert (scales is None and scales_again is None) or scales_again.tobytes() == scales.tobytes()


def test_pack_refuses_what_does_not_fit():
    int8, int4, e4m3 = (codec_from_spec(name, 4) for name in ("int8", "int4", "e4m3"))
    with pytest.raises(UsageError, match="uint8 and shape"):
        int8.pack(np.zeros((2, 4), np.uint8), np.zeros(2, np.float32))
    with pytest.raises(UsageError, match="finite"):
        int8.pack(np.zeros((2, 4), np.int8), np.array([1, np.nan], np.float32))
    with pytest.raises(UsageError, match="row 1, column 2: 8"):
        int4.pack(np.array([[0, 0, 0, 0], [0, 0, 8, 0]], np.int8), np.zeros((2, 1), np.uint16))
    with pytest.raises(UsageError, match="finite"):
        int4.pack(np.zeros((1, 4), np.int8), np.full((1, 1), 0x7F80, np.uint16))
    with pytest.raises(UsageError, match="scales"):
        e4m3.pack(np.zeros((2, 4), np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(UsageError, match="scales"):
        e4m3.pack(np.zeros((2, 4), np.uint8))


# What is refused


@every_spec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(spec, bad):
    rows = some_rows(33, num_rows=5000)
    rows[4321, 17] = bad
    with pytest.raises(UsageError, match=rf"row 1004321, column 17: {bad}"):
        codec_from_spec(spec, 33).encode(rows, first_row=1_000_000)


@pytest.mark.parametrize(
    ("spec", "bad"),
    [
        ("f16", 65520.0),
        ("bf16", 3.4e38),
        ({"name": "e4m3", "block": 0, "scale": 1.0}, -465.0),
        ({"name": "e4m3", "block": 0, "scale": "0x1p-126"}, 1.0),
        ("e4m3", 3.3e38),
        ("e4m3", float.fromhex("0x1.fp127")),  # 248 times its scale, a tie that goes to 256
        ("int8", 1e39),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_named(spec, bad):
    rows = np.zeros((3, 2), np.float64)
    rows[2, 1] = bad
    with pytest.raises(UsageError, match="row 12, column 1: "):
        codec_from_spec(spec, 2).encode(rows, first_row=10)


def test_wrong_shapes_and_types_are_refused():
    codec = codec_from_spec("int8", 4)
    for rows in (np.zeros((2, 5), np.float32), np.zeros(4, np.float32), np.zeros((2, 4), np.int32)):
        with pytest.raises(UsageError, match="rows of"):
            codec.encode(rows)
    for stored in (np.zeros((2, 7), np.uint8), np.zeros((2, 8), np.int8)):
        with pytest.raises(UsageError, match=r"stores \(M, 8\) uint8"):
            codec.decode(stored)


# Kernels


def scattered(codec: Codec, stored: np.ndarray, dtype: type, kernels: str = "native") -> np.ndarray:
    out = np.full((len(stored), codec.dim), 7, dtype)
    codec.scatter(stored.reshape(-1), np.arange(len(stored)) * codec.row_bytes, out, kernels=kernels)
    return out


def public_functions(module: ModuleType) -> set[str]:
    return {
        name for name, value in vars(module).items() if callable(value) and name.startswith(("scatter", "quantize_"))
    }


def test_native_has_exactly_the_reference_names():
    assert public_functions(native_dequantize) == public_functions(reference_dequantize)
    assert public_functions(native_quantize) == public_functions(reference_quantize)
    native = inspect.signature(native_dequantize.scatter.py_func)
    assert list(native.parameters) == list(inspect.signature(reference_dequantize.scatter).parameters)


def test_rows_go_to_the_places_they_are_given():
    codec = codec_from_spec("int8", 5)
    stored = codec.encode(some_rows(5, num_rows=4))
    want = codec.decode(stored)
    for module, kernels in ((native_dequantize, "native"), (reference_dequantize, "reference")):
        out = np.full((6, 5), 7, np.float32)
        offsets, places = np.array([9, -1, 27]), np.array([4, 0, 2])
        assert module.scatter(codec.plan("f", kernels), stored.reshape(-1), offsets, places, out.view(np.uint8)) == 0
        np.testing.assert_array_equal(out[[4, 0, 2]], [want[1], np.zeros(5), want[3]])
        assert (out[[1, 3, 5]] == 7).all()


@every_spec
def test_stored_bytes_are_an_output_too(spec):
    codec = codec_from_spec(spec, 33)
    stored = codec.encode(some_rows(33, num_rows=3))
    for module, kernels in ((native_dequantize, "native"), (reference_dequantize, "reference")):
        out = np.full((2, codec.row_bytes), 7, np.uint8)
        offsets, places = np.array([codec.row_bytes, -1]), np.array([1, 0])
        assert module.scatter(codec.plan("B", kernels), stored.reshape(-1), offsets, places, out) == 0
        assert not out[0].any() and np.array_equal(out[1], stored[1])


@every_spec
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_native_equals_reference_on_encoded_rows(spec, dim, output):
    codec = codec_from_spec(spec, dim)
    stored = codec.encode(some_rows(dim))
    source = np.concatenate([np.zeros(3, np.uint8), stored.reshape(-1)])  # no row is aligned
    offsets = 3 + np.random.default_rng(dim).integers(0, len(stored), 200) * codec.row_bytes
    offsets[::9] = -1
    native, reference = np.full((200, dim), 7, output), np.full((200, dim), 9, output)
    codec.scatter(source, offsets, native)
    codec.scatter(source, offsets, reference, kernels="reference")
    assert native.tobytes() == reference.tobytes()
    assert not native[::9].any()


@every_spec
@pytest.mark.parametrize("output", OUTPUTS)
def test_native_equals_reference_on_any_bytes(spec, output):
    codec = codec_from_spec(spec, 33)
    stored = np.random.default_rng(5).integers(0, 256, (5000, codec.row_bytes), dtype=np.uint8)
    results = [scattered(codec, stored, output, kernels) for kernels in ("native", "reference")]
    if output is np.uint16:
        results = [bits.view(ml_dtypes.bfloat16).astype(np.float32) for bits in results]
    assert np.array_equal(*results, equal_nan=True)


@pytest.mark.parametrize("name", ["f16_f32", "f16_bf16", "bf16_f32", "bf16_f16"])
def test_every_16_bit_number_is_converted_as_the_reference_does(name):
    source = np.arange(65536, dtype=np.uint16).view(np.uint8)
    native = np.empty((1, 65536), np.float32 if name.endswith("f32") and name != "f16_bf16" else np.uint16)
    reference = native.copy()
    codec, char = codec_from_spec(name.split("_")[0], 65536), {"f32": "f", "f16": "e", "bf16": "H"}[name.split("_")[1]]
    for module, kernels, out in ((native_dequantize, "native", native), (reference_dequantize, "reference", reference)):
        at = np.zeros(1, np.int64)
        assert module.scatter(codec.plan(char, kernels), source, at, at, out.view(np.uint8)) == 0
    assert native.tobytes() == reference.tobytes()


@pytest.mark.parametrize(("output", "dtype"), [(np.float16, np.float16), (np.uint16, ml_dtypes.bfloat16)])
def test_outputs_round_to_nearest_even_and_overflow_to_infinity(output, dtype):
    bits = np.random.default_rng(2).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    rows = np.concatenate([bits, bits & 0xFFFF8000, bits & 0xFFFFF000]).view(np.float32)
    rows = rows[np.isfinite(rows)][None, :]
    codec = codec_from_spec("f32", rows.shape[1])
    with np.errstate(all="ignore"):
        expected = rows.astype(dtype)
    assert scattered(codec, codec.encode(rows), output).tobytes() == expected.tobytes()


@every_spec
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_an_offset_outside_the_source_reads_nothing_and_is_an_assertion(spec, kernels):
    codec = codec_from_spec(spec, 33)
    source = codec.encode(some_rows(33, num_rows=2)).reshape(-1)
    for bad in (-2, codec.row_bytes + 1, 2 * codec.row_bytes, 1 << 62, -(1 << 63)):
        out = np.full((3, 33), 7, np.float32)
        with pytest.raises(AssertionError, match="1 offsets outside"):
            codec.scatter(source, np.array([0, bad, codec.row_bytes]), out, kernels=kernels)
        assert not out[1].any() and out[0].any() and out[2].any()


@every_spec
def test_a_source_may_be_read_only(spec):
    codec = codec_from_spec(spec, 8)
    stored = codec.encode(some_rows(8))
    frozen = np.frombuffer(stored.tobytes(), np.uint8).reshape(stored.shape)
    assert np.array_equal(scattered(codec, frozen, np.float32), codec.decode(stored))


@pytest.mark.parametrize("dim", [1, 2, 31, 33, 200])
def test_int8_encoding_equals_its_reference(dim):
    rng = np.random.default_rng(dim)
    bits = rng.integers(0, 1 << 32, (400, dim), dtype=np.uint32)
    rows = np.concatenate(
        [
            np.nan_to_num(bits.view(np.float32), nan=0, posinf=3.4e38, neginf=-3.4e38),
            (bits & 0x807FFFFF).view(np.float32),  # subnormal
            (bits[:, :1] % 200 * 2.0**-149 * rng.choice([-1, 0, 1], (400, dim))),
            rng.standard_normal((400, dim)) * 10.0 ** rng.uniform(-44, 37, (400, 1)),
            rng.integers(-254, 255, (400, dim)) / 2,  # ties
            np.full((1, dim), np.finfo(np.float32).max),
            np.zeros((1, dim)),
        ]
    ).astype(np.float32)
    codes, scales = np.zeros((2, *rows.shape), np.int8), np.zeros((2, len(rows)), np.float32)
    native_quantize.quantize_int8(rows, codes[0], scales[0])
    reference_quantize.quantize_int8(rows, codes[1], scales[1])
    assert np.array_equal(*codes) and np.array_equal(*scales.view(np.uint32))


@pytest.mark.parametrize("group", [2, 6, 32, 64, 1024])
@pytest.mark.parametrize("dim", [1, 2, 31, 33, 64, 200])
def test_int4_encoding_equals_its_reference(group, dim):
    rng = np.random.default_rng(dim)
    rows = np.concatenate(
        [
            some_rows(dim),
            rng.standard_t(2, (40, dim)) * 1e30,
            rng.integers(-3, 4, (40, dim)),  # ties
            rng.integers(0, 1 << 24, (40, dim)) * 2.0**-149,
            np.zeros((1, dim)),
            np.full((1, dim), 3.4e38),
        ]
    ).astype(np.float32)
    num_groups = -(-dim // group)
    codes = [np.zeros((len(rows), (dim + 1) // 2), np.uint8) for _ in range(2)]
    scales = [np.zeros((len(rows), num_groups), np.uint16) for _ in range(2)]
    native_quantize.quantize_int4(rows, group, codes[0], scales[0])
    reference_quantize.quantize_int4(rows, group, codes[1], scales[1])
    assert np.array_equal(*codes) and np.array_equal(*scales)


@pytest.mark.parametrize("block", [0, 1, 7, 32])
def test_e4m3_encoding_equals_its_reference(block):
    rng = np.random.default_rng(block)
    rows = rng.integers(0, 1 << 32, (3000, 33), dtype=np.uint32).view(np.float32)
    rows = np.nan_to_num(rows, nan=0, posinf=1, neginf=-1)
    rows = np.clip(rows, -464, 464) if block == 0 else rows
    num_blocks = -(-33 // block) if block else 0
    codes, scales = np.zeros((2, 3000, 33), np.uint8), np.zeros((2, 3000, num_blocks), np.uint8)
    native_quantize.quantize_e4m3(rows, block, codes[0], scales[0])
    reference_quantize.quantize_e4m3(rows, block, codes[1], scales[1])
    assert np.array_equal(*codes) and np.array_equal(*scales)


def test_int4_takes_the_nearest_of_its_levels():
    levels = np.array([c * (8 + abs(c)) for c in range(-8, 8)], np.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    steps = np.concatenate([levels, middles - 0.01, middles + 0.01, np.linspace(-140, 120, 3000)])
    codes = reference_quantize._int4_codes(steps.astype(np.float32))
    assert np.array_equal(codes + 8, np.abs(steps[:, None] - levels).argmin(axis=1))


@every_spec
@pytest.mark.parametrize("num_rows", [1, 3])
def test_what_unpack_gives_is_not_the_row_it_was_given(spec, num_rows):
    codec = codec_from_spec(spec, 33)
    encoded = codec.encode(some_rows(33, num_rows))
    before = encoded.copy()
    for part in codec.unpack(encoded):
        if part is not None:
            part[...] = 0
    np.testing.assert_array_equal(encoded, before)
