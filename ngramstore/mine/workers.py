"""Worker processes that end with the process they work for.

A parent killed with -9 tells nobody. Its workers would finish their shard, writing into a directory whose lock is free again, and
then wait for ever for more.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait


def start_workers(number: int) -> ProcessPoolExecutor:
    """A pool of processes; spawned, for a fork would inherit threads and locks of the caller."""
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), initializer=_end_with_the_parent)


def _end_with_the_parent() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of what a script started in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all of them; what it means, the parent says
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # at once: what is half written has no name yet
