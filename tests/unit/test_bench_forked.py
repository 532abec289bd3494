"""A quick run forks its workers from one process that has imported everything: each is a process of its own all the same."""

from __future__ import annotations

import os
import sys

import pytest

from bench import forked, harness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked workers are tested on Linux")


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forked, "PRELOAD", "bench.spread")  # light: nothing is measured here
        yield forked.Server(harness.ONE_THREAD)


def test_a_worker_is_a_process_of_its_own_with_the_servers_environment(server):
    pids = [server.run("os:getpid", {}, 60) for _ in range(2)]
    assert len({*pids, os.getpid()}) == 3
    before = dict(os.environ)
    assert server.run("os:getenv", {"key": "OMP_NUM_THREADS"}, 60) == "1"
    assert dict(os.environ) == before


def test_a_worker_that_fails_dies_or_hangs_is_told_apart(server):
    with pytest.raises(RuntimeError, match="exit 1: KeyError: 'no such subject'"):
        server.run("bench.peers:ensure_built", {"subject": "no such subject", "source_folder": "x"}, 60)
    with pytest.raises(RuntimeError, match="exit 7: no answer"):
        server.run("os:_exit", {"status": 7}, 60)
    with pytest.raises(TimeoutError, match="no answer after"):
        server.run("subprocess:call", {"args": ["sleep", "30"]}, 0.2)


def test_only_workers_that_share_the_servers_environment_are_forked(server, monkeypatch):
    asked = []
    monkeypatch.setattr(harness, "forked", server)
    monkeypatch.setattr(server, "run", lambda *args: asked.append("forked") or {})
    monkeypatch.setattr(harness, "fresh", lambda *args: asked.append("fresh") or {})
    harness.spawn("a:b", {}, harness.ONE_THREAD)
    harness.spawn("a:b", {}, {})
    harness.spawn("a:b", {})
    assert asked == ["forked", "fresh", "forked"]
