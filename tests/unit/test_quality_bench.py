"""The quality grid: every model of it is trained at toy size, saved cell by cell, gone on with, and compared seed by seed."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import click
import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from bench import quality, quality_cells, quality_page
from bench.quality import GRID, STAGES, Stage
from bench.quality_cells import MODELS, Cell, Data, num_parameters
from bench.quality_picture import picture
from bench.quality_report import FGRAM_LR, RESULT, crossover, differences, has_usual_shape, lines
from ngramstore_torch.training.config import TrainConfig

TOY = replace(
    GRID,
    num_fgrams=200,
    held_out=0.2,
    dim=32,
    num_heads=2,
    train=TrainConfig(tokens=1, batch_size=4, seq_len=32),
    max_windows=8,
)


@pytest.fixture
def data(tmp_path) -> Data:
    rng = random.Random(0)
    words = ["the row", "of a store", "answers", "each token", "with a vector", "and nothing", "is lost", "twice"]
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return Data(tmp_path / "cache", TOY, {"made-up": [tmp_path / "text"]})


def cells(models: tuple[str, ...] = MODELS, seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    stage = Stage(name="toy", models=models, tokenizers=(280,), tokens=(1024,), num_fgrams=(200,), seeds=seeds)
    return list(stage.cells(["made-up"]))


def test_every_model_is_trained_on_what_it_should_cost(data, tmp_path):
    found = quality.run(tmp_path / "q.json", cells(), TOY, data)
    assert found == json.loads((tmp_path / "q.json").read_text())
    by = {cell["model"]: cell for cell in found["cells"].values()}
    assert set(by) == set(MODELS)
    plain, scone = by["plain"], by["scone"]
    assert scone["tokens_trained"] == plain["tokens_trained"] == 1024
    assert scone["flops_per_token"] == plain["flops_per_token"]
    assert scone["parameters"] == plain["parameters"] < scone["trained_parameters"]
    assert scone["train_flops"] > 1.1 * plain["train_flops"]
    assert by["equal"]["train_flops"] == pytest.approx(scone["train_flops"], rel=0.1)
    assert by["equal"]["tokens_trained"] > plain["tokens_trained"]
    assert by["equal"]["parameters"] == plain["parameters"]
    for name in ("wide", "deep"):
        assert by[name]["flops_per_token"] == pytest.approx(2 * plain["flops_per_token"], rel=0.2)
    assert by["hashed"]["trained_parameters"] == plain["trained_parameters"] + 200 * TOY.dim
    assert len({cell["held_out_tokens"] for cell in by.values()}) == 1
    assert 0.3 < scone["matched"] < 1 and plain["matched"] == 0
    assert scone["tag_s"] > 0 and all("tag_s" in cell for cell in by.values())
    assert set(found["texts"]) == {"made-up 280"}


def test_a_grid_that_was_stopped_goes_on_and_measures_nothing_twice(data, tmp_path, monkeypatch):
    measured: list[str] = []

    def measure(cell: Cell, preset, source) -> dict:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(cell.key)
        return {"nats": 1.0, "trained_parameters": num_parameters(cell, preset, source), **vars(cell)}

    monkeypatch.setattr(quality, "measure", measure)
    wanted = cells(("plain", "scone"), seeds=(0, 1, 2))
    with pytest.raises(KeyboardInterrupt):
        quality.run(tmp_path / "q.json", wanted, TOY, data)
    assert list(json.loads((tmp_path / "q.json").read_text())["cells"]) == measured
    first, measured[:] = list(measured), [""] * 4
    quality.run(tmp_path / "q.json", wanted, TOY, data)
    assert [*first, *measured[4:]] == [cell.key for cell in wanted]


def test_another_preset_or_text_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "measure", lambda cell, preset, source: {"nats": 1.0, **vars(cell)})
    quality.run(tmp_path / "q.json", cells(("plain",)), TOY, data)
    with pytest.raises(click.UsageError, match="made with other settings"):
        quality.run(tmp_path / "q.json", cells(("plain",)), replace(TOY, dim=64), data)
    (tmp_path / "text" / "0.txt").write_text("another text")
    other = Data(tmp_path / "cache", TOY, data.texts)
    with pytest.raises(click.UsageError, match="another text of the name 'made-up'"):
        quality.run(tmp_path / "q.json", cells(("scone",)), TOY, other)


def test_a_cell_of_a_model_that_is_no_longer_made_so_is_not_gone_on_with(data, tmp_path):
    path = tmp_path / "q.json"
    saved = quality.run(path, cells(("wide",)), TOY, data)
    (key,) = saved["cells"]
    assert saved["cells"][key]["commit"] == saved["machine"]["commit"]
    assert quality.run(path, cells(("wide",)), TOY, data) == saved
    saved["cells"][key]["trained_parameters"] -= 1
    path.write_text(json.dumps(saved))
    with pytest.raises(click.UsageError, match="was another model; take the cell out"):
        quality.run(path, cells(("wide",)), TOY, data)


def made(model: str, tokens: int, seed: int, nats: float) -> dict:
    return {
        "text": "t", "model": model, "tokenizer": 1, "tokens": tokens, "seed": seed, "nats": nats,
        "num_fgrams": 0, "fgram_layers": 0, "fgram_width": 0, "start": "", "fgram_lr": 0,
    }  # fmt: skip


def test_differences_are_taken_seed_by_seed():
    measured = [
        made("plain", 10, 0, 5.0),
        made("plain", 10, 1, 6.0),
        made("scone", 10, 0, 4.5),
        made("scone", 10, 1, 5.7),
    ]
    (curve,) = differences([*measured, made("scone", 20, 0, 1.0)])  # nothing to compare the last one with
    point = curve["difference"]["10"]
    assert point["mean"] == pytest.approx(-0.4)
    assert point["deviation"] == pytest.approx(0.2 / 2**0.5)
    assert point["seeds"] == pytest.approx([-0.5, -0.3])
    assert list(curve["difference"]) == ["10"]
    assert (
        differences([made("plain", 10, 0, 5.0), made("scone", 10, 0, 4.0)])[0]["difference"]["10"]["deviation"] is None
    )


@pytest.mark.parametrize(
    ("points", "where"),
    [
        ([(10, -0.1), (100, -0.2)], "below 10"),
        ([(10, 0.1), (100, 0.2)], "above 100"),
        ([(10, 0.1), (1000, -0.1)], 100.0),
        ([(10, -0.1), (100, 0.1), (10_000, -0.1)], 1000.0),
    ],
)
def test_the_crossover_is_where_the_gain_begins_for_good(points, where):
    assert crossover(points) == (pytest.approx(where) if isinstance(where, float) else where)


def test_the_published_grid_has_every_model_and_asks_for_no_cell_without_its_rival():
    wanted = [cell for stage in STAGES for cell in stage.cells(["code", "english"])]
    assert {cell.model for cell in wanted} == set(MODELS)
    assert {cell.seed for cell in wanted} == {0, 1, 2}
    plain = {(c.text, c.tokenizer, c.tokens, c.seed) for c in wanted if c.model == "plain"}
    assert {(c.text, c.tokenizer, c.tokens, c.seed) for c in wanted} == plain
    assert {cell.tokenizer for cell in wanted} == {1024, 4096}


def test_a_text_needs_a_path_unless_everybody_has_it():
    assert quality._texts(["code", "a=x", "a=y"])["a"] == [quality.Path("x"), quality.Path("y")]
    assert quality._texts([]) == {quality_cells.CODE: []}
    with pytest.raises(click.BadParameter, match="neither 'code' nor NAME=PATH"):
        quality._texts(["english"])


def test_the_picture_and_the_lines_are_drawn_from_the_file(tmp_path):
    measured = [
        made(m, t, s, 5 + 0.1 * s - (m == "scone") * t / 100)
        for m in ("plain", "scone")
        for t in (10, 20)
        for s in (0, 1)
    ]
    found = differences(measured)
    picture({"differences": found}, tmp_path / "q.png")
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    assert list(lines(found)) == [
        "t V=1 scone: 10: -0.100 +- 0.000 (2)  20: -0.200 +- 0.000 (2)  ahead at every size measured, from 10 tokens on"
    ]


def test_the_usual_rate_is_that_of_training():
    assert TrainConfig().fgram_lr == FGRAM_LR


def test_the_tables_of_the_page_are_made_from_the_file():
    result, rates = (json.loads(path.read_text()) for path in (RESULT, quality_page.RATES))
    shown = quality_page.section(result, rates)
    assert shown in quality_page.PAGE.read_text(), "run `python -m bench.quality_page`"
    curve = next(c for c in result["differences"] if c["model"] == "deep")
    assert f"{curve['difference']['400000']['mean']:+.3f}" in shown


def test_what_the_page_says_of_the_rates_was_run():
    page = quality_page.PAGE.read_text()
    (said,) = re.findall(r"^- \*\*The rates were chosen.*?(?=^- )", page, re.MULTILINE | re.DOTALL)
    result = json.loads(RESULT.read_text())
    rates = {float(rate) for rate in re.findall(r"(?<![\d.,-])(?:0\.\d|1)(?!\d|[.,]\d)", said)}
    assert rates
    assert rates <= {cell["fgram_lr"] for cell in result["cells"].values() if cell["model"] == "scone"}
    for curve in result["differences"]:
        if curve["model"] == "scone" and curve["tokenizer"] == 4096 and has_usual_shape(curve):
            assert f"{curve['difference']['400000']['mean']:+.3f}" in said


@pytest.mark.parametrize(
    ("label", "model", "layers", "deviation"),
    [
        ("1 layer, plain", "plain", 1, 0.07),
        ("1 layer, plain, weights from a deviation of 0.02", "plain", 1, 0.02),
        ("1 layer, SCONE (A_f: 1 layer)", "scone", 1, 0.07),
        ("2 layers, plain", "plain", 2, 0.07),
        ("2 layers, SCONE (A_f: 1 layer)", "scone", 2, 0.07),
    ],
)
def test_the_table_of_depth_and_start_says_what_the_search_found(label, model, layers, deviation):
    runs = json.loads(RESULT.with_name("quality_search.json").read_text())["runs"]
    names = ("model", "decoder_layers", "weight_deviation", "token_table_deviation", "dim", "batch_size")
    wanted = (model, layers, deviation, deviation, 128, 8)
    (run,) = [run for run in runs if tuple(run[name] for name in names) == wanted]
    assert run["bf16"] and run["batch_size"] * run["seq_len"] == 1024
    assert f"| {label} | {run['held_out_nats']:.3f} |" in quality_page.PAGE.read_text()


def test_batches_take_at_most_the_share_that_the_page_names():
    cells = [cell for cell in json.loads(RESULT.read_text())["cells"].values() if cell["model"] == "scone"]
    (percent,) = re.findall(r"Making batches .*? takes at most ([\d.]+) % of", quality_page.PAGE.read_text())
    assert float(percent) - 0.1 < 100 * max(cell["batch_s"] / cell["cpu_s"] for cell in cells) <= float(percent)
