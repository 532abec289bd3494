"""`python -m bench all`: jobs one after the other, whole results only, and every target has a job that measures it."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner

from bench import machine, suite
from bench.setup import PREFIX
from bench.targets import CLAIMS

TRAINS_FOR_HOURS = {"quality", "codecs"}
SAVES = "import json, sys; json.dump({{'value': {}, 'machine': {{'commit': 'abc'}}}}, open(sys.argv[-1], 'w'))"


LISTS = "import json, os, sys; print(json.dumps({'was': os.listdir(sys.argv[2])})); open(sys.argv[2] + '/left', 'w')"


def _job(name: str, code: str, *more: str, group: str = "") -> suite.Job:
    return suite.Job(name, ("-c", code.replace("{", "{{").replace("}", "}}"), *more), 1, group)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `all` with these jobs -> (exit status, output, result of a job by name)."""
    monkeypatch.setattr(machine, "describe", lambda: {"commit": "abc", "load": [0.0]})

    def _run(jobs, *options, needed_bytes=0):
        monkeypatch.setattr(suite, "JOBS", tuple(jobs))
        monkeypatch.setattr(suite, "_NEEDED_BYTES", needed_bytes)
        places = ["--dir", str(tmp_path / "kept"), "--results", str(tmp_path / "results")]
        done = CliRunner().invoke(suite.main, [*places, *options])
        return done.exit_code, done.output, lambda name: json.loads((tmp_path / "results" / f"{name}.json").read_text())

    return _run


def test_every_job_leaves_its_result(run):
    prints = _job("prints", "print('{\"value\": 2}')", "--json")
    status, _, result = run([_job("saves", SAVES.format(1)), prints])
    assert status == 0
    assert result("saves")["value"] == 1
    assert result("prints") == {"machine": {"commit": "abc", "load": [0.0]}, "value": 2}


def test_a_job_that_fails_is_named_and_leaves_the_old_result_and_the_other_jobs(run, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fails.json").write_text('{"value": 0}')
    fails = _job("fails", SAVES.format(9) + "; print('the reason'); sys.exit(3)")
    status, output, result = run([fails, _job("after", SAVES.format(1))])
    assert status == 1
    assert "1 of 2 failed: fails" in output
    assert result("fails") == {"value": 0}
    assert result("after")["value"] == 1
    assert "the reason" in (tmp_path / "kept" / f"{PREFIX}fails.log").read_text()


def test_a_disk_that_cannot_hold_all_is_told_before_anything_runs(run):
    status, output, result = run([_job("first", SAVES.format(1))], needed_bytes=1 << 60)
    assert status == 1 and "running all benchmarks needs about" in output
    with pytest.raises(FileNotFoundError):
        result("first")
    assert run([_job("journal", SAVES.format(1))], "--only", "journal", needed_bytes=1 << 60)[0] == 0


def test_resume_leaves_out_what_this_commit_has_measured(run, monkeypatch):
    run([_job("first", SAVES.format(1))])
    jobs = [_job("first", SAVES.format(5)), _job("second", SAVES.format(2))]
    _, _, result = run(jobs, "--resume")
    assert (result("first")["value"], result("second")["value"]) == (1, 2)
    monkeypatch.setattr(machine, "describe", lambda: {"commit": "def", "load": [0.0]})
    _, _, result = run(jobs, "--resume")
    assert result("first")["value"] == 5


def test_a_folder_of_a_run_alone_is_empty_and_goes_with_it(run, tmp_path):
    for _ in range(2):
        _, _, result = run([_job("demo", LISTS, "--json", "{fresh}")])
        assert result("demo")["was"] == []
    assert not [path for path in (tmp_path / "kept").iterdir() if path.is_dir()]


def test_what_a_group_shares_goes_with_its_last_job(run, tmp_path):
    shared = ("--json", "{dir}")
    jobs = [
        _job("one", LISTS, *shared, group="both"),
        _job("two", LISTS, *shared, group="both"),
        _job("three", LISTS, *shared),
    ]
    for options, left in (("", []), ("--keep", ["both", "three"])):
        _, _, result = run(jobs, *options.split())
        assert [result(name)["was"] for name in ("one", "two", "three")] == [[], ["left"], []]
        folders = sorted(path.name for path in (tmp_path / "kept").iterdir() if path.is_dir())
        assert folders == [f"{PREFIX}{name}" for name in left]


def test_what_others_have_in_the_folder_stays(run, tmp_path):
    """The README's example builds `store/`, and `--dir .` is a natural thing to say."""
    kept = tmp_path / "kept"
    for path in (kept / "store" / "MANIFEST", kept / "store.json", kept / "store.log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    status, _, result = run([_job("store", SAVES.format(1), group="store")])
    assert status == 0 and result("store")["value"] == 1
    assert [(kept / name).read_text() for name in ("store/MANIFEST", "store.json", "store.log")] == ["mine"] * 3
    assert [path.name for path in kept.iterdir() if path.is_dir()] == ["store"]


def test_groups_are_together():
    """Else sources would be removed between two jobs that read them."""
    groups = [job.group or job.name for job in suite.JOBS]
    assert [group for group, _ in itertools.groupby(groups)] == list(dict.fromkeys(groups))


def test_the_plan_runs_nothing(run, tmp_path):
    status, output, _ = run([_job("one", "raise SystemExit(1)")], "--plan")
    assert status == 0
    assert "one.json" in output
    assert "1 min in all" in output
    assert not (tmp_path / "kept").exists()


def test_every_target_is_measured_by_a_job():
    """Else `all` would leave a number of the page to some earlier version."""
    jobs = {job.name: job.command for job in suite.JOBS}
    for claim in CLAIMS:
        workload, _, case = claim.file_of.partition("/")
        if case:
            commands = [command for command in jobs.values() if command[:3] == ("-m", "bench", workload)]
            full = [command for command in commands if "--quick" not in command]
            assert any(case in command or "--only" not in command for command in full), claim.file_of
        else:
            assert claim.file_of in {*jobs, *TRAINS_FOR_HOURS}, claim.file_of


def test_names_of_jobs_are_those_of_the_results():
    """A job that is renamed must not leave its old file beside the new one."""
    names = {job.name for job in suite.JOBS}
    trained = {"quality", "quality_rate", "quality_search", "quality_start", "codecs"}
    saved = {path.stem for path in suite.RESULTS.glob("*.json")}
    assert saved <= names | trained
    assert len(names) == len(suite.JOBS)
