"""How a store is opened: memory, mode, what to do about damage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ngramstore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What `ngramstore.open` was asked for, checked; what each means is said there."""

    mode: str = "r"
    cache_bytes: int = 256 << 20
    resident: bool = False
    lock_index: bool = False
    threads: int = 1
    on_damage: str = "raise"
    trust_external: bool = False
    identity: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("r", "rw"):
            raise UsageError(f"mode is {self.mode!r}", hint='choose "r" or "rw"')
        if self.on_damage not in ("raise", "missing"):
            raise UsageError(f"on_damage is {self.on_damage!r}", hint='choose "raise" or "missing"')
        if not isinstance(self.threads, (int, np.integer)) or not 1 <= self.threads <= 256:
            raise UsageError(f"threads is {self.threads!r}", hint="give a number from 1 to 256")
        if not isinstance(self.cache_bytes, (int, np.integer)) or self.cache_bytes < 0:
            raise UsageError(f"cache_bytes is {self.cache_bytes!r}", hint="give a number of bytes, 0 for no cache")

    def for_copy(self, identity: str) -> OpenOptions:
        """How a pickled handle reopens: for reading, the same store only."""
        return replace(self, mode="r", identity=identity)
