"""docs/results.md, its plots and the README's figures say what the JSON files in bench/results say."""

from __future__ import annotations

import json

import pytest
from helpers import ROOT

from bench import (
    claims,
    drawing,
    exceptions,
    page,
    paper_tables,
    plots,
    prose,
    readme,
    saved,
    serving_page,
    target_numbers,
    targets,
)


@pytest.mark.parametrize("path", page.pages(), ids=lambda path: path.name)
def test_the_pages_are_made_from_the_json_files(path):
    assert path.read_text() == page.pages()[path], "run `python -m bench.page`"


def test_every_result_is_named_in_a_document():
    documents = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    missing = [path.name for path in page.RESULTS.glob("*.json") if f"bench/results/{path.name}" not in documents]
    assert not missing


def test_what_the_readme_says_of_the_demo_and_its_figures_are_made_from_the_json_files():
    text = readme.README.read_text()
    assert readme.updated(text) == text, "run `python -m bench.page`"


def test_what_the_serving_page_says_was_measured_is_made_from_the_json_files():
    text = serving_page.PAGE.read_text()
    assert serving_page.updated(text) == text, "run `python -m bench.page`"


@pytest.mark.parametrize("path", prose.PAGES, ids=lambda path: path.name)
def test_figures_inside_documents_are_made_from_the_json_files(path):
    text = path.read_text()
    assert prose.updated(path, text) == text, "run `python -m bench.page`"


def test_every_plot_of_the_page_is_there_and_small():
    for name, _ in plots.names():
        path = plots.IMAGES / name
        assert path.exists(), "run `python -m bench.page`"
        assert path.stat().st_size < 100_000


def test_every_case_in_which_a_peer_is_faster_has_its_reason():
    without = [
        f"{e.where} {e.metric} {e.peer} {e.ratio:.2f}" for e in exceptions.found() if exceptions.reason(e) is None
    ]
    assert not without, "write the reason in bench/exceptions.json"


def _write(folder, name, quick=False, time="2026-01-01", bench="store", warnings=(), **cases):
    """A result file; cases: name -> subject -> metric -> rounds; warnings: subject -> what its facts say."""
    content = []
    for case, subjects in cases.items():
        metrics = {
            subject: {
                "metrics": {m: {"values": v, "median": sorted(v)[len(v) // 2]} for m, v in found.items()},
                "facts": {"row_bytes": 100, "warnings": dict(warnings).get(subject, [])},
            }
            for subject, found in subjects.items()
        }
        headline = list(dict.fromkeys(metric for found in subjects.values() for metric in found))
        content.append({"name": case, "headline": headline, "subjects": metrics, "notes": []})
    result = {"bench": bench, "machine": {"time": time}, "options": {"quick": quick}, "cases": content}
    (folder / f"{name}.json").write_text(json.dumps(result))


def test_a_full_run_counts_before_a_quick_one_and_a_newer_one_before_an_older(tmp_path):
    def warm(value):
        return {"warm": {"ngramstore": {"us": [value]}}}

    _write(tmp_path, "a", **warm(1.0))
    _write(tmp_path, "b", time="2026-02-02", **warm(2.0))
    _write(tmp_path, "c", time="2026-03-03", quick=True, **warm(3.0))
    found = saved.cases(tmp_path)["store", "warm"]
    assert (found.value("ngramstore", "us"), found.file) == (2.0, "b.json")


def test_ratios_are_taken_round_by_round(tmp_path):
    _write(tmp_path, "a", warm={"ngramstore": {"us": [1, 2, 9]}, "lmdb": {"us": [10, 4, 9]}})
    assert saved.cases(tmp_path)["store", "warm"].ratio("ngramstore", "lmdb", "us") == 0.5


@pytest.mark.parametrize(("ours", "is_met"), [(0.39, True), (0.40, True), (0.41, False)])
def test_a_target_is_met_at_its_limit_and_not_beyond(tmp_path, ours, is_met):
    _write(tmp_path, "a", warm={"ngramstore": {"us_per_key@1024": [ours]}, "lmdb": {"us_per_key@1024": [1.0]}})
    (answer,) = [a for a in claims.answers(tmp_path) if a.claim.what == "warm, 1,024 keys per call, vs LMDB"]
    assert (answer.value, answer.is_met, answer.file) == (ours, is_met, "a.json")
    assert (
        "**not met**" in next(line for line in claims.table(tmp_path).splitlines() if "vs LMDB | 0." in line)
    ) != is_met


def _claimed(folder, what):
    (answer,) = [answer for answer in claims.answers(folder) if answer.claim.what == what]
    return answer.value


def test_the_claims_of_scale_take_their_sizes_by_name(tmp_path):
    """Where 100 million keys failed, 10 million do not stand in for them."""
    what = "100M keys vs 1M, median call, Zipf, one key per call"
    small, middle = {"us_per_key@1": [1.0]}, {"us_per_key@1": [1.5]}
    sizes = {"1,000,000 keys": small, "10,000,000 keys": middle}
    _write(tmp_path, "a", bench="scale", zipf=sizes, build={size: {"anon_mib": [1.0]} for size in sizes})
    assert _claimed(tmp_path, what) is None
    assert _claimed(tmp_path, "100M keys, build: memory vs its budget") is None
    _write(tmp_path, "a", bench="scale", zipf=sizes | {"100,000,000 keys": {"us_per_key@1": [3.0]}})
    assert _claimed(tmp_path, what) == 3.0


@pytest.mark.parametrize(
    ("tags", "name", "share"),
    [
        ((2.0, None), "making batches, against the processor time of a training run", 0.02),
        ((2.0, 3.0), "matching of the tokens trained on, and batches, against", 0.05),
    ],
)
def test_tagging_counts_with_batches_once_every_cell_says_what_it_took(tmp_path, tags, name, share):
    cells: list[dict] = [
        {"model": "scone", "batch_s": 1.0, "cpu_s": 100.0},
        {"model": "scone", "batch_s": 2.0, "cpu_s": 100.0},
        {"model": "plain", "batch_s": 90.0, "cpu_s": 100.0},
    ]
    for cell, tag_s in zip(cells, tags, strict=False):
        if tag_s is not None:
            cell["tag_s"] = tag_s
    (tmp_path / "quality.json").write_text(json.dumps({"cells": dict(enumerate(cells))}))
    (answer,) = [a for a in claims.answers(tmp_path) if a.file == "quality.json" and a.value is not None]
    assert (answer.value, answer.is_met) == (share, share <= 0.02)
    assert answer.claim.what.startswith(name)
    assert ("matching is not in it" in answer.claim.what) == (None in tags)
    assert f"| {answer.claim.what} | {share:.3g} x |" in claims.table(tmp_path)
    assert (answer.claim.what in claims.misses(tmp_path)) != answer.is_met


def test_tuned_rocksdb_is_the_faster_of_its_caches(tmp_path):
    what = "cache of 10 % of the rows, 64 keys, not compressed, vs tuned RocksDB"
    mean = "mean_us_per_key@64"
    subjects = {"ngramstore": {mean: [1.0]}, "rocks_tuned": {mean: [4.0]}, "rocks_zstd": {mean: [0.5]}}
    _write(tmp_path, "a", small_cache=subjects)
    assert _claimed(tmp_path, what) == 0.25
    (later := tmp_path / "later").mkdir()
    _write(later, "a", small_cache=subjects | {"rocks_tuned_rows": {mean: [2.0]}})
    assert _claimed(later, what) == 0.5


def test_a_cache_is_compared_with_a_cache_and_none_with_none(tmp_path):
    times = {"ngramstore": 1.0, "ngramstore_uncached": 10.0, "engramdb": 20.0, "engramdb_cached": 4.0}
    subjects = {name: {"us_1": [time]} for name, time in times.items()}
    _write(tmp_path, "a", bench="tables", engramdb_fetch_160=subjects)
    found = {a.claim.what: a for a in claims.answers(tmp_path) if "160 B x 16, as bytes, 1 token" in a.claim.what}
    assert {answer.value for answer in found.values()} == {0.25, 0.5}
    for what, answer in found.items():
        assert (answer.value == 0.5) == ("no cache on either side" in what)
        assert answer.claim.limit == pytest.approx(1 / 3) and answer.is_met == (answer.value == 0.25)
    (older := tmp_path / "older").mkdir()
    del subjects["engramdb_cached"]
    _write(older, "a", bench="tables", engramdb_fetch_160=subjects)
    assert sorted(a.value or 0 for a in claims.answers(older) if a.claim.what in found) == [0, 0.5]


def test_the_target_of_one_call_is_that_of_the_slowest_width(tmp_path):
    widths = {"dim_128": {"call_us": [40.0, 41.0, 39.0]}, "dim_512": {"call_us": [22.0, 23.0, 21.0]}}
    _write(tmp_path, "a", bench="decode", overhead=widths)
    (answer,) = [a for a in claims.answers(tmp_path) if a.claim.what.startswith("one call of NGramEmbedding")]
    assert (answer.value, answer.is_met, min(answer.rounds)) == (40.0, False, 39.0)


@pytest.mark.parametrize(("control", "is_void"), [(1.95, False), (1.5, True)])
def test_neither_gain_of_two_threads_is_told_where_the_machine_had_no_two_cores(tmp_path, control, is_void):
    gains = {"speedup": [1.6] * 3, "speedup_of_one_call": [1.4] * 3, "control_speedup": [control] * 3}
    _write(tmp_path, "a", threads={"ngramstore": gains})
    said = prose._threads(tmp_path)
    assert ("1.40 times as fast" in said, "1.60 times the throughput" in said) == (not is_void, not is_void)
    assert ("was not measured" in said) == is_void


def test_what_is_said_of_writing_is_what_was_measured(tmp_path):
    def way(seconds, cpu_s):
        return {
            "seconds": {"median": seconds, "values": [seconds] * 3},
            "cpu_s": {"median": cpu_s, "values": [cpu_s] * 3},
        }

    ways = {"dropped": way(2.02, 0.49), "cached": way(2.32, 0.52), "direct": way(3.17, 0.16)}
    (tmp_path / "writing.json").write_text(json.dumps({"mib": 1024, "ways": ways}))
    said = " ".join(prose._writing(tmp_path).split())
    assert said.startswith(
        "1 GiB in pieces of 4 MiB and one `fsync` took 2.0 s with `RWF_DONTCACHE`, 2.3 through the page cache and 3.2 by"
    )
    assert said.endswith("medians of 3 rounds; CPU time 0.5, 0.5 and 0.2 s).")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.json": "x", "b.json": "x"}, "All 2 files are of commit x."),
        ({"a.json": "x"}, "The file is of commit x."),
        (
            {"a.json": "y", "b.json": "x", "c.json": "x", "d.json": None},
            "2 of 4 files are of commit x; `a.json` of commit y; `d.json` of a commit that they do not name.",
        ),
    ],
)
def test_which_commits_files_are_of_is_said(files, said):
    assert saved.of_commits(files) == said


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "x"),
        ([{"commit": "x"}], "x"),
        ([{"commit": "x"}, {}], "x (last run; its cells do not name theirs)"),
        ([{"commit": "x"}, {"commit": "y"}], "x (last run; its cells name theirs)"),
    ],
)
def test_the_commit_of_a_resumed_grid_is_only_its_last_run_s(cells, said):
    assert saved.commit_of({"machine": {"commit": "x"}, "cells": dict(enumerate(cells))}) == said


def test_the_worst_text_is_that_of_the_codec_which_is_best_in_the_mean():
    costs = {
        "code seed=0": (0.1, 0.19),
        "code seed=1": (0.1, 0.19),
        "text seed=0": (0.3, 0.19),
        "text seed=1": (0.1, 0.19),
    }
    named = [{"family": "codec", "name": name} for name in ("a", "b")]
    summary = [
        line | {"is_codec": True, "raw_bits": 4.5, "wide_bits": 4.5, "perplexity_percent": percent}
        for line, percent in zip(named, (0.15, 0.19), strict=True)
    ]
    tables = {
        name: {"lines": [line | {"nats": nats / 100} for line, nats in zip(named, both, strict=True)]}
        for name, both in costs.items()
    }
    result = {"summary": summary, "tables": tables}
    assert target_numbers.half_a_byte(result) == 0.15
    assert target_numbers.half_a_byte_worst_text(result) == pytest.approx(0.2, rel=0.01)


def test_a_cell_of_the_readme_has_number_and_name_the_least_first(tmp_path):
    """Names hold commas and numbers, so neither is between two entries."""
    times = {"memmap": {"us": [3.0]}, "dict": {"us": [1.5]}}
    _write(tmp_path, "a", warm=times)
    names = {"memmap": "memory map, its IDs read at opening", "dict": "a dict", "lmdb": "not measured"}
    found = saved.cases(tmp_path)["store", "warm"]
    assert readme._others(found, "us", names) == "1.50 a dict; 3.00 memory map, its IDs read at opening"


def test_the_readme_s_table_says_which_commits_its_files_are_of(tmp_path):
    metric = "us_per_key@1"
    _write(tmp_path, "a", warm={"ngramstore": {metric: [1.0]}, "lmdb": {metric: [2.0]}})
    result = json.loads((tmp_path / "a.json").read_text())
    result["machine"]["commit"] = "abc"
    (tmp_path / "a.json").write_text(json.dumps(result))
    assert readme.table(tmp_path).endswith("| 1.00 us | 2.00 LMDB |\n\nThe file is of commit abc.")


def test_the_target_of_exports_names_the_time_that_it_reads(tmp_path):
    shapes = [{"store_over_model": share, "store_over_model_wall": 2.0} for share in (0.25, 0.5)]
    (tmp_path / "export.json").write_text(json.dumps({"shapes": shapes}))
    assert _claimed(tmp_path, "export: the store's processor time vs A_f's, worst shape") == 0.5


@pytest.mark.parametrize(
    ("controls", "gain"),
    [([2.0, 1.95, 1.9], 1.6), ([2.0, 1.0, 1.95, 1.9, 1.0], 1.7), ([2.0, 1.95, 1.89], None), ([1.0] * 5, None)],
)
def test_two_threads_count_in_the_rounds_in_which_the_machine_has_two_cores_to_give(tmp_path, controls, gain):
    gains = [1.7, 9.0, 1.5, 1.8, 9.0] if len(controls) == 5 else [1.7, 1.5, 1.6]
    _write(tmp_path, "a", threads={"ngramstore": {"speedup": gains, "control_speedup": controls}})
    assert _claimed(tmp_path, "two threads vs one, batches of 8,192") == gain


@pytest.mark.parametrize("subject", ["ngramstore", "lmdb"])
@pytest.mark.parametrize(
    ("warning", "is_void"),
    [("not cold: 3 % of the pages", True), ("only 99.8 % of the files", False)],
)
def test_what_a_warning_makes_void_counts_as_not_measured(tmp_path, subject, warning, is_void):
    times = {"ngramstore": {"us": [1.0]}, "lmdb": {"us": [4.0]}, "other": {"us": [4.0]}}
    _write(tmp_path, "a", warnings={subject: [warning], "other": ["not cold"]}, cold=times)
    ratio = targets._ratio("cold", 1.0, "store/cold", "lmdb", "us")
    assert claims._answer(ratio, saved.cases(tmp_path), tmp_path).value == (None if is_void else 0.25)


def test_what_was_not_measured_is_said_and_not_counted_as_met(tmp_path):
    found = claims.answers(tmp_path)
    assert all(answer.value is None and not answer.is_met for answer in found)
    assert claims.table(tmp_path).startswith(f"0 of {len(found)} targets")


def test_faster_peers_are_found_and_bounds_and_equals_are_not(tmp_path):
    times = {"ngramstore": 1.0, "ngramstore_resident": 0.8, "lmdb": 0.9, "sqlite": 0.97, "redis": 3.0, "floor": 0.1}
    _write(tmp_path, "a", traces={name: {"us_per_key@zipf": [time] * 3} for name, time in times.items()})
    (exception,) = exceptions.found(tmp_path)
    assert (exception.where, exception.metric, exception.peer) == ("store/traces", "us_per_key@zipf", "lmdb")
    assert exception.ratio == pytest.approx(1 / 0.9)
    assert exception.best == pytest.approx(0.8 / 0.9)
    assert "no reason written" in exceptions.table(tmp_path) or exceptions.reason(exception)


def test_every_column_counts_but_those_that_have_no_ratio(tmp_path):
    """What memory exceeds a budget by may be below 0: then half of it is not better."""
    memory = {
        "ngramstore": {"anon_mib": [93.0], "over_budget_mib": [-5.0]},
        "rocks_zstd": {"anon_mib": [80.0], "over_budget_mib": [-18.0]},
    }
    space = {"ngramstore f16": {"bytes_per_key": [4.0]}, "lmdb f16": {"bytes_per_key": [2.0]}}
    _write(tmp_path, "a", memory=memory)
    _write(tmp_path, "b", bench="paper", space=space)
    assert {(e.where, e.metric, e.peer) for e in exceptions.found(tmp_path)} == {
        ("store/memory", "anon_mib", "rocks_zstd"),
        ("paper/space", "bytes_per_key", "lmdb f16"),
    }


def test_a_reason_is_found_by_its_patterns_and_nothing_else(tmp_path, monkeypatch):
    reasons = tmp_path / "reasons.json"
    reasons.write_text(json.dumps([{"where": "store/wa*", "metric": "us@1|us@2", "peer": "dict", "reason": "because"}]))
    monkeypatch.setattr(exceptions, "REASONS", reasons)

    def asked(where="store/warm", metric="us@2", peer="dict"):
        return exceptions.reason(exceptions.FasterPeer(where, metric, peer, 2.0, 2.0, "a.json"))

    assert asked() == "because"
    assert asked(where="store/open") is asked(metric="us@3") is asked(peer="lmdb") is None


def test_ours_stand_beside_the_papers_numbers(tmp_path):
    assert "Not measured here yet" in paper_tables.section(tmp_path)
    times = {f"{kind}@{size}": [2000.0] for kind in ("us", "p99_us") for size in (1, 2, 4, 8, 16)}
    _write(tmp_path, "a", bench="paper", latency_ram={"ngramstore": times})
    text = paper_tables.section(tmp_path)
    assert "| here: ngramstore, memory |" in text
    assert "2 [2]" in text
    assert "| paper: LMDB on NVMe | 77.3 | 766.8 | 7,665.4 |" in text


def test_the_same_numbers_draw_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib")
    warm = {
        name: {f"us_per_key@{size}": [1.0 + i] for size in (1, 64, 1024)}
        for i, name in enumerate(("ngramstore", "lmdb"))
    }
    _write(tmp_path, "a", warm=warm)
    names = [path.name for path in plots.draw_all(tmp_path, tmp_path / "one")]
    plots.draw_all(tmp_path, tmp_path / "two")
    assert names == ["warm.png", "batch.png"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


def test_a_logarithmic_axis_carries_no_bars():
    """The length of a bar would depend on where the axis begins."""
    pytest.importorskip("matplotlib")
    pyplot, cases = drawing.pyplot(), saved.cases()
    for name, _ in plots.names():
        figure = plots.PLOTS[name][2](cases, pyplot)
        for axis in figure.axes:
            assert not (axis.patches and "log" in (axis.get_xscale(), axis.get_yscale())), name
        pyplot.close(figure)


def test_ours_is_blue_and_no_peer_is():
    assert {drawing.line_color_of(s) for s in ("ngramstore", "ngramstore_zstd", "ngramstore_resident")} == {
        drawing.OURS
    }
    others = [drawing.line_color_of(s) for s in ("lmdb", "dict", "memmap", "rocks_tuned", "redis", "floor", "sqlite")]
    assert drawing.OURS not in others


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([], []),
        ([1.0, 5.0, 9.0], [1.0, 5.0, 9.0]),
        ([1.0, 1.0], [0.5, 1.5]),
        ([0.0, 0.9, 1.8], [-0.1, 0.9, 1.9]),
        ([0.0, 2.0, 2.0, 7.0], [0.0, 1.5, 2.5, 7.0]),
    ],
)
def test_labels_are_moved_apart_and_no_farther(values, places):
    assert drawing.apart(values, 1.0) == pytest.approx(places)
