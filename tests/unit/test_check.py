"""`verify` finds every change of a byte and is not stopped by any; `repair` keeps every good row and says what it lost."""

from __future__ import annotations

import errno
import io
import mmap
import os
import random
import re
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from damage import STORES
from helpers import all_ngrams, build_ngrams, flip, published, reboot, rows_of, stamps_of
from store_cases import build_rows

import ngramstore as ngs
from ngramstore.errors import (
    DamagedStore,
    FormatError,
    IncompleteStore,
    NotAStore,
    StaleStore,
    UnsupportedVersion,
    UsageError,
    WriterLocked,
)
from ngramstore.hashing import checksum, ngram_ids
from ngramstore.kernels.native.index import RANK_MASK
from ngramstore.store.journal import reading as journal_reading
from ngramstore.store.layers.manifest import read_manifest
from ngramstore.store.repair import journal as journal_salvage
from ngramstore.store.repair import repair as repair_module
from ngramstore.store.repair import worn
from ngramstore.store.repair.check import examine, verify
from ngramstore.store.repair.repair import repair
from ngramstore.store.repair.worn_index import WornIndex

NGRAMS = all_ngrams(3, (0, 1, 2, 2**32 - 1))
KINDS = {"plain": {}, "zstd": {"compression": "zstd", "dim": 64}, "untold": {"tokens": False}}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """A store of each kind, with an overlay and tombstones."""
    root = tmp_path_factory.mktemp("stores")
    for kind, options in KINDS.items():
        dim = options.get("dim", 4)
        build_ngrams(root / kind, dict(zip(NGRAMS, range(len(NGRAMS)), strict=True)), **options)
        with ngs.open(root / kind, mode="rw") as store:
            store.put(NGRAMS[:5], rows_of(range(1000, 1005), dim))
            store.delete(NGRAMS[7:10])
    build_rows(root / "rows", rows_of(range(200), 4))
    with ngs.open(root / "rows", mode="rw") as store:
        store.put([3, 4], rows_of([1003, 1004], 4))
    return root


@pytest.fixture
def copy(stores, quick_path):
    def make(kind: str) -> Path:
        shutil.copytree(stores / kind, quick_path / kind)
        return quick_path / kind

    return make


def model_of(path: Path) -> dict:
    """N-gram -> stamp, asked for one by one (a store without tokens lists nothing)."""
    with ngs.open(path, cache_bytes=0) as store:
        rows, found = store.get(NGRAMS)
        there = [ngram for ngram, is_there in zip(NGRAMS, found, strict=True) if is_there]
        return dict(zip(there, stamps_of(rows[found]), strict=True))


def overwrite(path: Path, at: int, value: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [*KINDS, "rows"])
def test_a_good_store_has_no_faults_and_is_not_touched_by_repair(copy, kind):
    path = copy(kind)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    report = examine(path)
    assert (report.faults, report.notes) == ([], [])
    assert not repair(path).is_damaged
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.parametrize("kind", [*KINDS, "rows"])
def test_a_flip_anywhere_is_found_in_its_file(copy, kind):
    path, rng = copy(kind), random.Random(7)
    for file in sorted(path.glob("*[A-Z-]*")):
        data = file.read_bytes()
        for bit in rng.sample(range(8 * len(data)), 8) if file.name != "LOCK" else []:
            trial = bytearray(data)
            trial[bit >> 3] ^= 1 << (bit & 7)
            file.write_bytes(trial)
            assert file.name in {fault.file for fault in verify(path)}, (file.name, bit)
        file.write_bytes(data)


def test_a_fault_names_the_byte_and_all_faults_are_listed(copy):
    path = copy("plain")
    row_bytes = 4 * 4 + 4
    flip(path / "base-000001.rows", 4096 + 10 * row_bytes + 2)
    flip(path / "base-000001.rows", 4096 + 70 * row_bytes + 2)
    flip(path / "base-000001.tokens", 4096)
    faults = [str(fault) for fault in verify(path)]
    assert len(faults) == 3
    assert any(line.startswith(f"base-000001.rows at byte {4096 + 10 * row_bytes}: row 10 ") for line in faults)
    assert any(line.startswith(f"base-000001.rows at byte {4096 + 70 * row_bytes}: row 70 ") for line in faults)
    assert any(line.startswith("base-000001.tokens at byte 4096: block 0 ") for line in faults)


@pytest.mark.parametrize("kind", [*KINDS, "rows"])
def test_cut_and_missing_files_are_faults_and_the_rest_is_still_read(copy, kind):
    path = copy(kind)
    for file in sorted(path.glob("*-*")):
        data = file.read_bytes()
        for size in (0, 4097, len(data) - 1):
            file.write_bytes(data[:size])
            report = examine(path)
            assert file.name in {fault.file for fault in report.faults}
            assert report.num_rows >= (200 if kind == "rows" else len(NGRAMS))
        file.unlink()
        assert f"{file.name}: the file is missing" in map(str, verify(path))
        file.write_bytes(data)


def test_a_manifest_beyond_reading_is_a_fault_and_repair_says_what_is_needed(copy):
    path = copy("plain")
    overwrite(path / "MANIFEST", 60, b"##")
    faults = verify(path)
    assert [fault.file for fault in faults] == ["MANIFEST"]
    with pytest.raises(DamagedStore, match="base-000001") as caught:
        repair(path)
    assert "backup" in caught.value.hint


def test_what_is_no_store_is_an_error_and_not_a_fault(quick_path):
    with pytest.raises(NotAStore):
        verify(quick_path / "nowhere")
    (quick_path / "BUILDING").touch()
    with pytest.raises(IncompleteStore):
        verify(quick_path)


def test_counts_of_the_manifest_are_compared_with_the_rows(copy):
    from dataclasses import replace

    from ngramstore.store.layers.manifest import read_manifest

    path = copy("plain")
    manifest = read_manifest(path)
    replace(manifest, num_rows=manifest.num_rows + 1).write(path)
    assert "rows, there are" in str(verify(path)[0])
    counts = (0, *manifest.length_counts[2:], 1)
    replace(manifest, length_counts=counts).write(path)
    assert "n-grams by length" in str(verify(path)[0])


def test_strangers_are_notes_and_changes_in_the_journal_are_counted(copy):
    path = copy("plain")
    (path / "notes.txt").write_text("mine")
    store = ngs.open(path, mode="rw")
    store.put([(5, 5)], rows_of([5], 4))
    report = examine(path)
    assert report.faults == []
    assert any("notes.txt" in note for note in report.notes)
    assert any("was not checked" in note for note in report.notes)
    store._shut()  # as a process that dies: the change stays in the journal
    assert any("holds 1 changes" in note for note in examine(path).notes)


@pytest.mark.parametrize("kind", KINDS)
def test_repair_loses_one_row_for_a_flip_in_a_row_and_none_for_one_elsewhere(copy, quick_path, kind):
    path, rng = copy(kind), random.Random(11)
    wanted = model_of(path)
    for file in sorted(path.glob("*-*")):
        data = file.read_bytes()
        for bit in rng.sample(range(8 * len(data)), 4):
            trial = bytearray(data)
            trial[bit >> 3] ^= 1 << (bit & 7)
            file.write_bytes(trial)
            out = quick_path / "out"
            report = repair(path, out)
            assert verify(out) == []
            saved = model_of(out)
            assert saved.items() <= wanted.items()
            assert len(wanted) - len(saved) == len(report.lost) <= (file.suffix == ".rows"), (
                file.name,
                bit,
                report.lost,
            )
            shutil.rmtree(out)
        file.write_bytes(data)


def test_many_damaged_bytes_lose_only_what_no_copy_vouches_for(copy):
    """The whole index is gone, a token block, and two rows: IDs come back from the tokens."""
    path = copy("plain")
    wanted = model_of(path)
    (path / "base-000001.index").write_bytes(b"\xaa" * (path / "base-000001.index").stat().st_size)
    overwrite(path / "base-000001.rows", 4096 + 20 * 3 + 1, b"\0\0\0")
    overwrite(path / "base-000001.rows", 4096 + 20 * 50 + 1, b"\0\0\0")
    report = repair(path)
    assert verify(path) == []
    saved = published(path)
    assert len(report.lost) == 2
    assert saved.items() <= wanted.items()
    assert len(saved) == len(wanted) - 2


def test_a_token_block_loses_only_the_ngrams_that_were_overwritten(quick_path):
    wanted = {(200 + i, 1000 + 7 * i): i for i in range(100)}
    build_ngrams(quick_path / "store", wanted)
    overwrite(quick_path / "store" / "base-000001.tokens", 4096 + 100, b"\x07" * 8)
    report = repair(quick_path / "store")
    saved = published(quick_path / "store")
    assert saved.items() <= wanted.items()
    assert 2 <= len(wanted) - len(saved) == report.num_lost <= 3  # an n-gram takes five bytes here


def test_lengths_of_compressed_rows_come_back_from_their_checksums(copy):
    path = copy("zstd")
    wanted = model_of(path)
    index = path / "base-000001.index"
    from ngramstore.store.layers.index_plan import IndexPlan

    at, size = IndexPlan(len(NGRAMS), is_keyed=True, is_sized=True).sections()["lengths"]
    overwrite(index, at, bytes(size))
    at, size = IndexPlan(len(NGRAMS), is_keyed=True, is_sized=True).sections()["offsets"]
    overwrite(index, at, b"\xff" * size)
    assert repair(path).lost == []
    assert model_of(path) == wanted


def test_a_lost_change_takes_the_older_value_with_it(copy):
    path = copy("plain")
    wanted = model_of(path)
    overwrite(path / "overlay-000002.rows", 4096 + 2, b"\1\2\3")
    report = repair(path)
    saved = model_of(path)
    (lost,) = wanted.keys() - saved.keys()
    assert lost in NGRAMS[:5]
    assert saved.items() <= wanted.items()
    assert len(report.lost) == 1 and str(lost) in report.lost[0]


@pytest.mark.parametrize(("lost", "lengths", "is_closed"), [((2,), [0, 1, 3], False), ((3, 1, 2), [0, 1, 2], True)])
def test_a_repair_that_loses_an_ending_lets_no_match_stop_there(quick_path, lost, lengths, is_closed):
    path = quick_path / "store"
    build_ngrams(path, {(1,): 1, (2,): 2, (1, 2): 3, (3, 1, 2): 4}, compression="none")
    with ngs.open(path) as store:
        assert store.stats()["suffix_closed"]
        rank = [ngram for ngram, _ in store.items()].index(lost)
    flip(path / "base-000001.rows", 4096 + 20 * rank)
    assert repair(path).num_lost == 1
    with ngs.open(path) as store:
        assert store.lookup([3, 1, 2]).length.tolist() == lengths
        assert store.stats()["suffix_closed"] == is_closed
    assert verify(path) == []


def test_a_dry_run_says_the_same_and_writes_nothing(copy):
    path = copy("plain")
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    dry = repair(path, dry_run=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    real = repair(path)
    assert (dry.lost, dry.num_rows) == (real.lost, real.num_rows)
    assert len(dry.lost) == 1


def test_lost_rows_of_a_row_addressed_store_become_zeros(copy):
    path = copy("rows")
    flip(path / "base-000001.rows", 4096 + 20 * 7)
    flip(path / "base-000001.rows", 4096 + 20 * 3)  # row 3 was changed since: nothing is lost with it
    report = repair(path)
    assert report.lost == ["row 7: now zeros"]
    with ngs.open(path) as store:
        wanted = rows_of(range(200), 4)
        wanted[[3, 4]] = rows_of([1003, 1004], 4)
        wanted[7] = 0
        np.testing.assert_array_equal(store.rows(np.arange(200)), wanted)
    assert verify(path) == []


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("untold", ["5 changes of unknown n-grams: these may show an older value", "rows 0 to 4 of the overlay"]),
        ("rows", ["2 changes of unknown rows: these may show an older value"]),
    ],
)
def test_that_older_values_are_back_is_told_where_nothing_is_left_of_an_overlay(copy, kind, lost):
    path = copy(kind)
    for name in ("overlay-000002.index", "overlay-000002.rows"):
        (path / name).unlink()
    report = repair(path)
    assert (report.lost, report.num_lost) == (lost, 5 if kind == "untold" else 2)
    with ngs.open(path) as store:
        rows = store.rows([3, 4]) if kind == "rows" else store.get(NGRAMS[3:5])[0]
        assert stamps_of(rows) == [3, 4]
    assert verify(path) == []


def test_rows_that_are_cut_off_between_two_are_not_called_those_of_another_file(copy):
    path = copy("rows")
    os.truncate(path / "base-000001.rows", 4096 + 20 * 50)
    assert [fault.what for fault in verify(path)] == [
        "the file has 5096 bytes, the manifest says 8096",
        "rows 50 to 199 are in none of the layer's files",
    ]


def test_a_row_that_passes_its_checksum_and_is_no_frame_is_not_said_to_fail_it(quick_path):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(200)}, dim=64, compression="zstd")
    with ngs.open(path) as store:
        base = store._view.base
        (place,), (size,) = (values.tolist() for values in base.places(5, 1))
        seed = int(base.seeds(5, 1)[0])
    overwrite(path / "base-000001.rows", place, bytes(size) + checksum(bytes(size), seed).to_bytes(4, "little"))
    (fault,) = verify(path)
    assert fault.what.startswith("row 5 passes its checksum and does not decompress")
    assert repair(path).num_lost == 1


def test_a_dictionary_beyond_mending_is_one_fault_and_its_rows_do_not_fail_their_checksums(quick_path):
    path = quick_path / "store"
    STORES["dictionary"](path)
    overwrite(path / "base-000001.rows", 4096 + 20, b"\xff" * 8)
    assert [str(fault) for fault in verify(path)] == [
        "base-000001.rows at byte 4096: the zstd dictionary is damaged beyond mending: compressed rows are lost"
    ]
    assert repair(path, dry_run=True).num_lost > 0


@pytest.mark.parametrize("kind", ["plain", "rows"])
def test_changes_of_a_damaged_journal_are_kept(copy, kind):
    path = copy(kind)
    store = ngs.open(path, mode="rw")
    if kind == "rows":
        store.put([9], rows_of([2000], 4))
    else:
        store.put([(5, 5)], rows_of([2000], 4))
        store.delete([NGRAMS[20]])
    journal = store._writer._journal_path
    store._shut()
    (journal / "ACK").write_bytes(b"")
    assert journal.name in {fault.file for fault in verify(path)}
    report = repair(path)
    assert any("unpublished" in line for line in report.lost)
    assert verify(path) == []
    with ngs.open(path) as store:
        if kind == "rows":
            assert stamps_of(store.rows([9])) == [2000]
        else:
            rows, found = store.get([(5, 5), NGRAMS[20]])
            assert found.tolist() == [True, False]
            assert stamps_of(rows[:1]) == [2000]


def test_repair_waits_for_no_writer_and_takes_no_used_directory(copy, quick_path):
    path = copy("plain")
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    with ngs.open(path, mode="rw"), pytest.raises(WriterLocked):
        repair(path)
    (quick_path / "used").mkdir()
    (quick_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="there already"):
        repair(path, quick_path / "used")
    assert [file.name for file in (quick_path / "used").iterdir()] == ["file"]


def test_rows_whose_tokens_are_lost_are_kept_if_tokens_are_given_up(quick_path):
    path = quick_path / "store"
    stored = {(i, i % 5): i for i in range(300)}
    build_ngrams(path, stored)
    with ngs.open(path, mode="rw") as writer:
        writer.put([(1, 1), (900,)], rows_of([500, 501], 4))
    model = {**stored, (1, 1): 500, (900,): 501}
    (path / "base-000001.tokens").unlink()
    strict = repair(path, quick_path / "strict")
    assert (strict.num_rows, strict.num_lost, strict.num_without_tokens) == (2, 299, 299)
    assert published(quick_path / "strict") == {(1, 1): 500, (900,): 501}
    report = repair(path, drop_tokens=True)
    assert (report.num_rows, report.lost, report.num_without_tokens) == (301, [], 0)
    assert verify(path) == []
    with ngs.open(path, mode="rw") as store:
        assert len(store) == 301
        rows, found = store.get(list(model))
        assert found.all()
        assert stamps_of(rows) == list(model.values())
        assert store.lookup([7, 900, 1, 1]).length.tolist() == [0, 1, 0, 2]
        with pytest.raises(FormatError, match="tokens"):
            next(iter(store.items()))
        store.put([(8,)], rows_of([8], 4))
    assert verify(path) == []


def test_repair_does_not_put_back_what_a_writer_published_meanwhile(quick_path, monkeypatch):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)})
    flip(path / "base-000001.rows", 4096 + 30)
    real = repair_module.examine
    published_by_others = []

    def examine_and_be_late(directory, **options):
        report = real(directory, **options)
        if not published_by_others:
            published_by_others.append(1)
            with ngs.open(path, mode="rw") as writer:
                writer.put([(5,)], rows_of([700], 4))
            left_open = ngs.open(path, mode="rw")
            left_open.put([(6,)], rows_of([800], 4))
            left_open._shut()  # killed: a journal of a later state than the one that was examined
        return report

    monkeypatch.setattr(repair_module, "examine", examine_and_be_late)
    assert repair(path).num_rows == 99
    assert (published(path)[(5,)], published(path)[(6,)]) == (700, 800)


def test_a_store_that_another_repair_mended_meanwhile_is_left_alone(quick_path, monkeypatch):
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)})
    flip(path / "base-000001.rows", 4096 + 30)
    real, others = WornIndex.check_order, []

    def be_overtaken(index):
        if not others:
            others.append(None)
            others.append(repair(path))
        return real(index)

    monkeypatch.setattr(WornIndex, "check_order", be_overtaken)
    report = repair(path)
    assert len(others[1].faults) == 1 and report.faults == []
    assert report.num_rows == 99
    with ngs.open(path) as store:
        assert store.generation == 2


def test_a_writer_that_goes_on_publishing_is_told_apart_from_a_store_to_be_repaired(quick_path, monkeypatch):
    """Each examination of a large store takes long: one of a store in use does not go on for ever."""
    path = quick_path / "store"
    build_ngrams(path, {(i,): i for i in range(100)})
    flip(path / "base-000001.rows", 4096 + 30)
    real, looks = repair_module.examine, []
    with ngs.open(path, mode="rw") as writer:

        def examine_while_it_publishes(directory, **options):
            report = real(directory, **options)
            looks.append(1)
            writer.put([(5,)], rows_of([700 + len(looks)], 4))
            writer.flush()
            return report

        monkeypatch.setattr(repair_module, "examine", examine_while_it_publishes)
        with pytest.raises(WriterLocked):
            repair(path)
        assert len(looks) == 1
        with pytest.raises(StaleStore, match="3 times a writer published"):
            repair(path, dry_run=True)
        with pytest.raises(StaleStore, match="3 times a writer published"):
            repair(path, out=quick_path / "out")
    assert not (quick_path / "out").exists()


def test_an_index_that_can_be_read_is_mapped_and_takes_no_memory_of_its_own(quick_path):
    build_ngrams(quick_path / "store", {(i, i + 1): i for i in range(20_000)})
    size = (quick_path / "store" / "base-000001.index").stat().st_size
    tracemalloc.start()
    try:
        manifest = read_manifest(quick_path / "store")
        entry = next(entry for entry in manifest.files if entry.name.endswith(".index"))
        index = WornIndex(
            quick_path / "store", entry, manifest.stamp(manifest.base_generation), 20_000, is_keyed=True, is_sized=False
        )
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert index.faults == [] and held < size / 2


def test_a_store_of_a_later_release_is_not_called_damaged(copy):
    path = copy("plain")
    data = (path / "MANIFEST").read_bytes()
    (path / "MANIFEST").write_bytes(data.replace(b"manifest 1 ", b"manifest 2 ", 1))
    for act in (verify, repair):
        with pytest.raises(UnsupportedVersion, match="version 2") as caught:
            act(path)
        assert "upgrade" in caught.value.hint


LOSSES = {
    True: {
        "base.index": 0,
        "base.rows": 298,
        "base.tokens": 298,
        "overlay.rows": 2,
        "overlay.index": 0,
        "overlay.tokens": 2,
    },
    False: {"base.index": 298, "base.rows": 298, "overlay.index": 1, "overlay.rows": 2},
}
"""With tokens or without: rows lost with a whole file."""


@pytest.mark.parametrize("how", ["missing", "overwritten"])
@pytest.mark.parametrize("tokens", [True, False])
def test_what_the_loss_of_a_whole_file_costs(quick_path, tokens, how):
    store = quick_path / "store"
    build_ngrams(store, {(i, i % 5): i for i in range(300)}, tokens=tokens)
    with ngs.open(store, mode="rw") as writer:
        writer.put([(1, 1), (1000,)], rows_of([900, 901], 4))
        writer.delete([(7, 2)])
        writer.flush()
        writer.put([(1001,)], rows_of([902], 4))
        writer._shut()  # as a kill: the last change is in the journal
    model = {(i, i % 5): i for i in range(300)} | {(1, 1): 900, (1000,): 901, (1001,): 902}
    del model[7, 2]
    for name in sorted(file.name for file in store.iterdir() if file.suffix):
        path = quick_path / f"without {name}"
        shutil.copytree(store, path)
        if how == "missing":
            (path / name).unlink()
        else:
            (path / name).write_bytes(random.Random(7).randbytes((path / name).stat().st_size))
        report = repair(path)
        assert verify(path) == []
        assert report.lost or LOSSES[tokens].get(name.replace("-000001", "").replace("-000002", "")) == 0
        with ngs.open(path) as reader:
            rows, found = reader.get(list(model))
            old = {
                ngram
                for ngram, stamp in zip(list(model), (rows[:, 0] // 8).tolist(), strict=True)
                if stamp != model[ngram]
            }
            old -= {ngram for ngram, is_there in zip(list(model), found, strict=True) if not is_there}
            is_back = reader.get([(7, 2)])[1][0]
        assert is_back == name.startswith("tombstones")
        assert old == ({(1, 1)} if name.startswith("overlay") and name.endswith("index") and not tokens else set())
        lost = LOSSES[tokens].get(name.replace("-000001", "").replace("-000002", ""), 0)
        assert len(found) - found.sum() == lost, name


def test_rows_that_come_back_are_found_by_the_longest_match_whatever_else_is_lost(quick_path):
    """Without tokens: the manifest counts no bigram any more, and as many rows are lost as come back."""
    path = quick_path / "store"
    build_ngrams(path, {(i, i): i for i in range(10)} | {(i, i, i + 1): 10 + i for i in range(10)}, tokens=False)
    with ngs.open(path, mode="rw") as store:
        store.delete([(i, i) for i in range(10)])
        store.flush()
        assert store.stats()["ngrams_by_length"] == {3: 10}
        keys = store._view.find(ngram_ids(np.array([(i, i, i + 1) for i in range(10)], np.uint32)))
    next(path.glob("tombstones-*")).unlink()
    for rank in (keys & RANK_MASK).tolist():
        flip(path / "base-000001.rows", 4096 + 20 * rank)
    repair(path)
    assert verify(path) == []
    with ngs.open(path) as store:
        assert store.get([(4, 4)])[1][0]
        assert store.lookup([4, 4]).length.tolist() == [0, 2]


@pytest.mark.parametrize("tokens", [True, False])
def test_a_length_that_only_the_journal_has_is_found_after_a_repair(quick_path, tokens):
    store = quick_path / "store"
    build_ngrams(store, {(i,): i for i in range(100)}, tokens=tokens)
    with ngs.open(store, mode="rw") as writer:
        writer.put([(5, 6)], rows_of([900], 4))
        writer._shut()
    flip(store / "base-000001.rows", -50)
    repair(store)
    assert verify(store) == []
    with ngs.open(store) as reader:
        assert reader.lookup([5, 6]).length[-1] == 2
        assert reader.stats()["ngrams_by_length"] == {1: 99 if tokens else 100, 2: 1}  # without tokens an upper bound


def test_a_killed_repair_leaves_nothing_for_ever(copy, monkeypatch):
    path = copy("plain")
    with ngs.open(path, mode="rw") as writer:
        writer.put(NGRAMS[:1], rows_of([7], 4))
        writer._shut()
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(journal_salvage, "_salvage_pairs", lambda *_: os._exit(9))
        repair(path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert any("salvage" in file.name for file in path.iterdir())
    assert repair(path).lost
    assert published(path)[NGRAMS[0]] == 7
    assert {file.suffix for file in path.iterdir()} == {"", ".index", ".rows", ".tokens"}
    assert not any(file.is_dir() for file in path.iterdir())


def refuse_to_open(monkeypatch, name: str, code: int) -> None:
    """From here on the system has this error for files of that name."""
    real = os.open

    def opened(path, *args, **kwargs):
        if Path(os.fsdecode(path)).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["base-000001.rows", "base-000001.index", "base-000001.tokens", "overlay-000002.rows"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_file_that_may_not_be_opened_is_not_damaged_and_repair_changes_nothing(copy, monkeypatch, name, code):
    path = copy("plain")
    before = content_of(path)
    with monkeypatch.context() as patch:
        refuse_to_open(patch, name, code)
        for act in (verify, repair, lambda path: repair(path, dry_run=True)):
            with pytest.raises(UsageError, match=name) as caught:
                act(path)
            assert os.strerror(code) in caught.value.message
            assert "nothing has changed" in caught.value.hint
    assert content_of(path) == before
    assert not repair(path).is_damaged


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_file_in_the_place_of_one_is_not_damage_and_stays(copy, quick_path, kind):
    path = copy("plain")
    rows = path / "base-000001.rows"
    rows.rename(quick_path / "moved")
    if kind == "link":
        rows.symlink_to(quick_path / "moved")
    elif kind == "directory":
        rows.mkdir()
        (rows / "mine").touch()
    else:
        os.mkfifo(rows)
    before = sorted(path.rglob("*"))
    for act in (verify, repair):
        with pytest.raises(UsageError, match=r"base-000001\.rows") as caught:
            act(path)
        assert "in its place" in caught.value.hint
    assert sorted(path.rglob("*")) == before


def test_a_read_that_the_disk_refuses_is_damage_and_one_that_the_system_does_is_not(copy, monkeypatch):
    path = copy("plain")
    rows = os.stat(path / "base-000001.rows").st_ino
    real, code = os.pread, errno.EIO

    def pread(fd, size, at):
        if os.fstat(fd).st_ino == rows and at >= 4096:
            raise OSError(code, os.strerror(code))
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    assert any(fault.file == "base-000001.rows" and "error" in fault.what for fault in verify(path))
    code = errno.ENOMEM
    with pytest.raises(UsageError, match=r"base-000001\.rows"):
        verify(path)


def test_files_of_a_journal_that_are_kept_from_a_repair_are_not_damaged(copy, quick_path, monkeypatch):
    path = copy("plain")
    store = ngs.open(path, mode="rw")
    store.put([(5, 5)], rows_of([2000], 4))
    journal = store._writer._journal_path
    store._shut()
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    before = content_of(path)
    real = open

    def opened(file, *args, **kwargs):
        if Path(file) == journal / "CURRENT" and args == ("rb",):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(journal_salvage, "open", opened, raising=False)
        for act in (lambda: repair(path), lambda: repair(path, quick_path / "out")):
            with pytest.raises(UsageError, match="Permission denied"):
                act()
    after = content_of(path)
    del before["LOCK"], after["LOCK"]  # says which process took it
    assert after == before
    assert repair(path).lost and published(path)[(5, 5)] == 2000


def leave_journal(path: Path, *, num_puts: int = 3) -> Path:
    """Changes of a writer that was killed, none of them synced; returns the journal's path."""
    child = os.fork()
    if child == 0:
        store = ngs.open(path, mode="rw")
        for stamp in range(num_puts):
            store.put([(7, stamp + 100)], rows_of([stamp], 4))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (journal,) = path.glob("journal-*")
    return journal


def every_byte(path: Path) -> dict:
    return {
        str(file.relative_to(path)): (file.stat().st_mtime_ns, file.stat().st_ino, file.is_file() and file.read_bytes())
        for file in [path, *path.rglob("*")]
    }


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("has_lock", [False, True])
def test_verify_a_dry_run_and_a_repair_elsewhere_change_no_byte_of_a_store_with_a_journal(
    copy, quick_path, is_damaged, has_lock
):
    path = copy("plain")
    journal = leave_journal(path)
    if is_damaged:
        flip(path / "base-000001.rows", 4096 + 20 * 30)
    if not has_lock:
        (path / "LOCK").unlink()
    before = every_byte(path)
    assert f"{journal.name} holds 3 changes that are not published yet" in examine(path).notes
    assert every_byte(path) == before
    assert repair(path, dry_run=True).is_damaged == is_damaged
    assert repair(path, quick_path / "out").is_damaged == is_damaged
    assert every_byte(path) == before
    if is_damaged:
        assert published(quick_path / "out")[7, 102] == 2
    with ngs.open(path, mode="rw") as store:
        assert stamps_of(store.get([(7, 100), (7, 102)])[0]) == [0, 2]


def test_verify_says_every_time_what_a_power_cut_took_and_calls_any_other_loss_a_fault(copy, monkeypatch):
    path = copy("plain")
    journal = leave_journal(path)
    (log,) = (file for file in journal.glob("*.log") if file.stat().st_size)
    os.truncate(log, log.stat().st_size - 3)
    for _ in range(2):
        (fault,) = verify(path)
        assert fault.file == journal.name and "no power cut since" in fault.what
    reboot(monkeypatch)
    for _ in range(2):
        report = examine(path)
        assert report.faults == []
        assert any("1 of 3 unflushed changes are lost" in note for note in report.notes)


def test_verify_keeps_a_writer_out_of_the_journal_it_reads_and_no_longer(copy, monkeypatch):
    path = copy("plain")
    leave_journal(path)
    real = journal_reading._load

    def load(*args):
        with pytest.raises(WriterLocked):
            ngs.open(path, mode="rw")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(journal_reading, "_load", load)
        assert verify(path) == []
    ngs.open(path, mode="rw").close()


def test_a_journal_that_may_not_be_read_is_a_note(copy, monkeypatch):
    path = copy("plain")
    journal = leave_journal(path)
    refuse_to_open(monkeypatch, "ACK", errno.EACCES)
    report = examine(path)
    assert report.faults == []
    assert any(note.startswith(f"{journal.name} was not checked") and "denied" in note for note in report.notes)


def fail_to_read(monkeypatch, path: Path, after: int) -> None:
    """From here on the disk gives the first `after` bytes of a file, and no more."""

    class Torn(io.FileIO):
        def read(self, size=-1):
            if self.tell() >= after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(min(size, after - self.tell()))

    def opened(file, *args, **kwargs):
        return Torn(file) if Path(file) == path else open(file, *args, **kwargs)

    monkeypatch.setattr(journal_salvage, "open", opened, raising=False)


def test_what_the_disk_still_gives_of_a_journal_is_kept(copy, monkeypatch):
    path = copy("plain")
    journal = leave_journal(path)
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    (log,) = (file for file in journal.glob("*.log") if file.stat().st_size)
    fail_to_read(monkeypatch, log, log.stat().st_size - 3)
    report = repair(path)
    assert any(f"{journal.name}/{log.name}: cannot be read: Input/output error" in line for line in report.lost)
    rows, found = published_of(path, [(7, 100), (7, 101), (7, 102)])
    assert found.tolist() == [True, True, False] and stamps_of(rows[:2]) == [0, 1]
    assert not any(file.is_dir() for file in path.iterdir())


def published_of(path: Path, ngrams: list) -> tuple:
    with ngs.open(path) as store:
        return store.get(ngrams)


def test_a_journal_of_which_nothing_can_be_read_is_set_aside_and_a_dry_run_says_so_too(copy):
    path = copy("plain")
    journal = leave_journal(path)
    for file in journal.iterdir():
        if file.suffix == ".log":
            file.write_bytes(b"\xaa" * file.stat().st_size)
    wanted = content_of(journal)
    dry, real = repair(path, dry_run=True), repair(path)
    assert dry.lost == real.lost
    assert f"unpublished changes: {journal.name} is kept as set-aside-{journal.name}" in real.lost
    assert content_of(path / f"set-aside-{journal.name}") == wanted
    assert verify(path) == []
    ngs.open(path, mode="rw").close()
    assert content_of(path / f"set-aside-{journal.name}") == wanted


def test_a_journal_whose_list_of_files_is_lost_is_a_fault_and_is_set_aside(copy, monkeypatch):
    path = copy("plain")
    journal = leave_journal(path)
    real = Path.iterdir

    def iterdir(folder):
        if folder == journal:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        return real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", iterdir)
        (fault,) = verify(path)
        assert fault.file == journal.name and "cannot be read: Input/output error" in fault.what
        lost = repair(path).lost
    assert lost == [
        f"unpublished changes: {journal.name}: cannot be read: Input/output error",
        f"unpublished changes: {journal.name} is kept as set-aside-{journal.name}",
    ]
    assert (path / f"set-aside-{journal.name}").is_dir() and verify(path) == []


def test_what_is_no_directory_in_the_place_of_a_journal_is_a_fault_and_is_kept(copy):
    path = copy("plain")
    journal = path / read_manifest(path).journal
    journal.write_bytes(b"mine")
    (fault,) = verify(path)
    assert fault.file == journal.name and "is not a directory" in fault.what
    assert repair(path).lost[-1] == f"unpublished changes: {journal.name} is kept as set-aside-{journal.name}"
    assert (path / f"set-aside-{journal.name}").read_bytes() == b"mine"
    assert verify(path) == []


def test_a_journal_that_was_being_made_holds_nothing_that_a_repair_could_lose(copy):
    path = copy("plain")
    journal = path / read_manifest(path).journal
    journal.mkdir()
    (journal / "ACK.tmp").write_bytes(b"half of it")
    assert examine(path).faults == []
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    assert len(repair(path).lost) == 1
    assert list(path.glob("*journal*")) == []


def test_a_manifest_that_the_disk_does_not_give_is_a_fault(copy, monkeypatch):
    path = copy("plain")
    refuse_to_open(monkeypatch, "MANIFEST", errno.EIO)
    monkeypatch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    assert [str(fault) for fault in verify(path)] == ["MANIFEST: cannot be read: Input/output error"]


# Layers of many chunks


@pytest.fixture
def a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(worn, "_CHUNK_BYTES", 1)


@pytest.mark.usefixtures("a_block_at_a_time")
@pytest.mark.parametrize("kind", [*KINDS, "rows"])
def test_a_layer_read_in_many_chunks_has_no_faults(copy, kind):
    assert verify(copy(kind)) == []


@pytest.mark.usefixtures("a_block_at_a_time")
@pytest.mark.parametrize("kind", KINDS)
def test_a_flip_behind_the_first_chunk_loses_its_row_alone(copy, quick_path, kind):
    path = copy(kind)
    wanted = model_of(path)
    with ngs.open(path) as store:
        base = store._view.base
        keys = store._view.find(base.seeds(0, base.num_rows))
        rank = int(np.flatnonzero(keys == base.serial << 40 | np.arange(base.num_rows))[-1])  # not changed since
        place = int(base.places(rank, 1)[0][0])
    assert rank >= 64
    flip(path / "base-000001.rows", place + 3)
    assert [(fault.file, fault.offset) for fault in verify(path)] == [("base-000001.rows", place)]
    assert len(repair(path, quick_path / "out").lost) == 1
    assert verify(quick_path / "out") == []
    saved = model_of(quick_path / "out")
    assert saved.items() <= wanted.items() and len(saved) == len(wanted) - 1


@pytest.mark.usefixtures("a_block_at_a_time")
@pytest.mark.parametrize("kind", ["plain", "zstd"])
def test_an_index_that_is_lost_costs_nothing_in_any_chunk(copy, kind):
    path = copy(kind)
    wanted, index = model_of(path), path / "base-000001.index"
    index.write_bytes(b"\xaa" * index.stat().st_size)
    assert repair(path).lost == []
    assert model_of(path) == wanted


# What only we cannot read is no damage


def content_without_lock(path: Path) -> dict[str, bytes]:
    """A repair notes its process in LOCK, and takes it back."""
    return {name: data for name, data in content_of(path).items() if name != "LOCK"}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("how", ["raised", "told"])
def test_a_journal_that_only_we_cannot_open_is_not_taken_apart(copy, monkeypatch, code, how):
    path = copy("plain")
    leave_journal(path)
    flip(path / "base-000001.rows", 4096 + 20 * 30)  # something to repair
    before = content_without_lock(path)

    def refuse(folder):
        if how == "raised":
            raise OSError(code, os.strerror(code), str(folder / "000009.sst"))
        raise Exception(f"IO error: While open a file for random read: {folder}/000009.sst: {os.strerror(code)}")

    monkeypatch.setattr(journal_salvage, "check_rocksdb_files", refuse)
    with pytest.raises(UsageError, match=re.escape(os.strerror(code))):
        repair(path)
    assert content_without_lock(path) == before
    monkeypatch.undo()
    assert len(repair(path).lost) == 1


def test_a_system_without_temporary_directories_is_a_note(copy, monkeypatch):
    path = copy("plain")
    leave_journal(path)
    before = content_without_lock(path)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    report = examine(path)
    assert report.faults == [] and any("temporary directory" in note for note in report.notes)
    assert not repair(path).is_damaged
    assert content_without_lock(path) == before


def test_a_journal_that_may_not_be_listed_is_a_note(copy, monkeypatch):
    path = copy("plain")
    leave_journal(path)

    def refuse(folder):
        raise UsageError(f"{folder} may not be listed")

    monkeypatch.setattr(journal_salvage, "list_files", refuse)
    report = examine(path)
    assert report.faults == [] and [note for note in report.notes if "was not checked" in note]


def test_an_index_that_cannot_be_mapped_is_not_taken_for_damage(copy, monkeypatch):
    def refuse(*given, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = copy("plain")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(UsageError, match=r"too many open files to open .*index"):
        verify(path)


def test_a_repair_keeps_its_list_of_losses_whoever_comes_behind_it(copy, monkeypatch):
    def refuse(path):
        raise WriterLocked(f"{path} is held by process 7")

    path = copy("plain")
    flip(path / "base-000001.rows", 4096 + 20 * 30)
    monkeypatch.setattr(repair_module, "Writer", refuse)
    assert len(repair(path).lost) == 1
    monkeypatch.undo()
    assert verify(path) == []
