"""Every bit flip and every truncation of every file of a store: an error that names the file, or the very same answers.

Damaged copies are opened in a worker process: a signal or a hang there is a failure here, not the end of the test run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from damage import FILES, STORES, Damager, Ranges, answers
from helpers import build_ngrams, flip, rows_of

import ngramstore as ngs
from ngramstore.errors import DamagedRows, NgramStoreError
from ngramstore.store.repair.repair import repair

EVERY_FILE = [(kind, name) for kind, names in FILES.items() for name in names]


@pytest.fixture(scope="module")
def damager() -> Iterator[Damager]:
    damager = Damager()
    yield damager
    damager.close()


def some_flips(size: int, every: int) -> Ranges:
    """One bit each of some bytes; the first 160 and the last 16 all."""
    places = sorted({*range(min(160, size)), *range(max(0, size - 16), size), *range(0, size, every)})
    bits = [8 * place + (0, 3, 7, 5)[i % 4] for i, place in enumerate(places)]
    return [(bit, bit + 1, 1) for bit in bits]


def some_cuts(size: int, every: int) -> Ranges:
    lengths = {0, 1, 63, 64, 4095, 4096, 4097, size - 4, size - 1, *range(0, size, every)}
    return [(length, length + 1, 1) for length in lengths if 0 <= length < size]


@pytest.mark.parametrize("kind", STORES)
def test_what_a_damaged_store_is_asked_has_answers(quick_path, kind):
    """Else no flip could change one."""
    STORES[kind](quick_path / "store")
    good = answers(quick_path / "store")
    assert good.num_found > 40 and good.num_matched >= 3


@pytest.mark.parametrize("kind", STORES)
def test_flips_and_cuts_of_any_file_are_errors_or_change_nothing(quick_path, damager, kind):
    """A sample: small files nearly whole, of large ones every 401st byte and what stands at both ends."""
    path = quick_path / "store"
    STORES[kind](path)
    assert {file.name for file in path.iterdir()} == set(FILES[kind])
    refused = same = 0
    for name in FILES[kind]:
        size = (path / name).stat().st_size
        is_small = size < 4096
        outcome = damager.damage(
            path, name, flips=some_flips(size, 31 if is_small else 401), cuts=some_cuts(size, 257 if is_small else 2048)
        )
        assert outcome.wrong == [], name
        refused, same = refused + outcome.refused, same + outcome.same
    assert refused > 500
    assert same < refused


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "name"), EVERY_FILE, ids=lambda value: value.replace(" ", "-"))
def test_every_flip_and_every_cut_of_a_file_is_an_error_or_changes_nothing(quick_path, damager, capsys, kind, name):
    path = quick_path / "store"
    STORES[kind](path)
    size = (path / name).stat().st_size
    outcome = damager.damage(path, name, flips=[(0, 8 * size, 1)], cuts=[(0, size, 1)])
    with capsys.disabled():
        print(f"\n{kind}, {name}, {8 * size:,} bits and {size + 1:,} lengths: {outcome}")
    assert outcome.wrong == []
    assert outcome.refused + outcome.same == 8 * size + size + 1
    assert outcome.same <= outcome.refused or name == "LOCK"


@pytest.mark.parametrize("options", [{"tokens": False}, {"max_n": 1}], ids=str)
def test_stores_of_other_kinds_can_be_damaged_so_too(quick_path, damager, options):
    """Told what to ask: of a store without tokens no row is read that nobody asks for."""
    path, stored = quick_path / "store", {(1000 + i,): i for i in range(50)}
    build_ngrams(path, stored, dim=4, compression="none", **options)
    damage = {"flips": [(8 * 4096, 8 * 4096 + 64, 1)], "cuts": [(4096, 4100, 1)]}
    outcome = damager.damage(path, "base-000001.rows", **damage, ngrams=stored, text=range(1010, 1020))
    assert (outcome.wrong, outcome.refused, outcome.same) == ([], 64 + 4 + 1, 0)
    for asked in ({}, {"ngrams": stored}, {"text": range(1010, 1020)}):
        outcome = damager.damage(path, "base-000001.rows", **damage, **asked)
        assert "damage to rows would not be seen" in outcome.wrong[0]
    (path / "MANIFEST").write_bytes(b"nothing")
    outcome = damager.damage(path, "base-000001.rows", flips=[], cuts=[])
    assert "cannot be read before it is damaged" in outcome.wrong[0]


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_missing_or_foreign_file_is_named(quick_path, kind):
    path, other = quick_path / "store", quick_path / "other"
    STORES[kind](path)
    with ngs.open(path) as store:
        build_ngrams(other, {(1,): 5, (2,): 6}, dim=store.dim)
    for file in sorted(path.iterdir()):
        if file.name in ("LOCK", "MANIFEST"):
            continue
        data = file.read_bytes()
        file.unlink()
        with pytest.raises(NgramStoreError, match=f"(?s)missing.*{file.name}|{file.name}.*missing"):
            answers(path)
        foreign = other / file.name.replace("overlay-000002", "base-000001").replace("tombstones-000002", "base-000001")
        shutil.copyfile(foreign, file)
        with pytest.raises(NgramStoreError, match=file.name):
            answers(path)
        file.write_bytes(data)


def test_swapped_rows_are_noticed(quick_path):
    """Each row with its checksum is whole, but in the place of another: the checksum is seeded with the ID."""
    path = quick_path / "store"
    STORES["raw"](path)
    file = path / "base-000001.rows"
    data = bytearray(file.read_bytes())
    stride = 6 * 4 + 4
    first, second = slice(4096, 4096 + stride), slice(4096 + stride, 4096 + 2 * stride)
    data[first], data[second] = data[second], data[first]
    file.write_bytes(data)
    with pytest.raises(DamagedRows, match=file.name):
        answers(path)


@pytest.mark.parametrize("on_damage", ["raise", "missing"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_one_damaged_row_does_not_take_down_its_batch(quick_path, on_damage, compression):
    path = quick_path / "store"
    stored = {(i,): i for i in range(100)}
    build_ngrams(path, stored, dim=40, compression=compression)
    with ngs.open(path) as store:
        layer = store._view.base
        places, _ = layer.places(0, 100)
        order = [ngram for ngram, _ in store.items()]
        ids = layer.seeds(0, 100).tolist()
    bad = {order[7], order[63], order[64]}
    for rank in (7, 63, 64):
        flip(path / "base-000001.rows", int(places[rank]) + 3)
    for options in ({"cache_bytes": 0}, {"cache_bytes": 3 * 200}, {}):
        with ngs.open(path, on_damage=on_damage, **options) as store:
            keys = list(stored)
            rows = np.full((100, 40), 7, np.float32)
            for _ in range(2):
                if on_damage == "raise":
                    with pytest.raises(DamagedRows) as caught:
                        store.get(keys, out=rows)
                    assert sorted(caught.value.keys) == [ids[7], ids[63], ids[64]]
                    with pytest.raises(DamagedRows) as caught:
                        store.get([order[63]] * 20)
                    assert caught.value.keys == [ids[63]]  # once, however often it was asked for
                    assert "more rows" not in str(caught.value)
                    assert "base-000001.rows" in str(caught.value)
                else:
                    _, found = store.get(keys, out=rows)
                    assert {keys[i] for i in np.flatnonzero(~found)} == bad
                good = np.array([key not in bad for key in keys])
                np.testing.assert_array_equal(rows[good], rows_of(np.arange(100), 40)[good])
                assert not rows[~good].any()


def test_a_damaged_replaced_row_is_named_by_its_number(quick_path):
    path = quick_path / "store"
    with ngs.build(path, dim=4, addressing="row", codec="f32", compression="none") as builder:
        builder.add_rows(rows_of(range(100), 4))
    with ngs.open(path, mode="rw") as writer:
        writer.put([77], rows_of([500], 4))
    file = path / "overlay-000002.rows"
    flip(file, 4096)
    with ngs.open(path) as store, pytest.raises(DamagedRows, match=file.name) as caught:
        store.rows([5, 77, 0, 77])
    assert caught.value.keys == [77]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_resident_store_treats_damage_as_it_was_asked_to(quick_path, compression):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)}, dim=40, compression=compression)
    with ngs.open(path, mode="rw") as writer:
        writer.put([(200,)], rows_of([200], 40))
    with ngs.open(path) as store:
        place = int(store._view.base.places(7, 1)[0][0])
        order = [ngram for ngram, _ in store.items() if ngram != (200,)]
    flip(path / "base-000001.rows", place + 3)
    with pytest.raises(DamagedRows, match="on_damage"):
        ngs.open(path, resident=True)
    with ngs.open(path, resident=True, on_damage="missing") as store:
        rows, found = store.get([*order, (200,)])
        assert np.flatnonzero(~found).tolist() == [7]
        assert not rows[7].any()
        stamps = [ngram[0] for ngram in (*order, (200,))]
        np.testing.assert_array_equal(rows[found], rows_of(stamps, 40)[found])
        with ngs.open(path, mode="rw") as writer:
            writer.put([(201,)], rows_of([201], 40))
        assert store.refresh()  # the layer that is kept in memory has a damaged row still
        assert np.flatnonzero(~store.get([*order, (201,)])[1]).tolist() == [7]
        repair(path)
        with ngs.open(path, mode="rw") as writer:
            writer.compact()
        assert store.refresh() and not len(store._source.resident.damaged)
        assert store._current.few is not None  # and is as fast as any other
        assert store.get([order[0]])[1].all() and not store.get([order[7]])[1].any()


@pytest.mark.parametrize("lock_index", [False, True])
def test_a_rows_file_cut_under_an_open_reader_is_an_error(quick_path, lock_index):
    """Rows are read, never mapped: no signal. (Of the index see the test below.)"""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=8)
    with ngs.open(path, cache_bytes=0, lock_index=lock_index) as store:
        assert store.get([(5,)])[1].all()
        os.truncate(path / "base-000001.rows", 4096 + 36 * 20)
        with pytest.raises(DamagedRows, match=r"base-000001\.rows.*ends inside"):
            store.get([(i,) for i in range(200)])
        os.truncate(path / "base-000001.tokens", 5000)
        with pytest.raises(Exception, match=r"base-000001\.(rows|tokens)"):
            list(store.items())


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_an_index_that_came_later_is_locked_too(quick_path, mode):
    """After a refresh, and after a publication of one's own."""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=8)
    with ngs.open(path, mode=mode, cache_bytes=0, lock_index=True) as store:
        if mode == "rw":
            store.put([(500,)], rows_of([500], 8))
            store.flush()
        else:
            with ngs.open(path, mode="rw") as writer:
                writer.put([(500,)], rows_of([500], 8))
            assert store.refresh()
        os.truncate(path / "overlay-000002.index", 100)
        rows, found = store.get([(500,), (7,)])
        assert found.all()
        np.testing.assert_array_equal(rows, rows_of([500, 7], 8))


def test_a_locked_index_survives_a_cut_of_its_file(quick_path):
    """A mapped index is at the mercy of whoever shortens its file in place (SIGBUS); lock_index=True reads it once."""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=8)
    with ngs.open(path, cache_bytes=0, lock_index=True) as store:
        os.truncate(path / "base-000001.index", 100)
        rows, found = store.get([(i,) for i in range(200)])
        assert found.all()
        np.testing.assert_array_equal(rows, rows_of(np.arange(200), 8))


@pytest.mark.parametrize("on_damage", ["raise", "missing"])
@pytest.mark.parametrize("options", [{}, {"cache_bytes": 0}], ids=str)
def test_a_damaged_row_is_told_at_its_place_among_unpublished_changes(quick_path, on_damage, options):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)}, dim=40, compression="none")
    with ngs.open(path) as store:
        base = store._view.base
        place, identity = int(base.places(7, 1)[0][0]), int(base.seeds(7, 1)[0])
        order = [ngram for ngram, _ in store.items()]
    flip(path / "base-000001.rows", place + 3)
    keys, stamps = [(200,), *order], [200, 300, *(ngram[0] for ngram in order[1:])]
    with ngs.open(path, mode="rw", on_damage=on_damage, **options) as store:
        store.put([(200,), order[0]], rows_of([200, 300], 40))
        for _ in range(2):
            if on_damage == "raise":
                with pytest.raises(DamagedRows) as caught:
                    store.get(keys)
                assert caught.value.keys == [identity]
                continue
            rows, found = store.get(keys)
            assert np.flatnonzero(~found).tolist() == [8]  # order[7]
            assert not rows[8].any()
            np.testing.assert_array_equal(rows[found], rows_of(stamps, 40)[found])
