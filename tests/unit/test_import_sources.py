"""Files of a checkpoint as systems number and date them: any inode, any time of change."""

from __future__ import annotations

import errno
import os

import pytest
from checkpoints import write_longcat

import ngramstore as ngs
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.layers import external
from ngramstore.store.layers.external_entry import SourceEntry, _source


@pytest.mark.parametrize("inode", [0, 1 << 62, (1 << 63) + 5, (1 << 64) - 1])
def test_a_source_of_any_inode_opens_again(tmp_path, monkeypatch, inode):
    """mergerfs and gocryptfs use all 64 bits."""
    wanted, begin = write_longcat(tmp_path / "checkpoint"), external.Source.__init__

    def numbered(source, path):
        begin(source, path)
        source.inode = inode

    monkeypatch.setattr(external.Source, "__init__", numbered)
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "store")
    with ngs.open(tmp_path / "store", trust_external=True) as store:
        assert (store.rows_encoded([3]) == wanted[[3]]).all()


def test_an_error_of_the_filesystem_names_the_file_and_the_place(tmp_path, monkeypatch):
    write_longcat(tmp_path / "checkpoint")
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "store")

    def stale(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with ngs.open(tmp_path / "store", trust_external=True) as store:
        base = store._view.base
        begin = int(base.places(9, 1)[0][0])
        monkeypatch.setattr(os, "pread", stale)
        with pytest.raises(OSError, match=rf"reading from byte {begin:,}: '.*model.safetensors'") as caught:
            base.read_encoded(9, 4)
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("mtime_ns", [-1, -(10**18), 0])
def test_a_source_changed_before_1970_opens_again(tmp_path, mtime_ns):
    wanted = write_longcat(tmp_path / "checkpoint")
    os.utime(tmp_path / "checkpoint" / "model.safetensors", ns=(mtime_ns, mtime_ns))
    import_checkpoint(tmp_path / "checkpoint", tmp_path / "store")
    with ngs.open(tmp_path / "store", trust_external=True) as store:
        assert (store.rows_encoded([3]) == wanted[[3]]).all()


@pytest.mark.parametrize("mtime_ns", [-(1 << 63), (1 << 63) - 1, 10**19])
def test_every_time_that_is_written_is_read_again(mtime_ns):
    """10**19 ns is a day of 2286, which ext4 and XFS can hold and 64 bits cannot."""
    source = SourceEntry("/a", 5, "", "", 7, mtime_ns)
    assert _source(source.to_json()) == source


@pytest.mark.parametrize("value", [-1, "-1", str(1 << 64), "1_0", " 1", "", "١", 5, True, None, 1.0, "1" * 5000])
def test_an_inode_that_is_none_is_refused(value):
    source = SourceEntry("/a", 5, "", "", 7, 8).to_json()
    with pytest.raises(ValueError, match="not a decimal string"):
        _source(source | {"inode": value})
