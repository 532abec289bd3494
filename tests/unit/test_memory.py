"""What this process may count on: the default budget of a build is a quarter of what is free, never more than the container's."""

from __future__ import annotations

import os

import pytest

from ngramstore import system_memory as memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def test_a_quarter_of_what_is_available(system):
    (system / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 16777216 kB\n")
    assert memory.default_memory_bytes() == 4 << 30


def test_the_limit_of_a_container_counts(system):
    (system / "meminfo").write_text("MemAvailable: 16777216 kB\n")
    (system / "memory.max").write_text(f"{6 << 30}\n")
    (system / "memory.current").write_text(f"{2 << 30}\n")
    assert memory.default_memory_bytes() == 1 << 30


def test_no_limit_is_no_limit(system):
    (system / "meminfo").write_text("MemAvailable: 16777216 kB\n")
    (system / "memory.max").write_text("max\n")
    (system / "memory.current").write_text("1\n")
    assert memory.default_memory_bytes() == 4 << 30


def test_there_is_a_least_budget(system):
    (system / "meminfo").write_text("MemAvailable: 1000 kB\n")
    assert memory.default_memory_bytes() == 256 << 20


def test_a_system_that_says_nothing_gives_a_gibibyte(system):
    assert memory.default_memory_bytes() == 1 << 30


def test_page_cache_counts_as_free(system):
    (system / "meminfo").write_text("MemAvailable: 16777216 kB\n")
    (system / "memory.max").write_text(f"{6 << 30}\n")
    (system / "memory.current").write_text(f"{2 << 30}\n")
    (system / "memory.stat").write_text(f"anon 5\ninactive_file {2 << 30}\n")
    assert memory.default_memory_bytes() == 3 << 29


@pytest.mark.parametrize("where", ["", "app.slice", "app.slice/build.service"])
def test_the_limit_of_any_group_around_the_process_counts(system, where):
    (system / "meminfo").write_text("MemAvailable: 16777216 kB\n")
    (system / "own").write_text("0::/app.slice/build.service\n")
    group = system / where
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{4 << 30}\n")
    (group / "memory.current").write_text("0\n")
    assert memory.default_memory_bytes() == 1 << 30


def test_a_limit_of_the_first_kind_of_groups_counts(system):
    (system / "meminfo").write_text("MemAvailable: 16777216 kB\n")
    (system / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/x/y\n0::/\n")
    group = system / "memory" / "x"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{5 << 30}\n")
    (group / "memory.usage_in_bytes").write_text(f"{2 << 30}\n")
    (group / "memory.stat").write_text(f"cache 9\ntotal_inactive_file {1 << 30}\n")
    assert memory.default_memory_bytes() == 1 << 30


@pytest.mark.parametrize(("limit", "known"), [(f"{5 << 20}\n", 5 << 20), ("max\n", None)])
def test_the_limit_is_the_narrowest_groups_or_the_machines(system, limit, known):
    (system / "memory.max").write_text(limit)
    memory.limit_bytes.cache_clear()
    try:
        assert memory.limit_bytes() == (known or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    finally:
        memory.limit_bytes.cache_clear()
