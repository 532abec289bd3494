"""Ctrl-C at each place where it can come, in turn: what the tests that interrupt share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

_PLACES = ("call", "c_return")
"""Python looks for signals as a function begins, and as one written in C has ended; the block of a `with` has begun by then."""


class Interrupt:
    """A profile function that raises KeyboardInterrupt at the N-th place, counting from 0, in files of a folder."""

    def __init__(self, nth: int, folder: str) -> None:
        self.left, self.folder = nth, folder

    @property
    def has_come(self) -> bool:
        return self.left < 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in _PLACES and self.folder in frame.f_code.co_filename and not self.has_come:
            self.left -= 1
            if self.has_come:
                raise KeyboardInterrupt


def is_interrupted(act: Callable[[], object], nth: int, folder: str) -> bool:
    """Run `act` with Ctrl-C at the N-th place in `folder`; False: it was at its end before."""
    interrupt = Interrupt(nth, folder)
    sys.setprofile(interrupt)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return interrupt.has_come


def each_interrupt(act: Callable[[], object], check: Callable[[], None], folder: str = "ngramstore/serve/") -> int:
    """Run `act` again and again, with Ctrl-C at each place in turn, `check` after each; returns how many there were."""
    nth = 0
    while is_interrupted(act, nth, folder):
        check()
        nth += 1
    check()
    return nth
