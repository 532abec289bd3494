"""`python -m bench codecs`: ways give back what they store, sizes count bits, a table in place of the model is the model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from bench import codec_ways, codecs, codecs_report
from bench.codecs_plot import plot
from bench.trained import trained
from ngramstore.codec import codec_from_spec
from ngramstore_torch.experiment.comparison import python_sources
from ngramstore_torch.experiment.presets import QUICK


def rows(count: int = 600, dim: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)


def error(rows_ND: np.ndarray, decoded_ND: np.ndarray) -> float:
    return codecs._errors(rows_ND, decoded_ND)["error_percent"]


@pytest.mark.parametrize(
    ("family", "name", "way"), list(codec_ways.ways()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_way_gives_rows_near_what_it_was_given(family, name, way):
    x = rows()
    decoded, stored = way(x)
    assert decoded.shape == x.shape
    assert decoded.dtype == np.float32
    assert stored.dtype == np.uint8
    assert len(stored) == len(x)
    assert 0.5 < error(x, decoded) < 14


def test_a_uniform_step_of_the_row_is_what_codec_int8_reads():
    """So such rows need no new codec to be read."""
    x = rows()
    decoded, stored = codec_ways.of_row(x, 0.25)
    assert np.array_equal(codec_from_spec("int8", 64).decode(stored), decoded)


def test_a_rotation_is_undone():
    x = rows()
    back, _ = codec_ways.rotated(x, lambda y: (y, np.zeros((len(y), 1), np.uint8)), codec_ways.random_axes)
    assert np.allclose(back, x, atol=1e-5)
    turned = x @ codec_ways.principal_axes(x)
    moments = turned.T @ turned
    assert np.abs(moments - np.diag(np.diag(moments))).max() < 1e-3 * np.diag(moments).max()


def test_groups_of_32_with_the_levels_of_int4_lose_what_int4_loses():
    x = rows()
    levels = codec_ways.growing(1 / 8)
    decoded, stored = codec_ways.grouped(x, 32, levels, codec_ways.bf16_scales, True)
    codec = codec_from_spec("int4", 64)
    assert stored.shape[1] == codec.row_bytes
    assert error(x, decoded) == pytest.approx(error(x, codec.decode(codec.encode(x))), rel=0.01)


def test_bits_are_counted_as_they_are_compressed_and_by_entropy():
    rng = np.random.default_rng(0)
    noise = codecs._bits(rng.integers(0, 256, (4000, 64)).astype(np.uint8), 64)
    assert noise["raw_bits"] == noise["zstd_bits"] == 8
    assert noise["entropy_bits"] == pytest.approx(8, abs=0.01)
    halves = codecs._bits(rng.integers(0, 2, (4000, 64)).astype(np.uint8), 64)
    assert halves["entropy_bits"] == pytest.approx(1, abs=0.01)
    assert 1 < halves["wide_bits"] < halves["zstd_bits"] < 5


def test_the_summary_says_mean_and_worst_cost_in_perplexity():
    line = {"family": "f", "name": "n", "is_codec": True, "error_percent": 1.0, "worst_row_percent": 2.0}
    line |= dict.fromkeys(("raw_bits", "zstd_bits", "wide_bits", "entropy_bits"), 4.0)
    tables = {"a": {"lines": [line | {"nats": 0.001}]}, "b": {"lines": [line | {"nats": 0.003}]}}
    (found,) = codecs_report.summary(tables)
    assert found["perplexity_percent"] == pytest.approx(100 * np.expm1(0.002))
    assert found["worst_perplexity_percent"] == pytest.approx(100 * np.expm1(0.003))
    assert found["standard_error_percent"] == pytest.approx(0.1)
    assert "| f, n | 4.00 |" in codecs_report.table([found])
    assert "+0.200 ± 0.100 | +0.300 |" in codecs_report.table([found])
    (alone,) = codecs_report.summary({"a": tables["a"]})
    assert alone["standard_error_percent"] is None
    assert "±" not in codecs_report.table([alone])


def test_a_trained_table_stands_in_for_its_model_and_is_kept(tmp_path):
    preset = replace(
        QUICK, corpus_bytes=200_000, tokenizer_size=300, num_fgrams=500, dim=32, max_windows=8,
        train=replace(QUICK.train, tokens=4096, seq_len=64),
    )  # fmt: skip
    texts = python_sources(preset.corpus_bytes)
    table = trained(tmp_path, texts, preset, 0, progress=False)
    live = table._evaluate(table.model)
    assert table.nats(table.rows_ND) == pytest.approx(live, abs=1e-6)
    assert table.nats(np.zeros_like(table.rows_ND)) > live + 0.001
    again = trained(tmp_path, texts, preset, 0, progress=False)
    assert np.array_equal(again.rows_ND, table.rows_ND)
    served = codecs._codec(table, "f32", live)
    assert abs(served["nats"]) < 1e-6
    assert served["rows_file_bytes_per_row"]["none"] >= 4 * 32 + 4
    assert codecs._codec(table, "int4", live)["error_percent"] > 1


def test_the_page_is_made_from_the_json_that_is_there():
    wanted = codecs_report.section_of(codecs.RESULT)
    assert wanted in codecs_report.PAGE.read_text(), "run `python -m bench codecs --page-only`"


def test_a_result_becomes_a_section_with_its_tables_and_costs(tmp_path):
    line = {"family": "f", "name": "n", "is_codec": True, "error_percent": 1.0, "worst_row_percent": 2.0, "nats": 0.001}
    line |= dict.fromkeys(("raw_bits", "zstd_bits", "wide_bits", "entropy_bits"), 4.0)
    tables = {"code seed=0": {"rows": 5, "f32_nats": 3.0, "statistics": {"kurtosis": 3.0}, "lines": [line]}}
    result = {
        "machine": {"time": "now", "cpu": "c", "commit": "x"},
        "warnings": ["busy"],
        "settings": {"preset": "demo", "tokens": 7, "dim": 4, "windows": 2},
        "tables": tables,
        "summary": codecs_report.summary(tables),
    }
    (tmp_path / "codecs.json").write_text(json.dumps(result))
    section = codecs_report.section_of(tmp_path / "codecs.json")
    assert "| f, n | 4.00 |" in section
    assert "- code seed=0: 5 rows, 3.0000 nats with f32 rows; kurtosis 3." in section
    assert "warning: busy" in codecs_report.text(result)
    plot(result, tmp_path / "codecs.png")
    assert (tmp_path / "codecs.png").stat().st_size > 10_000
