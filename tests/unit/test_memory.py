"""The default budget of a build: a quarter of what is free, never more than the container's."""

from __future__ import annotations

import pytest

from ngramstore.store.building import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
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
