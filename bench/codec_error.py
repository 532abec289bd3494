"""`python -m bench.codec_error`: what each row codec costs and loses, and why int4 is made the way it is.

Rows of five kinds, from a seed: Gaussian; Student t with 5 and with 3 degrees of freedom; Gaussian and t5 whose dimensions
have log-normal sizes (sigma 0.6). Relative RMS error: sqrt(sum((decoded - x)**2) / sum(x**2)), in percent, over all rows.

Shapes: M rows, D row width, S values in a group, L levels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from bench import machine
from ngramstore.codec import CODECS, codec_from_spec

DEFAULT_PATH = Path(__file__).parent / "results" / "codec_error.json"
SPECS = (
    *CODECS,
    {"name": "int4", "group": 16},
    {"name": "int4", "group": 64},
    {"name": "e4m3", "block": 0, "scale": 1.0},
)
OUTPUTS = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}
SEARCH = tuple(np.linspace(0.7, 1.3, 13))
QLORA_NF4 = np.array(
    [-1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0, 0.07958030, 0.16093020,
     0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1]
)  # fmt: skip  # The levels that the QLoRA paper prints (arXiv 2305.14314, appendix E).


def kinds_of_rows(num_rows: int, dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Kind -> rows (M, D) f32."""
    rng = np.random.default_rng(seed)
    sizes_D = np.exp(0.6 * rng.standard_normal(dim))
    rows = {
        "gaussian": rng.standard_normal((num_rows, dim)),
        "t5": rng.standard_t(5, (num_rows, dim)),
        "t3": rng.standard_t(3, (num_rows, dim)),
        "gaussian, log-normal sizes": rng.standard_normal((num_rows, dim)) * sizes_D,
        "t5, log-normal sizes": rng.standard_t(5, (num_rows, dim)) * sizes_D,
    }
    return {kind: rows_MD.astype(np.float32) for kind, rows_MD in rows.items()}


def error_percent(rows_MD: np.ndarray, decoded_MD: np.ndarray) -> float:
    """Relative RMS error in percent."""
    rows_MD = rows_MD.astype(np.float64)
    return round(100 * float(np.sqrt(((decoded_MD - rows_MD) ** 2).sum() / (rows_MD**2).sum())), 4)


# How int4 might be made


def growing(part: float) -> np.ndarray:
    """Levels c * (1 + part * |c|), c = -8..7, scaled to reach -1."""
    c = np.arange(-8, 8)
    return c * (1 + part * np.abs(c)) / (8 + 64 * part)


def quantized(
    rows_MD: np.ndarray,
    group: int,
    levels_L: np.ndarray,
    round_scales: Callable,
    signed: bool,
    search: tuple[float, ...],
) -> np.ndarray:
    """Rows after nearest-level quantization in groups. signed: the largest value points at level -1, whatever its sign.

    search: multiples of the width that just reaches the largest value. More than one: each is tried, the scale then fitted
    by least squares, and the best kept.
    """
    values_GS = rows_MD.astype(np.float64).reshape(-1, group)
    peak_G1 = np.take_along_axis(values_GS, np.abs(values_GS).argmax(axis=1)[:, None], axis=1)
    width_G1 = -peak_G1 if signed else np.abs(peak_G1)
    middles = (levels_L[1:] + levels_L[:-1]) / 2
    best_GS, least_G = np.zeros_like(values_GS), np.full(len(values_GS), np.inf)
    for multiple in search:
        scale_G1 = width_G1 * multiple
        if len(search) > 1:
            fitted_GS = levels_L[np.searchsorted(middles, values_GS / scale_G1)]
            scale_G1 = (values_GS * fitted_GS).sum(axis=1, keepdims=True) / (fitted_GS**2).sum(axis=1, keepdims=True)
        scale_G1 = round_scales(scale_G1, len(rows_MD))
        decoded_GS = levels_L[np.searchsorted(middles, values_GS / scale_G1)] * scale_G1
        error_G = ((decoded_GS - values_GS) ** 2).sum(axis=1)
        better_G = error_G < least_G
        best_GS[better_G], least_G[better_G] = decoded_GS[better_G], error_G[better_G]
    return best_GS.reshape(rows_MD.shape)


def bf16_scales(scales_G1: np.ndarray, _num_rows: int) -> np.ndarray:
    bits = scales_G1.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def f16_scales(scales_G1: np.ndarray, _num_rows: int) -> np.ndarray:
    return scales_G1.astype(np.float16).astype(np.float64)


def byte_scales(scales_G1: np.ndarray, num_rows: int) -> np.ndarray:
    """8-bit scales (sign, 4 bits of exponent, 3 of mantissa) under one power of two a row."""
    scales_MG = scales_G1.reshape(num_rows, -1)
    power_M1 = np.exp2(np.ceil(np.log2(np.abs(scales_MG).max(axis=1, keepdims=True) / 448)))
    fraction_MG, exponent_MG = np.frexp(scales_MG / power_M1)
    step_MG = np.exp2(np.maximum(exponent_MG, -5) - 4)
    rounded_MG = np.rint(np.ldexp(fraction_MG, exponent_MG) / step_MG) * step_MG
    return (np.where(rounded_MG == 0, 2.0**-9, rounded_MG) * power_M1).reshape(-1, 1)


def int4_choices(rows: dict[str, np.ndarray]) -> list[dict]:
    """Bits a value and errors of the ways considered."""
    dim = next(iter(rows.values())).shape[1]
    even7, even8, chosen = np.arange(-7, 8) / 7, np.arange(-8, 8) / 8, growing(1 / 8)
    ways = [
        ("even steps -7..7, absmax", 32, even7, bf16_scales, False, (1.0,)),
        ("even steps -7..7, search", 32, even7, bf16_scales, False, SEARCH),
        ("even steps -8..7, signed scale, absmax", 32, even8, bf16_scales, True, (1.0,)),
        ("even steps -8..7, signed scale, search", 32, even8, bf16_scales, True, SEARCH),
        ("NF4 table, absmax", 32, QLORA_NF4, bf16_scales, False, (1.0,)),
        ("NF4 table, search", 32, QLORA_NF4, bf16_scales, False, SEARCH),
        *(
            (f"c(1 + |c|/{k}), signed scale, search", 32, growing(1 / k), bf16_scales, True, SEARCH)
            for k in (32, 16, 12, 10, 6)
        ),
        ("c(1 + |c|/8), signed scale, absmax", 32, chosen, bf16_scales, True, (1.0,)),
        ("c(1 + |c|/8), signed scale, search", 32, chosen, bf16_scales, True, SEARCH),
        ("c(1 + |c|/8), signed f16 scale, search", 32, chosen, f16_scales, True, SEARCH),
        ("c(1 + |c|/8), signed scale, search", 64, chosen, bf16_scales, True, SEARCH),
        ("c(1 + |c|/8), signed scale, search", 16, chosen, bf16_scales, True, SEARCH),
        ("c(1 + |c|/8), signed 8-bit scale, search", 16, chosen, byte_scales, True, SEARCH),
    ]
    found = []
    for name, group, levels, round_scales, signed, search in ways:
        bits = 4 + 8 / group + 8 / dim if round_scales is byte_scales else 4 + 16 / group
        errors = {
            kind: error_percent(x, quantized(x, group, levels, round_scales, signed, search))
            for kind, x in rows.items()
        }
        found.append({"way": name, "group": group, "bits_per_value": round(bits, 4), "error_percent": errors})
    return found


# What the codecs cost


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def codec_costs(spec: str | dict, rows: dict[str, np.ndarray], repeats: int) -> dict:
    """Bits a value, errors and speed of one codec."""
    dim = rows["gaussian"].shape[1]
    codec = codec_from_spec(spec, dim)
    errors = {kind: error_percent(rows_MD, codec.decode(codec.encode(rows_MD))) for kind, rows_MD in rows.items()}
    rows_MD = rows["gaussian"][:256]  # 1 MiB of f32 at 1024: stays in the L2 cache
    stored_MB = codec.encode(rows_MD)
    offsets_M = np.random.default_rng(1).permutation(len(rows_MD)) * codec.row_bytes
    speed = {}
    for output, dtype in OUTPUTS.items():
        out_MD = np.empty(rows_MD.shape, dtype)
        arguments = stored_MB.reshape(-1), offsets_M, out_MD
        seconds = best_seconds(lambda a=arguments: codec.scatter(*a), repeats)
        speed[output] = round(1e6 * seconds / len(rows_MD), 4)
    one = stored_MB.reshape(-1), offsets_M[:1].copy(), np.empty((1, dim), np.float32)
    encode_seconds = best_seconds(lambda: codec.encode(rows_MD), max(3, repeats // 5))
    return {
        "spec": codec.spec(),
        "bits_per_value": round(8 * codec.row_bytes / dim, 4),
        "error_percent": errors,
        "scatter_us_per_row": speed,
        "scatter_us_one_row_f32": round(1e6 * best_seconds(lambda: codec.scatter(*one), repeats * 20), 4),
        "encode_mb_per_s": round(rows_MD.nbytes / encode_seconds / 1e6),
    }


@click.command(help="Measure the row codecs and write JSON; `python -m bench.page` makes the tables of docs/codecs.md.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT_PATH, show_default=True
)
@click.option("--rows", "num_rows", default=256, show_default=True)
@click.option("--dim", default=1024, show_default=True)
@click.option("--repeats", default=60, show_default=True)
def main(path: Path, num_rows: int, dim: int, repeats: int) -> None:
    rows = kinds_of_rows(num_rows, dim)
    head = {"machine": machine.describe(), "num_rows": num_rows, "dim": dim, "repeats": repeats}
    codecs = [codec_costs(spec, rows, repeats) for spec in SPECS]
    choices = int4_choices({kind: rows_MD[:200] for kind, rows_MD in rows.items()})
    path.write_text(json.dumps(head | {"codecs": codecs, "int4_choices": choices}, indent=1) + "\n")
    click.echo(f"written to {path}", err=True)


if __name__ == "__main__":
    main()
