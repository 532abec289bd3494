"""`python -m bench codecs`: ways give back what they store, sizes count bits, a table in place of the model is the model."""

from __future__ import annotations

import json
from dataclasses import replace

import click
import numpy as np
import pytest

pytest.importorskip("torch")

from click.testing import CliRunner

from bench import codec_ways, codecs, codecs_report
from bench.codecs_plot import plot
from bench.trained import trained
from ngramstore.codec import codec_from_spec
from ngramstore.mine import python_sources
from ngramstore_torch.experiment.presets import QUICK


def rows(count: int = 600, dim: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)


def error(rows_ND: np.ndarray, decoded_ND: np.ndarray) -> float:
    return codecs._errors(rows_ND, decoded_ND)["error_percent"]


def line(nats: float = 0.001) -> dict:
    """What is measured of one codec."""
    found = {"family": "f", "name": "n", "is_codec": True, "error_percent": 1.0, "worst_row_percent": 2.0, "nats": nats}
    return found | dict.fromkeys(("raw_bits", "zstd_bits", "wide_bits", "entropy_bits"), 4.0)


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
    tables = {"a": {"lines": [line(0.001)]}, "b": {"lines": [line(0.003)]}}
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
    about = codecs.about_text(tmp_path, texts, preset)
    assert about["tokens"] == len(table.train) + len(table.held)
    assert about["corpus_id"] and about["tokenizer_id"]


TEXT = {"corpus_id": "a" * 64, "tokenizer_id": "t", "tokens": 5}


@pytest.mark.parametrize("other", [{"corpus_id": "b" * 64}, {"tokenizer_id": "u"}, {"tokens": 6}])
def test_tables_of_another_text_are_not_gone_on_with(other):
    """The settings and the name are the same whatever file is given with --text."""
    tables = {"code seed=0": TEXT | {"corpus_id": "c" * 64}, "text seed=0": TEXT | {"rows": 7}}
    codecs.require_same_text(tables, "text", TEXT)
    codecs.require_same_text({}, "text", TEXT)
    with pytest.raises(click.UsageError, match="'text seed=0' is of another text"):
        codecs.require_same_text(tables, "text", TEXT | other)


def test_tables_that_do_not_say_of_which_text_they_are_are_not_gone_on_with():
    with pytest.raises(click.UsageError, match="'text seed=0' does not say which text it is of"):
        codecs.require_texts({"code seed=0": TEXT, "text seed=0": {"rows": 7}})


def test_another_text_for_one_json_is_refused_before_a_model_is_trained(tmp_path, monkeypatch):
    made: list[str] = []
    table = {"rows": 5, "f32_nats": 3.0, "statistics": {}, "lines": [line()]}
    monkeypatch.setattr(codecs, "about_text", lambda work, files, preset: TEXT | {"corpus_id": files[0].name})
    monkeypatch.setattr(codecs, "trained", lambda work, files, preset, seed: made.append(files[0].name))
    monkeypatch.setattr(codecs, "measured", lambda trained, preset, with_ways: table)
    monkeypatch.setattr(codecs, "_publish_page", lambda path: None)

    def run(name: str):
        (tmp_path / name).touch()
        options = ["--quick", "--text", str(tmp_path / name), "--json", str(tmp_path / "codecs.json")]
        return CliRunner().invoke(codecs.main, options)

    assert run("a.txt").exit_code == 0
    saved = json.loads((tmp_path / "codecs.json").read_text())["tables"]["text seed=0"]
    assert saved == {**TEXT, "corpus_id": "a.txt", "files": ["a.txt"], **table}
    assert len(made) == 2
    assert run("a.txt").exit_code == 0
    refused = run("b.txt")
    assert refused.exit_code == 2
    assert "'text seed=0' is of another text" in refused.output
    assert len(made) == 2


def test_the_page_names_the_corpus_of_a_table_that_says_it():
    table = {"rows": 5, "f32_nats": 3.0, "statistics": {"kurtosis": 3.0}, "lines": [line()]}
    about = TEXT | {"files": ["a.txt"], "tokens": 1234}
    tables = {"text seed=0": table | about, "text seed=1": table | about}
    result = {
        "machine": {"time": "now", "cpu": "c", "commit": "x"},
        "warnings": [],
        "settings": {"preset": "demo", "tokens": 7, "dim": 4, "windows": 2},
        "tables": tables,
        "summary": codecs_report.summary(tables),
    }
    section = codecs_report.section(result)
    assert f"- text seed=0 (a.txt, corpus {'a' * 16}, 1,234 tokens): 5 rows, 3.0000 nats" in section
    assert "the mean over 1 text x 2 seeds, which are not independent" in section
    tables["code seed=0"] = table
    assert "the mean over 3 tables, which are not independent" in codecs_report.section(result)


def prose() -> str:
    """The page in one line."""
    return " ".join(codecs_report.PAGE.read_text().split())


def test_what_the_page_says_of_the_recommended_codec_is_what_each_table_says():
    tables = json.loads(codecs.RESULT.read_text())["tables"]
    wanted = ("codec int4 rounded by sensitivity", "group 32")

    def costs(text: str) -> str:
        found = (tables[key]["lines"] for key in sorted(tables) if key.startswith(f"{text} seed="))
        nats = [line["nats"] for lines in found for line in lines if (line["family"], line["name"]) == wanted]
        return " and ".join(f"{100 * np.expm1(cost):.2f}" for cost in nats)

    assert f"({costs('code')} % on code, {costs('text')} % on the English text)" in prose()


def test_8_bit_scales_lose_less_than_any_variant_of_int4_of_about_as_many_bits():
    result = json.loads(codecs.RESULT.with_name("codec_error.json").read_text())
    variants = [way for way in result["int4_choices"] if way["bits_per_value"] <= 4.51]
    (ours,) = [way for way in variants if "8-bit scale" in way["way"]]
    for kind, error_percent in ours["error_percent"].items():
        assert error_percent == min(way["error_percent"][kind] for way in variants)
    assert "lose less than any variant shown of about as many bits" in prose()


def test_the_page_is_made_from_the_json_that_is_there():
    wanted = codecs_report.section(json.loads(codecs.RESULT.read_text()))
    assert wanted in codecs_report.PAGE.read_text(), "run `python -m bench codecs --page-only`"


def test_a_result_becomes_a_section_with_its_tables_and_costs(tmp_path):
    tables = {"code seed=0": {"rows": 5, "f32_nats": 3.0, "statistics": {"kurtosis": 3.0}, "lines": [line()]}}
    result = {
        "machine": {"time": "now", "cpu": "c", "commit": "x"},
        "warnings": ["busy"],
        "settings": {"preset": "demo", "tokens": 7, "dim": 4, "windows": 2},
        "tables": tables,
        "summary": codecs_report.summary(tables),
    }
    section = codecs_report.section(result)
    assert "| f, n | 4.00 |" in section
    assert "- code seed=0: 5 rows, 3.0000 nats with f32 rows; kurtosis 3." in section
    assert "warning: busy" in codecs_report.text(result)
    plot(result, tmp_path / "codecs.png")
    assert (tmp_path / "codecs.png").stat().st_size > 10_000
