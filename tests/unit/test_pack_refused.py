"""A half-made pack that another command meets: it says what differs, loses no row, and is verified with a sign of life."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from checkpoints import write_longcat
from click.testing import CliRunner

import ngramstore as ngs
from ngramstore import files
from ngramstore.cli.main import cli
from ngramstore.errors import IncompleteStore
from ngramstore.store.imports import importing, job

HOW = {"codec": "int8", "compression": "none"}


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A checkpoint, and a directory in which a pack of it ended behind 300 rows."""
    monkeypatch.setattr(job, "_CHUNK_BYTES", 100 * 512)
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    write_longcat(checkpoint)
    writes = 0

    def fail(operation, path):
        nonlocal writes
        writes += operation == "write" and path.suffix == ".rows"
        if writes == 5:
            raise OSError(5, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        with pytest.raises(OSError, match="injected"):
            pack(checkpoint, out)
    return checkpoint, out


def pack(checkpoint, out, **options):
    return importing.import_checkpoint(checkpoint, out, pack=True, **(HOW | options))


def refusal(checkpoint, out, **options) -> str:
    with pytest.raises(IncompleteStore) as refused:
        pack(checkpoint, out, **options)
    assert "--restart" in refused.value.hint and "never finished" in refused.value.message
    return refused.value.message


def test_another_codec_or_compression_is_named_with_the_old_one(begun):
    assert 'codec was {"name": "int8"}, is {"name": "bf16"}' in refusal(*begun, codec="bf16")
    assert refusal(*begun, compression="zstd").endswith("another one: compression was none, is zstd")
    assert pack(*begun).resumed_rows == 300


def test_a_file_that_was_written_to_is_named_with_what_changed(begun):
    source = next(begun[0].glob("*.safetensors"))
    status = source.stat()
    os.utime(source, ns=(0, 5))
    assert f"{source}: its time of change (ns) was {status.st_mtime_ns}, is 5" in refusal(*begun)
    shutil.copy2(source, source.with_suffix(".new"))
    os.replace(source.with_suffix(".new"), source)
    os.utime(source, ns=(0, status.st_mtime_ns))
    assert f"its inode was {status.st_ino}, is {source.stat().st_ino}" in refusal(*begun)


def test_a_checkpoint_of_other_rows_is_named(begun):
    source = next(begun[0].glob("*.safetensors"))
    status, data = source.stat(), bytearray(source.read_bytes())
    data[-1] ^= 1
    source.write_bytes(data)
    os.utime(source, ns=(0, status.st_mtime_ns))
    assert refusal(*begun).endswith("headers or sampled pages of the checkpoint's files are not what they were")


def test_another_release_is_named(begun, monkeypatch):
    monkeypatch.setattr(ngs, "__version__", "99.0")
    message = refusal(*begun)
    assert message.endswith(", is 99.0") and "release was " in message


@pytest.mark.parametrize("state", [b"", b"\xff", b"[]", b"{}", b'{"sources": 5}', b'{"sources": [5]}', b"[" * 9999])
def test_a_state_that_says_nothing_is_another_conversion(begun, state):
    (begun[1] / "runs" / "state.json").write_bytes(state)
    assert "another one: " in refusal(*begun)
    assert pack(*begun, restart=True).resumed_rows == 0


@pytest.mark.parametrize("name", ["state.json", "rows", "runs"])
def test_where_nothing_was_written_yet_a_pack_begins_without_being_told(begun, name):
    """Killed before the state was there, or in an import of another kind; what it left is removed."""
    checkpoint, out = begun
    if name == "rows":
        (out / "base-000001.rows").unlink()
    elif name == "runs":
        shutil.rmtree(out / "runs")
        (out / "base-000001.sums").write_bytes(b"left")
    else:
        (out / "runs" / "state.json").unlink()
    assert pack(checkpoint, out).resumed_rows == 0
    assert sorted(os.listdir(out)) == ["LOCK", "MANIFEST", "base-000001.index", "base-000001.rows"]
    with ngs.open(out) as store:
        assert store.verify() == []


@pytest.mark.parametrize("work", [b"", b"{}", b"backup\n"])
def test_what_another_command_left_is_not_taken_over(begun, work):
    checkpoint, out = begun
    shutil.rmtree(out / "runs")
    (out / "BUILDING").write_bytes(work)
    with pytest.raises(IncompleteStore):
        pack(checkpoint, out)
    assert (out / "base-000001.rows").exists()


@pytest.mark.parametrize("quiet", [True, False])
def test_verifying_what_is_there_shows_how_far_it_is_unless_told_to_be_quiet(begun, quiet):
    words = ["import", *map(str, begun), "--pack", "--codec", "int8", "--compression", "none", "--json"]
    result = CliRunner().invoke(cli, words + ["--quiet"] * quiet)
    assert json.loads(result.stdout)["resumed_rows"] == 300
    assert ("verify: " in result.stderr) == (not quiet) == ("300/300" in result.stderr)
