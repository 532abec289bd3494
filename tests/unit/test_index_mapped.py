"""An index file is mapped, in huge pages where the memory that we may use holds four of it."""

from __future__ import annotations

import mmap
from types import SimpleNamespace

import numpy as np
import pytest

from ngramstore.layout import PAGE_BYTES
from ngramstore.store.layers import index as index_module
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.index import Index
from ngramstore.store.layers.index_builder import IndexBuilder
from ngramstore.store.layers.index_plan import IndexPlan

STAMP = FileStamp(bytes(16), 1)
IDS = np.unique(np.random.default_rng(0).integers(0, 1 << 64, 3000, np.uint64, endpoint=False))
HUGE = 14


class Map(mmap.mmap):
    """A map that notes what is asked of the system, which refuses it if `refusal` says so."""

    asked: list[int]
    refusal: OSError | None = None

    def madvise(self, option: int) -> None:
        self.asked.append(option)
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """What is asked of the system for the maps of the test, on a system that knows huge pages."""
    monkeypatch.setattr(Map, "asked", [], raising=False)
    known = {"mmap": Map, "PROT_READ": mmap.PROT_READ, "PAGESIZE": mmap.PAGESIZE, "MADV_HUGEPAGE": HUGE}
    monkeypatch.setattr(index_module, "mmap", SimpleNamespace(**known))
    return Map.asked


def have_memory(monkeypatch, num_bytes: int) -> None:
    """Let us have so many bytes."""
    monkeypatch.setattr(index_module, "limit_bytes", lambda: num_bytes)


def opened(directory) -> Index:
    plan = IndexPlan(len(IDS), is_keyed=True, is_sized=False)
    builder = IndexBuilder(plan)
    builder.add(IDS)
    entry = builder.write(directory / "base-000001.index", STAMP, data_at=PAGE_BYTES)
    index, _ = Index.open(directory, entry, STAMP, is_keyed=True, is_sized=False, lock=False)
    return index


@pytest.mark.parametrize(("spare", "wanted"), [(0, [HUGE]), (-1, [])])
def test_huge_pages_are_asked_for_where_memory_holds_four_of_the_file(tmp_path, monkeypatch, asked, spare, wanted):
    size = IndexPlan(len(IDS), is_keyed=True, is_sized=False).file_bytes
    have_memory(monkeypatch, 4 * size + spare)
    assert (opened(tmp_path).ids() == IDS).all()
    assert asked == wanted


def test_a_system_that_refuses_huge_pages_gives_others(tmp_path, monkeypatch, asked):
    have_memory(monkeypatch, 1 << 40)
    monkeypatch.setattr(Map, "refusal", OSError(22, "Invalid argument"))
    assert (opened(tmp_path).ids() == IDS).all()
    assert asked == [HUGE]


def test_a_system_that_knows_no_huge_pages_is_not_asked(tmp_path, monkeypatch, asked):
    have_memory(monkeypatch, 1 << 40)
    monkeypatch.delattr(index_module.mmap, "MADV_HUGEPAGE")
    assert (opened(tmp_path).ids() == IDS).all()
    assert asked == []
