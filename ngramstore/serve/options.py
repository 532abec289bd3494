"""How a store is opened: memory, mode, what to do about damage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ngramstore.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """All of `ngramstore.open`'s choices."""

    mode: str = "r"
    """"r": look up only, any number of processes, also on a read-only mount. "rw": the one writer."""

    cache_bytes: int = 256 << 20
    """Budget of the row cache: encoded rows and 48 bytes of bookkeeping each. 0: no cache. Raise until `stats()["hit_rate"]`
    is flat."""

    resident: bool = False
    """Hold all rows in memory: no cache, no reads. Costs `row_bytes` a row; right when the store fits."""

    lock_index: bool = False
    """Copy the index into memory and verify all of it at open, instead of mapping it and verifying pages on first touch."""

    threads: int = 1
    """Large look-ups, from 4,096 positions or rows on, are split over so many threads, the caller's among them. Worth it for
    prompts where cores are idle; small look-ups never leave the caller's thread."""

    on_damage: str = "raise"
    """A damaged row raises DamagedRows (after the rest of the batch is served), or counts as "missing"."""

    trust_external: bool = False
    """Let the manifest name files outside of its directory (`ngramstore import` writes such), and read rows from them."""

    identity: str | None = None
    """Refuse any other store than this one (StaleStore)."""

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
