"""An export that is killed anywhere goes on: the same bytes in the end, and no vector computed again that was on disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from ngramstore import files
from ngramstore.errors import FormatError, IncompleteStore, UnsupportedVersion, UsageError, WriterLocked
from ngramstore.mine import Vocabulary
from ngramstore_torch.export.spool import Spool, spool_path
from ngramstore_torch.export.table import Exported, export_table

BATCH, NUM_BATCHES = 10, 7


class Source:
    """Rows of numbers that depend on tokens alone, and how many were asked for."""

    dim, max_n = 8, 3

    def __init__(self, identity: str | None = "a") -> None:
        if identity is not None:
            self.identity = identity
        self.computed = 0

    def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
        self.computed += len(lengths_M)
        return (tokens_MK[:, :1] * 3.5 + tokens_MK[:, 1:2] + np.arange(self.dim)).astype(np.float32)


def vocabulary(extra: int = 0) -> Vocabulary:
    num = BATCH * NUM_BATCHES - 3  # the last batch is not full
    tokens_MK = np.stack([np.arange(num), np.arange(num) % 7 + extra, np.zeros(num, int)], 1)
    return Vocabulary(tokens_MK, np.full(num, 2), np.arange(num, 0, -1))


def export(path: Path, source: Source | None = None, **options) -> tuple[Exported, int]:
    source = source or Source()
    options = {"codec": "int8", "batch_size": BATCH, "threads": 1, "metadata": {"made": "here"}} | options
    return export_table(source, options.pop("vocabulary", vocabulary()), path, **options), source.computed


def content(path: Path) -> dict[str, bytes]:
    """The store's files; what a build that was killed after publishing leaves besides is the next writer's to remove."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in ("LOCK", "BUILDING", "runs")}


def killed(path: Path, number: int) -> bool:
    """Export in a child that kills itself before its number-th write, fsync, rename or removal: -> whether it lived."""
    child = os.fork()
    if child == 0:
        left = [number]

        def observe(operation: str, where: Path) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            files.observe = observe
            export(path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def interrupted(path: Path, after: int, **options) -> None:
    """Export and press Ctrl-C in the middle of batch number `after`."""

    class Stops(Source):
        def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
            if self.computed == after * BATCH:
                raise KeyboardInterrupt
            return super().rows(tokens_MK, lengths_M)

    with pytest.raises(KeyboardInterrupt):
        export(path, Stops(), **options)


@pytest.fixture
def whole(quick_path) -> dict[str, bytes]:
    """Warm, so that a child compiles nothing."""
    done, computed = export(quick_path / "whole")
    assert (done.num_rows, done.num_resumed, computed) == (67, 0, 67)
    assert not spool_path(quick_path / "whole").exists()
    return content(quick_path / "whole")


def test_an_export_killed_at_any_step_goes_on_to_the_same_bytes(quick_path, whole):
    resumed = []
    for number in range(1000):
        path = quick_path / f"store-{number}"
        if killed(path, number):
            break
        if (path / "MANIFEST").exists() and not spool_path(path).exists():
            continue  # all was done but for the last bits of tidying
        done, computed = export(path)
        assert content(path) == whole
        assert not spool_path(path).exists()
        assert computed == 67 - done.num_resumed
        resumed.append(done.num_resumed)
    assert number > 30
    assert resumed == sorted(resumed)  # the later the kill, the more is there
    assert set(range(0, 67, BATCH)) | {67} == set(resumed)


def test_an_interrupted_export_leaves_no_store_and_goes_on(quick_path, whole):
    interrupted(quick_path / "s", 3)
    assert not (quick_path / "s").exists() and spool_path(quick_path / "s").exists()
    done, computed = export(quick_path / "s")
    assert (done.num_resumed, computed) == (30, 37)
    assert content(quick_path / "s") == whole


def test_other_batches_go_on_with_the_same_spool(quick_path, whole):
    interrupted(quick_path / "s", 3)
    done, _ = export(quick_path / "s", batch_size=16)
    assert done.num_resumed == 30
    assert content(quick_path / "s") == whole


FITTED, OTHERWISE = ({"sensitivity": np.diag(np.arange(1.0, Source.dim + 1)) + more} for more in (0, 0.5))


@pytest.mark.parametrize(("before", "now"), [(FITTED, {}), ({}, FITTED), (FITTED, OTHERWISE)])
def test_what_is_left_of_another_rounding_is_refused(quick_path, before, now):
    interrupted(quick_path / "s", 3, codec="int4", **before)
    with pytest.raises(UsageError, match="another rounding"):
        export(quick_path / "s", codec="int4", **now)
    done, _ = export(quick_path / "s", codec="int4", **before)
    assert done.num_resumed == 3 * BATCH
    whole, _ = export(quick_path / "whole", codec="int4", **before)
    assert whole.num_resumed == 0 and content(quick_path / "s") == content(quick_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Source("b")}, "another model: 'a', this one has 'b'"),
        ({"vocabulary": vocabulary(extra=1)}, "another vocabulary"),
        ({"codec": "f16"}, r"another codec: \{'name': 'int8'\}"),
    ],
)
def test_what_is_left_of_another_export_is_refused_until_restart(quick_path, change, message):
    interrupted(quick_path / "s", 3)
    with pytest.raises(UsageError, match=message):
        export(quick_path / "s", **change)
    done, computed = export(quick_path / "s", **change, restart=True)
    assert done.num_resumed == 0 and computed >= 67
    assert not spool_path(quick_path / "s").exists()


@pytest.mark.parametrize("damage", ["flip a row", "flip a record's head", "cut"])
def test_rows_that_are_damaged_in_the_spool_are_computed_again(quick_path, whole, damage):
    interrupted(quick_path / "s", 4)
    path = spool_path(quick_path / "s")
    data = bytearray(path.read_bytes())
    record = 12 + BATCH * 10  # int8: eight codes and a scale of two bytes
    third = len(data) - 2 * record
    if damage == "cut":
        del data[-1:]
    else:
        data[third + (20 if damage == "flip a row" else 0)] ^= 1
    path.write_bytes(data)
    done, _ = export(quick_path / "s")
    assert done.num_resumed == (30 if damage == "cut" else 20)
    assert content(quick_path / "s") == whole


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: b"notes of mine", FormatError, "not what an export leaves"),
        (lambda data: data[:8] + b"\2" + data[9:], UnsupportedVersion, "version 2"),
        (lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:], FormatError, "header .* damaged"),
        (lambda data: data[:25], FormatError, "header .* damaged"),
    ],
)
def test_a_file_in_the_spools_place_is_never_taken_for_one(quick_path, change, error, message):
    interrupted(quick_path / "s", 3)
    path = spool_path(quick_path / "s")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(error, match=message):
        export(quick_path / "s")
    assert path.exists()


def test_the_head_of_a_spool_is_on_disk_before_the_build_says_that_it_has_begun(quick_path, monkeypatch):
    """A power cut may else leave the build's file and an empty spool, and with those no export goes on."""
    log: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "observe", lambda operation, path: log.append((operation, path.name)))
    export(quick_path / "s")
    assert log[:3] == [("write", "s.export"), ("fsync", "s.export"), ("fsync", quick_path.name)]
    assert ("rename", "BUILDING") in log


@pytest.mark.parametrize("is_spool_there", [True, False], ids=["emptied", "gone"])
def test_a_build_without_the_rows_that_were_spooled_says_how_to_begin_again(quick_path, whole, is_spool_there):
    """To run the same command again would lead in a circle."""
    path = quick_path / "s"
    path.mkdir()
    (path / "BUILDING").write_text("{}")
    if is_spool_there:
        spool_path(path).touch()
    with pytest.raises(IncompleteStore, match="its build never finished") as refused:
        export(path)
    assert "--restart" in refused.value.hint and "same command" not in refused.value.hint
    done, _ = export(path, restart=True)
    assert done.num_resumed == 0 and content(path) == whole


def test_what_another_command_left_is_not_taken_for_an_export(quick_path):
    path = quick_path / "s"
    path.mkdir()
    (path / "BUILDING").write_text("import\n")
    with pytest.raises(IncompleteStore, match="its import never finished") as refused:
        export(path)
    assert "to export from the beginning" not in refused.value.hint
    assert not spool_path(path).exists()


def test_a_finished_store_is_not_replaced_and_no_spool_is_left(quick_path, whole):
    for restart in (False, True):
        with pytest.raises(UsageError, match="already holds a store"):
            export(quick_path / "whole", restart=restart)
        assert not spool_path(quick_path / "whole").exists()
    assert content(quick_path / "whole") == whole


def test_a_second_export_into_one_store_is_refused_and_disturbs_nothing(quick_path, whole):
    class Meddles(Source):
        def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
            for restart in (False, True):
                with pytest.raises(WriterLocked):
                    export(quick_path / "s", restart=restart)
                assert spool_path(quick_path / "s").exists()
            return super().rows(tokens_MK, lengths_M)

    export(quick_path / "s", Meddles())
    assert content(quick_path / "s") == whole


def test_the_spool_of_the_working_directory_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "table").mkdir()
    monkeypatch.chdir(tmp_path / "table")
    assert spool_path(".") == tmp_path / "table.export"


def test_rows_of_a_source_that_gives_too_many_are_not_kept_for_a_resume(quick_path, whole):
    """The mended source has the same identity, and the rows would go to other n-grams."""

    class Pads(Source):
        def rows(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> np.ndarray:
            rows_MD = super().rows(tokens_MK, lengths_M)
            return np.pad(rows_MD, ((0, -len(rows_MD) % 16), (0, 0)))

    with pytest.raises(UsageError, match="gave 16 rows for 10 n-grams"):
        export(quick_path / "s", Pads())
    done, computed = export(quick_path / "s")
    assert (done.num_resumed, computed) == (0, 67)
    assert content(quick_path / "s") == whole


def test_a_source_without_an_identity_begins_again(quick_path, whole):
    path = quick_path / "s"
    export(path, Source(identity=None))
    assert content(path) == whole
    assert killed_build_is_refused(quick_path / "t")


def killed_build_is_refused(path: Path) -> bool:
    path.mkdir()
    (path / "BUILDING").write_text("{}")
    with pytest.raises(IncompleteStore):
        export(path, Source(identity=None))
    export(path, Source(identity=None), restart=True)
    return True


def test_parts_of_the_time_add_up(quick_path):
    done, _ = export(quick_path / "s")
    assert set(done.seconds) == {"model", "quantize", "spool", "sort", "pack"}
    assert set(done.cpu_seconds) == set(done.seconds)
    assert min(done.seconds.values()) > 0
    assert done.store_seconds == pytest.approx(sum(done.seconds.values()) - done.seconds["model"])


def test_a_spool_gives_back_what_was_added(quick_path):
    rows = np.arange(60, dtype=np.uint8).reshape(6, 10)
    for first in (0, 4):
        with Spool(quick_path / "x", {"a": 1}, 10) as spool:
            assert spool.is_new == (first == 0)
            found = [part.tolist() for part in spool.batches()]
            assert found == ([] if first == 0 else [rows[:4].tolist()])
            spool.add(rows[first : first + 4])
    with Spool(quick_path / "x", {"a": 1}, 10) as spool:
        assert np.array_equal(np.concatenate(list(spool.batches())), rows)
        spool.remove()
    assert not (quick_path / "x").exists()


def test_the_identity_of_scone_rows_is_that_of_their_weights():
    import torch
    from torch_cases import scone

    from ngramstore_torch.export.table import SconeRows

    model = scone()
    identity = SconeRows(model).identity
    assert identity == SconeRows(scone()).identity
    assert identity != SconeRows(model, bf16=True).identity
    with torch.no_grad():
        model.decoder.norm.weight += 1  # no part of A_f or T
        assert identity == SconeRows(model).identity
        model.fgram_model.positions[0, 0] += 1
    assert identity != SconeRows(model).identity
    assert SconeRows(scone(seed=1)).identity != identity
