"""Two threads over one open handle, beside one thread, and beside a loop that only computes. Worker function and case.

The loop says what two threads can gain on this machine at this moment: where it does not scale, the rest means nothing. The floor
says what is left of that gain when rows are only gathered from memory, with nothing to share but the memory itself.
A store opened with threads=2 splits one large call over both: the same work, asked for by one caller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import data, pages, peers, rows
from bench.harness import Case
from bench.setup import Setup
from bench.workloads import store_get
from bench.workloads import store_source as shared
from ngramstore.kernels.jit import kernel

SUBJECTS = ("ngramstore", "ngramstore_resident", "floor")
SCALES = 1.9
"""What the computing loop has to gain for the measurement to count."""
_BATCH = 8192


def threads_case(setup: Setup) -> Case:
    """Throughput of two threads by that of one, everything cached."""
    num, source = shared.num_keys(setup), shared.source(setup)
    arguments = {
        "source": str(source),
        "batch": min(_BATCH, num),
        "calls": setup.pick(25, 4),
        "turns": setup.pick(9, 3),
    }
    return Case(
        name="threads",
        title=f"two threads over one handle, batches of {min(_BATCH, num):,}, Zipf(1.0), 20 % absent, everything cached",
        function="bench.workloads.store_threads:threads",
        subjects=setup.subjects(SUBJECTS, source, arguments),
        baseline="floor",
        headline=("us_per_key@1thread", "us_per_key@2threads", "speedup", "speedup_of_one_call", "control_speedup"),
        notes=(
            "speedup: throughput of two threads by that of one, in turns, the median; larger is better",
            "speedup_of_one_call: of a store opened with threads=2 by the same store opened as usual, one caller each",
            f"control_speedup: the same of a loop that only computes; void below {SCALES}",
        ),
    )


def threads(*, subject: str, source: str, batch: int, calls: int, turns: int, seed: int) -> dict:
    """`us_per_key` of one and of two threads (wall time by all keys), and what two gain; the control in the same turns."""
    origin = data.load(source)
    peer = peers.opened(subject, origin)
    files = peer.files(peers.files_folder(peer, Path(source)))
    pages.warm(files)
    checked = store_get.check_answers(peer, origin, batch, seed)
    store_get.ask_for_every_row(peer, origin, batch)
    pool = data.split(data.queries(origin, 2 * calls * batch, seed), batch)
    if hasattr(peer, "know"):
        peer.know(pool)
    shares = [pool[:calls], pool[calls:]]
    outs = [np.zeros((batch, origin.dim), np.float32) for _ in shares]

    splits = None
    if hasattr(peer, "split"):
        splits = peers.opened(subject, origin)
        splits.split(2)
        store_get.check_answers(splits, origin, batch, seed)
        store_get.ask_for_every_row(splits, origin, batch)

    def look_up(number: int) -> None:
        for one in shares[number]:
            peer.get(one, outs[number])

    def look_up_split(number: int) -> None:
        if splits is not None:
            for one in shares[number]:
                splits.get(one, outs[number])

    look_up(0)
    look_up(1)
    look_up_split(0)
    steps = _steps_like(look_up)
    sums = np.zeros((2, 64), np.uint64)

    def compute(number: int) -> None:
        for _ in range(calls):
            sums[number, 0] = mix_for(steps // calls, sums[number, 0])

    times = np.array(
        [
            [_wall(look_up, 1), _wall(look_up, 2), _wall(compute, 1), _wall(compute, 2), _wall(look_up_split, 1)]
            for _ in range(turns)
        ]
    )
    speedup, control = (float(np.median(2 * times[:, at] / times[:, at + 1])) for at in (0, 2))
    per_key = np.median(times, axis=0) * 1e6 / (calls * batch)
    warnings = (
        [] if control >= SCALES else [f"void: two computing threads gained {control:.2f} on this machine, not {SCALES}"]
    )
    return {
        "metrics": {
            "us_per_key@1thread": float(per_key[0]),
            "us_per_key@2threads": float(per_key[1] / 2),
            "speedup": speedup,
            "control_speedup": control,
            **({} if splits is None else {"speedup_of_one_call": float(np.median(times[:, 0] / times[:, 4]))}),
        },
        "facts": {
            "settings": peer.settings,
            "rows_checked": checked,
            "bytes_written_a_key": 4 * origin.dim,
            "stored_bytes_a_key": rows.row_bytes(origin.dim),
            "page_cache_share": pages.resident_share(files),
            "warnings": warnings,
            **peer.facts(),
        },
    }


@kernel
def mix_for(steps, value):
    """Arithmetic that touches no memory."""
    for _ in range(steps):
        value = (value ^ (value >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(1)
    return value


def _wall(work: Callable[[int], None], count: int) -> float:
    """Seconds from the moment that all threads are ready until the last one is done."""
    ready = threading.Barrier(count + 1)
    workers = [threading.Thread(target=lambda number=number: (ready.wait(), work(number))) for number in range(count)]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _steps_like(look_up: Callable[[int], None]) -> int:
    """Steps of the loop that take about as long as the look-ups of one thread."""
    mix_for(1, np.uint64(1))
    start = time.perf_counter()
    mix_for(10_000_000, np.uint64(1))
    middle = time.perf_counter()
    look_up(0)
    return max(1000, int(10_000_000 * (time.perf_counter() - middle) / (middle - start)))
