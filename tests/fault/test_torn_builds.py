"""An add that ends part way, on a full disk or by Ctrl-C: repeated, its rows would be there twice, so the build takes no more."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from helpers import rows_of, stamps_of
from interrupts import is_interrupted

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import DiskFull, StoreClosed

DIM = 4
FIRST, SECOND = range(10), range(10, 90)  # memory for 64 rows: the second add spills
WAYS = {"by number": {"addressing": "row"}, "by n-gram": {"max_n": 1}}
"""Options of a build."""


def begin(path: Path, way: str) -> ngs.Builder:
    return ngs.build(path, dim=DIM, codec="f32", memory_bytes=1, threads=1, **WAYS[way])


def add(builder: ngs.Builder, numbers: range) -> None:
    """A row for each number: the next ones, or those of its n-gram."""
    if builder.spec.is_ngram:
        builder.add([(number,) for number in numbers], rows_of(numbers, DIM))
    else:
        builder.add_rows(rows_of(numbers, DIM))


def assert_whole(path: Path, way: str) -> None:
    numbers = np.arange(SECOND.stop)
    with ngs.open(path) as store:
        rows = store.rows(numbers) if way == "by number" else store.get(numbers[:, None])[0]
        assert stamps_of(rows) == numbers.tolist()
        assert len(store) == len(numbers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_repeated", [True, False])
def test_a_build_takes_no_more_after_an_add_that_found_the_disk_full(quick_path, monkeypatch, way, is_repeated):
    """Neither that add once more, nor the end of the block, which would publish half of it; the next build works."""
    path = quick_path / "store"

    def observe(operation: str, file: Path) -> None:
        if operation == "write" and file.parent.name == "runs":
            raise OSError(errno.ENOSPC, "injected")

    def fill() -> None:
        with begin(path, way) as builder:
            add(builder, FIRST)
            with monkeypatch.context() as patch:
                patch.setattr(files, "observe", observe)
                with pytest.raises(DiskFull):
                    add(builder, SECOND)
            if is_repeated:
                add(builder, SECOND)

    with pytest.raises(StoreClosed, match="an earlier add failed part way") as caught:
        fill()
    assert str(path) in caught.value.message and caught.value.hint == "begin the build again"
    assert not path.exists()
    with begin(path, way) as builder:
        add(builder, FIRST)
        add(builder, SECOND)
    assert_whole(path, way)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_add_is_repeated_with_the_same_result_or_ends_its_build(quick_path, way):
    nth, has_come, ends = 0, True, {StoreClosed: 0, None: 0}
    while has_come:
        path = quick_path / str(nth)
        try:
            with begin(path, way) as builder:
                add(builder, FIRST)
                has_come = is_interrupted(
                    lambda builder=builder: add(builder, SECOND), nth, "ngramstore/store/building/"
                )
                if has_come:
                    add(builder, SECOND)
        except StoreClosed:
            ends[StoreClosed] += 1
            assert not path.exists()
        else:
            ends[None] += 1
            assert_whole(path, way)
        nth += 1
    assert ends[StoreClosed] > 10 and ends[None] > 3
