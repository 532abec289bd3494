"""What is asked of the bench is measured or refused, and a run removes nothing but what it made."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from bench import peers, setup
from bench.__main__ import main
from bench.harness import Case
from bench.setup import Offer, Refused, Setup
from bench.workloads import paper, store, store_parts, tables_engramdb


def _refused(tmp_path, arguments):
    """What a run says that is refused and has written nothing."""
    root, target = tmp_path / "stores", tmp_path / "result.json"
    done = CliRunner().invoke(main, [*arguments.split(), "--dir", str(root), "--json", str(target)])
    assert done.exit_code == 2, done.output
    assert not target.exists() and "saved" not in done.output
    assert not (root.exists() and list(root.iterdir()))
    return done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("journal --keys 1000", "--keys does not change append, read"),
        ("journal --dim 64 --only read", "--dim does not change read"),
        ("scale --subject memmap", "--subject does not change build, open, zipf"),
        ("decode --dim 64", "--dim does not change step_10M"),
        ("decode --subject batch_1", "--subject does not change prefill"),
        ("store --only disk --dim 64", "--dim does not change disk"),
        ("store --only open_large --large --keys 1000", "--keys does not change open_large"),
        ("tables --only engramdb_fetch_160 --keys 1000", "--keys does not change engramdb_fetch_160"),
        ("store --only open_large", "open_large: only with --large"),
        ("store --only warm --large", "--large changes none of these cases"),
        ("store --only warm --subject nobody --subject memmap", "no subject nobody; there are ngramstore, "),
        ("store --only match --subject redis", "no subject redis; there are ngramstore, ngramstore_exact"),
    ],
)
def test_what_would_not_be_measured_is_refused(tmp_path, arguments, said):
    if arguments.startswith("decode"):
        pytest.importorskip("torch")
    assert said in _refused(tmp_path, arguments)


def test_a_case_whose_package_is_missing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_engramdb, "find_spec", lambda name: None)
    assert "engramdb left out: it is not installed" in _refused(tmp_path, "tables --only engramdb_fetch_160")


def test_a_case_that_no_subject_is_left_of_is_refused(tmp_path):
    """LMDB's index lies among its rows, so cold rows under a warm index are nothing that it has."""
    arguments = "store --quick --keys 300 --dim 16 --only cold_rows --subject lmdb"
    done = CliRunner().invoke(
        main, [*arguments.split(), "--dir", str(tmp_path / "stores"), "--json", str(tmp_path / "result.json")]
    )
    assert done.exit_code == 2
    assert "no case is left to measure" in done.output and "cold_rows left out" in done.output


def _offer(name, *subjects):
    def make(asked):
        chosen = {subject: {"subject": subject} for subject in asked.asked(subjects)}
        return Case(name=name, title=name, function="", subjects=chosen, baseline="x", headline=())

    return Offer(make, subjects)


def test_a_case_without_the_subjects_asked_for_is_left_out_with_a_warning(tmp_path):
    asked = Setup(root=tmp_path, only_subjects=("x",))
    (case,) = asked.cases({"both": _offer("both", "x", "y"), "other": _offer("other", "y")})
    assert (case.name, set(case.subjects)) == ("both", {"x"})
    assert asked.warnings == ["other left out: it has none of the subjects asked for"]


def test_large_cases_are_left_out_of_a_run_of_all_and_come_with_large(tmp_path):
    offers = {"small": _offer("small", "x"), "large": Offer(_offer("large", "x").make, ("x",), is_large=True)}
    names = {large: [case.name for case in Setup(root=tmp_path, large=large).cases(offers)] for large in (False, True)}
    assert names == {False: ["small"], True: ["small", "large"]}
    with pytest.raises(Refused, match="only with --large"):
        Setup(root=tmp_path, only_cases=("large",)).cases(offers)


@pytest.mark.skipif(sys.platform != "linux", reason="the bench is for Linux")
@pytest.mark.parametrize("part", ["get_one", "tail_one", "cached_rows"])
def test_a_part_that_asks_a_store_finds_it_in_a_fresh_folder(tmp_path, monkeypatch, part):
    """Parts are this case's subjects, so --subject does not name the store that they ask."""
    monkeypatch.setattr(setup, "spawn", lambda function, arguments: peers.ensure_built(**arguments))
    asked = Setup(root=tmp_path, quick=True, num_keys=300, dim=16, only_cases=("parts",), only_subjects=(part,))
    (case,) = store.cases(asked)
    assert set(case.subjects) == {part}
    assert store_parts.part(**{**case.subjects[part], "repeats": 5}, seed=1)["metrics"]["ns"] > 0


@pytest.mark.parametrize("workload", [store, paper])
def test_what_others_have_in_the_folder_stays(tmp_path, workload):
    for name in ("scratch", "store"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    run = Setup(root=tmp_path)
    (run.scratch / "build-memmap").mkdir(parents=True)
    workload.clean(run)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "mine", "scratch", "store"]
