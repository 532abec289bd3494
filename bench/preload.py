"""Imported once by the process that the workers of a quick run are forked from: packages of the peers, and compiled kernels.

What is there behind the imports is frozen: it never becomes garbage, and looking through it, as each worker does before it times
something, took most of a worker's time (0.14 s each look, and a copy of every page that a look writes to).
"""

from __future__ import annotations

import contextlib
import gc

import numpy as np

from bench import peers, rows
from bench.workloads import store_files, store_get, store_match, store_memory, store_traces  # noqa: F401

for _subject in set(peers.SUBJECTS) - {"lance"}:  # lance starts threads, which a fork would lose
    with contextlib.suppress(ImportError):
        peers.create(_subject)

for _codec in rows.CODECS:
    _stored = rows.encode(np.ones((2, 16), np.float32), _codec)
    rows.decoder(_codec, 16)(_stored, np.empty((2, 16), np.float32))
    rows.gatherer(_codec, 16)(_stored, np.array([0, -1]), np.empty((2, 16), np.float32))

gc.collect()
gc.freeze()
