"""How a store is opened: memory, mode, what to do about damage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ngramstore.errors import UsageError
from ngramstore.options import checked_threads, choose, is_whole


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
        choose("mode", self.mode, ("r", "rw"))
        choose("on_damage", self.on_damage, ("raise", "missing"))
        checked_threads(self.threads)
        if not is_whole(self.cache_bytes) or self.cache_bytes < 0:
            raise UsageError(f"cache_bytes is {self.cache_bytes!r}", hint="give a number of bytes, 0 for no cache")

    def for_copy(self, identity: str) -> OpenOptions:
        """How a pickled handle reopens: for reading, the same store only."""
        return replace(self, mode="r", identity=identity)
