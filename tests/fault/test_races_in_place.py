"""A store whose rows lie in a checkpoint is compacted, and the checkpoint removed, while a reader opens it: the reader
sees the newest state."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_engram

import ngramstore as ngs
from ngramstore.errors import DamagedStore, UsageError
from ngramstore.store import view as view_module
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.layers.manifest import Manifest, read_manifest


@pytest.fixture
def path(quick_path) -> Path:
    write_engram(quick_path / "checkpoint")
    import_checkpoint(quick_path / "checkpoint", quick_path / "store")
    return quick_path / "store"


class CompactedOnce:
    """Stands in for `read_manifest`: after the first look the rows move into the store, and the checkpoint is removed."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, directory: Path) -> Manifest:
        manifest = read_manifest(directory)
        self.looks += 1
        if self.looks == 1:
            with ngs.open(directory, mode="rw", trust_external=True) as writer:
                writer.compact()
            shutil.rmtree(directory.parent / "checkpoint")
        return manifest


@pytest.mark.parametrize("is_trusting", [True, False])
def test_a_reader_that_opens_while_rows_in_place_move_into_the_store_finds_them(path, monkeypatch, is_trusting):
    with ngs.open(path, trust_external=True) as before:
        wanted = before.rows(np.arange(9))
    monkeypatch.setattr(view_module, "read_manifest", CompactedOnce())
    with ngs.open(path, trust_external=is_trusting) as reader:
        assert reader.stats()["external_bytes"] == 0
        np.testing.assert_array_equal(reader.rows(np.arange(9)), wanted)


def test_a_refresh_while_rows_in_place_move_into_the_store_finds_them(path, monkeypatch):
    with ngs.open(path, trust_external=True) as reader:
        wanted = reader.rows(np.arange(9))
        with ngs.open(path, mode="rw", trust_external=True) as writer:
            writer.put([3], wanted[:1])
            writer.flush()
        monkeypatch.setattr(view_module, "read_manifest", CompactedOnce())
        monkeypatch.setattr(view_module, "_LAST_SERIAL", 0)  # every layer is opened anew
        assert reader.refresh()
        assert reader.stats()["external_bytes"] == 0
        np.testing.assert_array_equal(reader.rows([3, 4]), [wanted[0], wanted[4]])


def test_a_checkpoint_that_is_gone_from_a_store_that_still_reads_it_is_damage_at_once(path, monkeypatch):
    shutil.rmtree(path.parent / "checkpoint")
    looks = []
    monkeypatch.setattr(view_module, "read_manifest", lambda directory: looks.append(1) or read_manifest(directory))
    with pytest.raises(DamagedStore, match="is missing; the manifest reads rows from it"):
        ngs.open(path, trust_external=True)
    with pytest.raises(UsageError, match="outside of it"):
        ngs.open(path)
    assert len(looks) == 4
