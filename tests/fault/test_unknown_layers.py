"""A row key of a layer that a source does not know: our own mistake, which ends in an error and not in a search without end."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from helpers import build_ngrams

import ngramstore as ngs
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.serve.counts import Counts


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("num_known", [0, 1, 150])
def test_a_key_of_a_layer_that_its_source_does_not_know_is_an_error(quick_path, cache_bytes, num_known):
    build_ngrams(quick_path / "store", {(i,): i for i in range(150)})
    with ngs.open(quick_path / "store", cache_bytes=cache_bytes) as store:
        counts = Counts()
        known = store._view.find(store._ids([(i,) for i in range(num_known)], "get"))
        store._source.fill(known, known.astype(np.uint64), np.empty((num_known, 4), np.float32), counts)
        keys = np.append(known, np.int64(77 << RANK_BITS))
        out = np.empty((len(keys), 4), np.float32)
        child = os.fork()  # a kernel that searches for ever takes its process along
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(3)
            try:
                store._source.fill(keys, keys.astype(np.uint64), out, counts)
            except AssertionError as error:
                os._exit(0 if "77" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
