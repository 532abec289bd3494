"""A recording and a fork: the child is told, or nothing happens there; it never waits for a lock that nobody there gives back."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import build_ngrams, end_of_fork, with_taken

import ngramstore as ngs
from ngramstore.errors import WrongProcess
from ngramstore.serve.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def is_refused(act) -> None:
    with pytest.raises(WrongProcess, match="recording"):
        act()


USES = {
    "add": lambda recorder: is_refused(lambda: recorder.add(np.arange(3))),
    "result": lambda recorder: is_refused(recorder.result),
    "stop": lambda recorder: is_refused(recorder.stop),
    "leave": lambda recorder: recorder.__exit__(None, None, None),
}


@pytest.mark.parametrize("use", USES)
def test_a_recorder_in_a_fork_never_waits_for_a_lock_that_was_taken(use):
    recorder = Recorder("row", 100)
    recorder.add(np.arange(3))
    assert with_taken(recorder._lock, lambda: end_of_fork(lambda: USES[use](recorder))) == 0
    assert recorder.result().num_lookups == 3


@pytest.mark.parametrize("use", USES)
def test_a_trace_of_a_handle_in_a_fork_never_waits_for_the_handles_lock(quick_path, use):
    build_ngrams(quick_path / "store", {(1,): 1, (2,): 2})
    with ngs.open(quick_path / "store") as store, store.trace() as recorder:
        store.get([(1,)])
        assert with_taken(store._lock, lambda: end_of_fork(lambda: USES[use](recorder))) == 0
        assert with_taken(store._lock, lambda: end_of_fork(lambda: store._stop_trace(recorder))) == 0
        store.get([(2,)])
        assert recorder.result().num_lookups == 2  # the parent's recording goes on


def test_a_recording_that_a_fork_leaves_brings_no_short_path_back(quick_path):
    build_ngrams(quick_path / "store", {(1,): 1})
    with ngs.open(quick_path / "store") as store, store.trace() as recorder:

        def act() -> None:
            recorder.__exit__(None, None, None)
            with pytest.raises(WrongProcess):
                store.get(np.array([[1]], np.uint32))

        assert end_of_fork(act) == 0
