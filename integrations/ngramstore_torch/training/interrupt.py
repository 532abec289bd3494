"""Ctrl-C and SIGTERM as a flag, so that a run ends between two steps and saves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_flag() -> Iterator[list[int]]:
    """A list that the first Ctrl-C or SIGTERM makes non-empty; a second one interrupts as usual. Main thread only.

    A signal that is ignored stays ignored, as Ctrl-C is for what a script started in the background.
    """
    flag: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    not_ours = (None, signal.SIG_IGN)  # None: not Python's
    before = {number: handler for number, handler in before.items() if handler not in not_ours}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        flag.append(number)
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield flag
    finally:
        restore()
