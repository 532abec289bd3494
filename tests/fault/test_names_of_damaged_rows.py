"""However a damaged row of a store addressed by number is met, its number is what the error gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import build_rows, some_rows

import ngramstore as ngs
from ngramstore.errors import DamagedRows
from ngramstore.hashing import row_ids, row_numbers

DAMAGED = 150


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 2**64 - 1)))
def test_numbers_come_back_from_their_ids(numbers):
    numbers_W = np.array(numbers, np.uint64)
    assert row_numbers(row_ids(numbers_W)).tolist() == numbers


@pytest.fixture(params=["none", "zstd"])
def path(tmp_path, request):
    """Rows 150 and 7 were changed; the changed row 150 is damaged."""
    rows = np.zeros_like(some_rows(200))
    path = build_rows(tmp_path / "store", rows, compression=request.param)
    with ngs.open(path, mode="rw") as store:
        store.put([DAMAGED, 7], rows[:2])
    (changed,) = path.glob("overlay-*.rows")
    for byte in range(changed.stat().st_size - 1, 0, -1):
        data = bytearray(changed.read_bytes())
        data[byte] ^= 1
        changed.write_bytes(data)
        with ngs.open(path) as store:
            try:
                store.rows([DAMAGED])
            except DamagedRows:
                return path
        data[byte] ^= 1
        changed.write_bytes(data)
    raise AssertionError("no byte of the row was found")


WAYS = {
    "rows": lambda path: ngs.open(path).rows([3, DAMAGED]),
    "items": lambda path: list(ngs.open(path).items()),
    "resident": lambda path: ngs.open(path, resident=True),
    "compact": lambda path: ngs.open(path, mode="rw").compact(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_change_is_named_by_its_number(path, way):
    with pytest.raises(DamagedRows) as error:
        WAYS[way](path)
    assert error.value.keys == [DAMAGED]
    assert "at byte" in error.value.message


def test_a_flush_that_meets_a_damaged_change_names_its_number(path):
    with ngs.open(path, mode="rw") as store:
        store.put([3], some_rows(1))
        with pytest.raises(DamagedRows) as error:
            store.flush()
        assert error.value.keys == [DAMAGED]
        with pytest.raises(DamagedRows):
            store.close()
