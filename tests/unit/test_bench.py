"""The benchmark harness: its statistics, its checks, and a miniature run of the workload `store`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import check, data, harness, pages, peers, report, rows, saved, setup, spread, text
from bench.__main__ import main
from bench.peers import memmap
from bench.setup import Setup
from bench.workloads import store, store_match, store_parts

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="page cache checks are for Linux")
ALWAYS = (
    "floor",
    "floor_ahead",
    "dict",
    "memmap",
    "memmap_numba",
    "flat_hint_pread",
    "rocks_tuned",
    "rocks_tuned_rows",
    "rocks_default",
    "rocks_zstd",
    "sqlite",
)
"""Subjects that need nothing beyond what ngramstore itself depends on."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return data.load(data.prepare(tmp_path_factory.mktemp("bench"), 300, 8, seed=3))


def test_summary_has_median_quartiles_and_range():
    assert spread.summary([5, 1, 4, 2, 3]) == {"median": 3, "q1": 2, "q3": 4, "min": 1, "max": 5, "rounds": 5}


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        spread.summary([])


def test_ratio_is_the_median_of_per_round_ratios_not_the_ratio_of_medians():
    found = spread.ratios([10, 2, 9], [1, 2, 3])
    assert found is not None
    assert found["median"] == 3  # the medians' ratio would be 9 / 2
    assert (found["min"], found["max"]) == (1, 10)


def test_a_round_without_the_baseline_gives_no_ratio():
    assert spread.ratios([10, 2], [None, 4])["median"] == 0.5
    assert spread.ratios([10], [None]) is None


def test_call_times_become_microseconds_a_key_and_percentiles_a_call():
    found = spread.of_calls([1000] * 98 + [5000, 9000], keys_per_call=2)
    assert found["us_per_key"] == 0.5
    assert found["max_us_per_call"] == 9.0
    assert 1.0 < found["p99_us_per_call"] <= 9.0
    assert found["calls"] == 100


def test_decoding_kernels_agree_with_plain_numpy():
    rng = np.random.default_rng(0)
    stored_NR = rows.encode(rng.standard_normal((20, 13)).astype(np.float32))
    want_ND = rows.decode(stored_NR)
    out_ND = np.full_like(want_ND, np.nan)
    rows.decode_rows(stored_NR, out_ND)
    np.testing.assert_array_equal(out_ND, want_ND)
    numbers_M = np.array([3, -1, 19, 3])
    out_MD = np.full((4, 13), np.nan, np.float32)
    rows.gather_rows(stored_NR, numbers_M, out_MD)
    np.testing.assert_array_equal(out_MD, want_ND[numbers_M] * (numbers_M >= 0)[:, None])


def test_stored_rows_are_the_bytes_of_the_codec_int8():
    from ngramstore.codec import codec_from_spec

    rows_MD = np.random.default_rng(1).standard_normal((6, 24)).astype(np.float32)
    np.testing.assert_array_equal(rows.encode(rows_MD), codec_from_spec("int8", 24).encode(rows_MD))


def _answer(source):
    batch = data.split(data.queries(source, 64, seed=1, absent=0.3), 64)[0]
    want_BD, want_B = batch.expected(source)
    return want_BD, want_B


def test_checker_accepts_the_truth(source):
    want_BD, want_B = _answer(source)
    assert check.must_match("x", want_BD.copy(), want_B.copy(), want_BD, want_B) == 64


@pytest.mark.parametrize("wrong", ["value", "nan", "mask", "missing row not zero", "swapped rows", "dtype", "shape"])
def test_checker_catches_each_kind_of_wrong_answer(source, wrong):
    want_BD, want_B = _answer(source)
    rows_BD, found_B = want_BD.copy(), want_B.copy()
    present, absent = np.flatnonzero(want_B), np.flatnonzero(~want_B)
    if wrong == "value":
        rows_BD[present[-1], -1] *= np.float32(1.0001)
    elif wrong == "nan":
        rows_BD[present[0], 0] = np.nan
    elif wrong == "mask":
        found_B[absent[0]] = True
    elif wrong == "missing row not zero":
        rows_BD[absent[0], 3] = 1e-30
    elif wrong == "swapped rows":
        rows_BD[present[[0, 1]]] = rows_BD[present[[1, 0]]]
    elif wrong == "dtype":
        rows_BD = rows_BD.astype(np.float64)
    else:
        rows_BD = rows_BD[:-1]
    with pytest.raises(check.WrongAnswer, match="x: "):
        check.must_match("x", rows_BD, found_B, want_BD, want_B)


def test_the_same_seed_gives_the_same_bytes(tmp_path, source):
    again = data.load(data.prepare(tmp_path, 300, 8, seed=3))
    np.testing.assert_array_equal(again.ids_N, source.ids_N)
    np.testing.assert_array_equal(again.stored_NR, source.stored_NR)
    assert not np.array_equal(data.load(data.prepare(tmp_path, 300, 8, seed=4)).ids_N, source.ids_N)


def test_queries_have_the_asked_share_of_absent_keys_and_favour_hot_ones(source):
    found = data.queries(source, 20_000, seed=1)
    assert abs((found.numbers_B < 0).mean() - 0.2) < 0.02
    assert not np.isin(found.ids_B[found.numbers_B < 0], source.ids_N).any()
    np.testing.assert_array_equal(
        found.ids_B[found.numbers_B >= 0], source.ids_N[found.numbers_B[found.numbers_B >= 0]]
    )
    counts = np.sort(np.bincount(found.numbers_B[found.numbers_B >= 0], minlength=300))[::-1]
    assert 1.5 < counts[0] / counts[1] < 2.7  # Zipf(1.0): the first is asked for twice as often as the second


def _is_in_memory(path):
    """True on tmpfs, whose pages cannot be dropped."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((where, kind) for where, kind in mounts if path.is_relative_to(where))[1] == "tmpfs"


@needs_linux
def test_pages_are_dropped_and_warmed_and_counted(tmp_path):
    if _is_in_memory(tmp_path):
        pytest.skip("the temporary folder is on tmpfs, whose pages cannot be dropped")
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    pages.drop([path])
    assert pages.resident_share([path]) == 0.0
    pages.warm([path])
    assert pages.resident_share([path]) == 1.0


def test_frequent_ngrams_are_suffix_closed_and_ranked_by_count():
    tokens = np.random.default_rng(0).zipf(1.5, 3000).clip(0, 50).astype(np.uint32)
    ngrams_SK, lengths_S = text.frequent_ngrams(tokens, 200)
    kept = {tuple(row[:n].tolist()) for row, n in zip(ngrams_SK, lengths_S, strict=True)}
    assert len(kept) == 200
    assert all(ngram[1:] in kept for ngram in kept if len(ngram) > 2)
    counts: dict[tuple, int] = {}
    for n in range(2, 6):
        for i in range(len(tokens) - n + 1):
            gram = tuple(tokens[i : i + n].tolist())
            counts[gram] = counts.get(gram, 0) + 1
    worst = min(counts[gram] for gram in kept)
    assert all(count <= worst for gram, count in counts.items() if gram not in kept)


def _scripted(**arguments):
    """Worker function for the tests below, found by its name in a fresh process."""
    if arguments["subject"] == "broken":
        raise RuntimeError("broke on purpose")
    return {"metrics": {"ms": arguments["cost"] + arguments["seed"] % 1000}, "facts": {"seed": arguments["seed"]}}


def _case(**subjects):
    return harness.Case(
        name="scripted",
        title="a script",
        function=f"{__name__}:_scripted",
        subjects={name: {"subject": name, "cost": cost} for name, cost in subjects.items()},
        baseline="slow",
        headline=("ms",),
    )


def test_rounds_are_interleaved_and_share_their_seed(monkeypatch):
    asked = []

    def spawn(function, arguments, environment, timeout_s):
        asked.append((arguments["subject"], arguments["seed"]))
        return _scripted(**arguments)

    monkeypatch.setattr(harness, "spawn", spawn)
    result = harness.run_case(_case(slow=8, fast=2), rounds=6, seed=5)
    assert [seed for _, seed in asked] == [5000 + i // 2 for i in range(12)]
    assert all({name for name, _ in asked[i : i + 2]} == {"slow", "fast"} for i in range(0, 12, 2))
    assert len({tuple(order) for order in result["order"]}) == 2  # both orders occur
    fast = result["subjects"]["fast"]["metrics"]["ms"]
    assert fast["values"] == [2, 3, 4, 5, 6, 7]
    assert fast["ratio"]["max"] == 7 / 13
    assert "fast" in report.table(result)


def test_the_warnings_of_every_round_are_kept_and_the_facts_of_the_last(monkeypatch):
    def spawn(function, arguments, environment, timeout_s):
        turn = arguments["seed"] % 1000
        warnings = [["not cold: 3 %"], [], ["not cold: 3 %", "void"]][turn]
        metrics = {"ms": 1.0} | ({"reads": 2.0} if turn else {})
        return {"metrics": metrics, "facts": {"turn": turn, "warnings": warnings}}

    monkeypatch.setattr(harness, "spawn", spawn)
    result = harness.run_case(_case(slow=8), rounds=3, seed=0)
    slow = result["subjects"]["slow"]
    assert slow["facts"] == {"turn": 2, "warnings": ["not cold: 3 %", "void"]}
    assert slow["metrics"]["reads"]["values"] == [None, 2.0, 2.0]
    assert "slow: warning: not cold: 3 %" in report.table(result)


def test_a_server_s_version_stands_beside_its_name_and_the_client_s_under_its_own():
    machine = {
        "time": "now", "commit": "abc", "cpu": "c", "cores": 2, "ram_gib": 4, "kernel": "6.1", "load": [0.0], "python": "3.11",
        "packages": {"numpy": "2.0", "redis": "8.1.0"},
    }  # fmt: skip
    result = {"bench": "store", "machine": machine, "options": {}, "warnings": []}
    assert "numpy 2.0, redis-py 8.1.0" in report.header(result)
    subjects = {
        name: {"metrics": {"us": {"median": 1.0, "rounds": 1, "ratio": None}}, "facts": facts}
        for name, facts in (("redis", {"redis_version": "6.2.14"}), ("memmap", {}))
    }
    case = {
        "name": "warm", "title": "t", "rounds": 1, "baseline": "memmap", "notes": [], "headline": ["us"], "subjects": subjects,
        "errors": {},
    }  # fmt: skip
    lines = [line.split("  ") for line in report.table(case).splitlines()]
    assert [line[1].strip() for line in lines[-2:]] == ["redis (server 6.2.14)", "memmap"]


def test_a_broken_subject_is_reported_and_the_others_go_on(monkeypatch):
    def spawn(function, arguments, environment, timeout_s):
        try:
            return _scripted(**arguments)
        except RuntimeError as error:
            raise harness.WorkerFailed(str(error)) from error

    monkeypatch.setattr(harness, "spawn", spawn)
    result = harness.run_case(_case(slow=8, broken=1), rounds=3, seed=0)
    assert result["errors"] == {"broken": "broke on purpose"}
    assert result["subjects"]["slow"]["metrics"]["ms"]["rounds"] == 3
    assert "broken: no result: broke on purpose" in report.table(result)


def test_a_worker_that_dies_says_why():
    with pytest.raises(harness.WorkerFailed, match=r"exit 1: KeyError: 'no such subject'"):
        harness.spawn("bench.peers:ensure_built", {"subject": "no such subject", "source_folder": "x"})


def test_every_subject_names_its_settings():
    for subject in ALWAYS:
        peer = peers.create(subject)
        assert peer.name == subject
        assert peer.settings


def test_reopened_rocksdb_runs_with_the_options_of_the_case(source):
    """rocksdict takes the table options of the stored file unless they come through column_families: 8 MiB of cache."""
    for subject, blocks_mib in (("rocks_tuned", 48), ("rocks_tuned_rows", 4.8), ("rocks_zstd", 4.8)):
        peers.ensure_built(subject, str(source.folder))
        peer = peers.opened(subject, source, cache_bytes=48 << 20)
        assert peer.facts()["block_cache_capacity"] == pytest.approx(blocks_mib * 2**20, abs=16)
        batch = data.queries(source, 64, seed=2, absent=0.0)
        peer.get(batch, np.empty((64, source.dim), np.float32))
        assert ("row_cache_usage" in peer.facts()) == (subject != "rocks_tuned")
        assert peer.facts().get("row_cache_usage", 1) > 0
        peer.close()


def test_our_store_and_every_peer_that_is_always_there_answer_as_the_source_does(source):
    batches = data.split(data.queries(source, 128, seed=2), 64)
    for subject in (*ALWAYS, "ngramstore", "ngramstore_zstd", "ngramstore_resident"):
        peers.ensure_built(subject, str(source.folder))
        peer = peers.opened(subject, source)
        for batch in batches:
            out_BD = np.full((64, source.dim), np.nan, np.float32)
            found_B = peer.get(batch, out_BD)
            check.must_match(subject, out_BD, found_B, *batch.expected(source))
        peer.close()


@pytest.fixture
def text_source(tmp_path):
    """A dataset of n-grams of 2..5 made-up tokens, and the text they are looked up in."""
    tokens = np.random.default_rng(0).zipf(1.4, 4000).clip(0, 60).astype(np.uint32)
    np.save(tmp_path / "text.held_out.npy", tokens[3000:])
    data.write(tmp_path / "text", *text.frequent_ngrams(tokens[:3000], 150), dim=8, seed=0)
    return tmp_path / "text"


def test_expected_matches_are_the_longest_suffixes_that_are_stored(text_source):
    source = data.load(text_source)
    stored = [tuple(row[:n].tolist()) for row, n in zip(source.ngrams_NK, source.lengths_N, strict=True)]
    (stretch,) = text.stretches(source, 1, 200, seed=1)
    tokens = stretch.tokens_T.tolist()
    for i in range(200):
        suffixes = [tuple(tokens[i + 1 - n : i + 1]) for n in range(2, 6) if n <= i + 1]
        longest = max((gram for gram in suffixes if gram in stored), key=len, default=())
        assert stretch.lengths_T[i] == len(longest)
        if longest:
            assert stored[stretch.exact.numbers_B[i]] == longest


@needs_linux
@pytest.mark.parametrize("subject", ["ngramstore", "ngramstore_exact", "floor", "memmap"])
def test_longest_match_case_runs(text_source, subject):
    peers.ensure_built(subject, str(text_source))
    found = store_match.match(subject=subject, source=str(text_source), positions=100, calls=5, warmup_s=0.0, seed=3)
    assert found["facts"]["rows_checked"] == 400
    assert 0 < found["facts"]["matched_share"] < 1
    assert found["metrics"]["us_per_position"] > 0


def test_a_wrong_match_length_stops_the_case(text_source, monkeypatch):
    peers.ensure_built("memmap", str(text_source))
    right = memmap.Memmap.longest

    def one_too_short(self, stretch, out_TD):
        lengths_T = right(self, stretch, out_TD)
        return np.where(lengths_T > 2, lengths_T - 1, lengths_T)

    monkeypatch.setattr(memmap.Memmap, "longest", one_too_short)
    with pytest.raises(check.WrongAnswer, match="by definition"):
        store_match.match(subject="memmap", source=str(text_source), positions=100, calls=5, warmup_s=0.0, seed=3)


@pytest.mark.parametrize("name", store_parts.PARTS)
def test_a_part_with_a_wrong_answer_is_noticed(source, name):
    peers.ensure_built("ngramstore", str(source.folder))
    batches = data.split(data.queries(source, 20 * 64, seed=1), 64)
    run, units, verify = store_parts._makers()[name](source, batches)
    verify(3, run(3))
    answer = run(3)
    wrong = answer + 1 if name in ("hash", "searchsorted", "checksum") else None
    with pytest.raises(check.WrongAnswer):
        verify(4 if wrong is None else 3, wrong)
    assert units


def _in_this_process(function, arguments, environment=None, timeout_s=None):
    """What a worker does, without the second that a process takes to start."""
    module, name = function.split(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments)))


@needs_linux
def test_a_miniature_run_over_all_peers_prints_a_table_and_saves_every_round(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "spawn", _in_this_process)
    monkeypatch.setattr(setup, "spawn", _in_this_process)
    target = tmp_path / "result.json"
    arguments = (
        "store --quick --rounds 2 --keys 1000 --dim 16 --warmup 0.02 --only warm --only cold_rows --only small_cache"
    )
    subjects = set(ALWAYS) - {"floor_ahead"}  # for the case of floors
    options = [option for subject in sorted(subjects) for option in ("--subject", subject)]
    options += ["--dir", str(tmp_path / "stores"), "--json", str(target)]
    done = CliRunner().invoke(main, arguments.split() + options)
    assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    warm, small, cold = result["cases"]
    assert set(warm["subjects"]) == subjects - {"flat_hint_pread"}  # for cold cases
    for subject, found in warm["subjects"].items():
        assert len(found["metrics"]["us_per_key@64"]["values"]) == 2
        assert found["facts"]["rows_checked"] >= 4 * 64
        assert found["facts"]["page_cache_share"] == 1.0
        assert subject in done.output
    assert warm["subjects"]["memmap"]["metrics"]["us_per_key@64"]["ratio"]["median"] == 1.0
    assert small["subjects"]["rocks_zstd"]["facts"]["cache_bytes"] == 1000 * rows.row_bytes(16) // 10
    assert cold["subjects"]["flat_hint_pread"]["facts"]["index"] == "warm"
    assert "rocks_zstd" not in cold["subjects"], "its index is in the files of its rows"
    assert not (warm["errors"] or small["errors"] or cold["errors"])
    assert result["machine"]["cores"] >= 1
    assert any("2 round(s) only" in warning for warning in result["warnings"])


@needs_linux
def test_a_round_runs_in_a_fresh_process(source):
    peers.ensure_built("memmap", str(source.folder))
    arguments = {
        "subject": "memmap",
        "source": str(source.folder),
        "batch_sizes": [64],
        "lookups": 640,
        "max_calls": 10,
    }
    found = harness.spawn("bench.workloads.store_get:warm", {**arguments, "warmup_s": 0.0, "seed": 1})
    assert found["metrics"]["calls@64"] == 10
    assert found["metrics"]["us_per_key@64"] > 0


@needs_linux
@pytest.mark.parametrize("function", ["bench.workloads.store_files:opening", "bench.peers:ensure_built"])
def test_a_run_ends_with_an_error_that_names_the_subject_that_failed(tmp_path, monkeypatch, function):
    """Be it in a round or when its files are written; the others' numbers are saved all the same."""

    def spawn(name, arguments, *rest):
        if name == function and arguments["subject"] == "sqlite":
            raise harness.WorkerFailed("broke on purpose")
        return _in_this_process(name, arguments)

    monkeypatch.setattr(harness, "spawn", spawn)
    monkeypatch.setattr(setup, "spawn", spawn)
    target = tmp_path / "result.json"
    arguments = "store --quick --keys 300 --dim 16 --warmup 0.02 --only open --subject sqlite --subject memmap"
    options = ["--dir", str(tmp_path / "stores"), "--json", str(target)]
    done = CliRunner().invoke(main, arguments.split() + options)
    assert done.exit_code == 1
    assert "sqlite" in done.output.split("failed\n")[1] and "broke on purpose" in done.output
    assert set(json.loads(target.read_text())["cases"][0]["subjects"]) == {"memmap"}


def test_a_choice_of_cases_says_where_its_result_goes(tmp_path):
    """Else it would take the place of a file with more cases."""
    done = CliRunner().invoke(main, ["store", "--only", "open", "--dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "say with --json" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--keys", "40000"], ["--dim", "16"], ["--subject", "memmap"]])
@pytest.mark.parametrize("target", [None, "store_open.json"])
def test_another_size_or_choice_of_subjects_does_not_go_where_the_claims_are_read(tmp_path, option, target):
    where = ["--json", str(saved.RESULTS / target)] if target else []
    done = CliRunner().invoke(main, ["store", "--only", "open", "--dir", str(tmp_path), *option, *where])
    assert done.exit_code == 2
    assert "say with --json" in done.output
    assert not list(tmp_path.iterdir())


def test_an_unknown_case_is_wrong_use(tmp_path):
    done = CliRunner().invoke(
        main, ["store", "--only", "nothing", "--dir", str(tmp_path), "--json", str(tmp_path / "x")]
    )
    assert done.exit_code == 2
    assert "no case nothing; there are warm" in done.output


@pytest.mark.parametrize("make", [rows.decoder, rows.gatherer, rows.copier])
@pytest.mark.parametrize("codec", rows.CODECS)
def test_what_a_peer_decodes_with_is_made_once(monkeypatch, make, codec):
    """Not in each call, where it would be timed."""
    decode = make(codec, 16)
    monkeypatch.setattr(rows, "codec_from_spec", None)
    stored, out = np.ones((3, rows.row_bytes(16, codec)), np.uint8), np.empty((3, 16), np.float32)
    where = (np.array([0, 2, -1]),) if make is rows.gatherer else ()
    where = (np.array([0, len(stored[0]), -1]),) if make is rows.copier else where
    decode(stored.reshape(-1) if make is rows.copier else stored, *where, out)
    want = rows.decode(stored, codec)
    assert (out[:2] == want[:2]).all() and (out[2] == (0 if where else want[2])).all()


def test_cold_cases_ask_for_rows_of_their_own(tmp_path):
    made = {
        case.name: case
        for case in store.cases(
            Setup(root=tmp_path, quick=True, num_keys=1000, dim=16, only_cases=("cold_rows", "cold_all"))
        )
    }
    assert {name: case.subjects["ngramstore"]["case"] for name, case in made.items()} == {
        "cold_rows": "cold_rows", "cold_all": "cold_all",
    }  # fmt: skip
    assert set(made["cold_rows"].subjects) < set(made["cold_all"].subjects)
    assert not {"lmdb", "rocks_zstd"} & set(made["cold_rows"].subjects), "for these the two would be one measurement"
