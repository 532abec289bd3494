"""What a block of code does while it runs: its largest anonymous memory, and in which functions of the product its time goes.

A thread looks every 20 ms, or as often as asked for, and at the end. Time goes to the function that is running then, so a
function of less than some samples is noise; a step that keeps the GIL is seen when it lets go of it, with all the time
since the last look.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType

import ngramstore
from bench.process import anonymous_mib

_ROOT = Path(ngramstore.__file__).parent
PRODUCT = (f"{_ROOT}/", f"{_ROOT.parent}/integrations/")
_EVERY_S = 0.02
OFTEN_S = 0.002
"""For memory that a call of some milliseconds takes and gives back; too often where time is measured too."""


class Sampler:
    """Context manager; read `peak_anon_mib`, `stages`, `functions` behind the block. Linux."""

    def __init__(self, folder: Path | None = None, *, every_s: float = _EVERY_S) -> None:
        self._folder = folder
        self._every_s = every_s
        self._thread_id = threading.get_ident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._inner: Counter[str] = Counter()
        self._outer: Counter[str] = Counter()
        self.peak_anon_mib = 0.0
        """Largest RssAnon of the process, above what it was at the start."""
        self.peak_disk_bytes = 0
        """Largest sum of the sizes of the files in `folder`, looked at every second and at the end."""

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by the outermost two functions of the product, longest first; those of 1 % at least."""
        return _largest(self._outer)

    @property
    def functions(self) -> dict[str, float]:
        """Seconds by the innermost function of the product, longest first; those of 1 % at least."""
        return _largest(self._inner)

    def __enter__(self) -> Sampler:
        self._before = anonymous_mib()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.perf_counter()
        disk_at = last
        while not self._done.wait(self._every_s):
            chain = _chain(sys._current_frames().get(self._thread_id))
            now = time.perf_counter()
            self._outer[" > ".join(chain[:2])] += now - last  # type: ignore[assignment]
            self._inner[chain[-1]] += now - last  # type: ignore[assignment]
            last = now
            self.peak_anon_mib = max(self.peak_anon_mib, anonymous_mib() - self._before)
            if self._folder is not None and now >= disk_at:
                disk_at = now + 1
                self.peak_disk_bytes = max(self.peak_disk_bytes, folder_bytes(self._folder))
        self.peak_anon_mib = max(self.peak_anon_mib, anonymous_mib() - self._before)
        if self._folder is not None:
            self.peak_disk_bytes = max(self.peak_disk_bytes, folder_bytes(self._folder))


def folder_bytes(folder: Path) -> int:
    """Bytes that the files under a folder hold, those that vanish meanwhile left out."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            pass
    return total


def _chain(frame: FrameType | None) -> list[str]:
    """Functions of the product that are running, outermost first; `(caller)` where there is none."""
    names = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PRODUCT):
            names.append(f"{Path(code.co_filename).stem}.{code.co_name}")
        frame = frame.f_back
    return names[::-1] or ["(caller)"]


def _largest(seconds: Counter[str]) -> dict[str, float]:
    total = sum(seconds.values())
    return {name: round(value, 2) for name, value in seconds.most_common() if value >= 0.01 * total}
