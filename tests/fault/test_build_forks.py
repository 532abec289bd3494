"""A build in a process that was forked while it went on: refused at once, whatever the parent had begun."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers import end_of_fork

import ngramstore as ngs
from ngramstore.errors import StoreClosed, WrongProcess

ROWS_MD = np.ones((512, 1024), np.float32)
"""Enough for an encoding in pieces."""


def refused(act) -> None:
    with pytest.raises(WrongProcess):
        act()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("call", ["add_rows", "add_encoded_rows"])
def test_rows_added_in_a_fork_are_refused_though_the_parents_encoders_are_dead_there(tmp_path, call):
    with ngs.build(tmp_path / "s", dim=1024, addressing="row", codec="f32", threads=2) as builder:
        builder.add_rows(ROWS_MD)
        assert end_of_fork(lambda: refused(lambda: getattr(builder, call)(ROWS_MD))) == 0
    assert len(ngs.open(tmp_path / "s")) == 512


def test_rows_added_behind_the_end_start_no_threads(tmp_path):
    before = threading.active_count()
    builder = ngs.build(tmp_path / "s", dim=1024, addressing="row", codec="f32", threads=2)
    builder.add_rows(ROWS_MD)
    builder.finish()
    with pytest.raises(StoreClosed):
        builder.add_rows(ROWS_MD)
    assert threading.active_count() == before
