"""Each write, truncation, fsync, rename and unlink fails in turn: what the tests that inject failures share."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import open_files

from ngramstore import files
from ngramstore.errors import DiskFull

COUNTED = ("write", "truncate", "fsync", "rename", "unlink")


class Failing:
    """Lets the N-th operation fail, counting from 0; with `for_good` all later ones fail as well."""

    def __init__(self, nth: int, code: int, *, for_good: bool) -> None:
        self.nth, self.code, self.for_good = nth, code, for_good
        self.count = 0
        self.log: list[tuple[str, str]] = []

    def __call__(self, operation: str, path: Path) -> None:
        assert operation in COUNTED, operation
        number = self.count
        self.count += 1
        self.log.append((operation, path.name))
        if number == self.nth or (self.for_good and number > self.nth):
            raise OSError(self.code, f"injected into {operation} {number}", str(path))

    @property
    def has_failed(self) -> bool:
        return self.count > self.nth


def each_failure(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path], object],
    act: Callable[[object, Path], None],
    check: Callable[[object, Path, BaseException | None], None],
    room: Path,
) -> int:
    """Run `act` on fresh ground with each operation failing in turn; returns how many there were. No descriptor may leak.

    One failure alone at each N; a disk that stays full from there on at every third N.
    """
    gc.collect()
    gc.freeze()  # or each collection below walks all of numba
    for code, for_good, step in ((errno.EIO, False, 1), (errno.ENOSPC, True, 3)):
        nth = 0
        while True:
            path = room / f"{code}-{nth}"
            gc.collect()
            before = open_files()
            ground = prepare(path)
            failing = Failing(nth, code, for_good=for_good)
            error: BaseException | None = None
            with monkeypatch.context() as patch:
                patch.setattr(files, "observe", failing)
                try:
                    act(ground, path)
                except OSError as caught:
                    error = caught
            if error is not None:
                assert "injected" in str(error), error
                if code == errno.ENOSPC:
                    assert isinstance(error, DiskFull), error
                    assert error.hint
                error.__traceback__ = error.__context__ = error.__cause__ = None
            check(ground, path, error)
            del ground
            gc.collect()
            assert open_files() - before == set(), f"descriptors leaked after {failing.log[nth : nth + 1]}"
            if not failing.has_failed:
                assert error is None
                break
            nth += step
    gc.unfreeze()
    return nth
