"""The interpreter ends with locks and files still held: nothing is complained of, and the next writer gets in."""

from __future__ import annotations

import subprocess

import pytest
from helpers import start_python

from ngramstore.writer_lock import WriterLock

HELD = {
    "a lock": "writer_lock.held = writer_lock.WriterLock(pathlib.Path(sys.argv[1]))",
    "a file": "files.held = files.OwnsFd(); files.held.fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)",
}


@pytest.mark.parametrize("what", HELD)
def test_what_is_held_longest_goes_without_a_word(tmp_path, what):
    """A module that is still known as the interpreter ends has its names set to None, one after the other: `os` before these."""
    code = f"import os, pathlib, sys\nfrom ngramstore import files, writer_lock\n{HELD[what]}\nsys.known = files, writer_lock"
    child = start_python(code, tmp_path / "LOCK", stderr=subprocess.PIPE)
    _, complaint = child.communicate(timeout=60)
    assert (child.returncode, complaint.decode()) == (0, "")
    WriterLock(tmp_path / "LOCK").release()
