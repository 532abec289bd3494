"""How much memory a build may take when nobody says: a quarter of what is free, also inside a container."""

from __future__ import annotations

from pathlib import Path

_LEAST_BYTES = 256 << 20
_UNKNOWN_BYTES = 1 << 30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def default_memory_bytes() -> int:
    """A quarter of the memory that is free now, 256 MiB at least; 1 GiB where the system does not say (macOS)."""
    known = [value for value in (_available(), _cgroup_room()) if value is not None]
    return max(_LEAST_BYTES, min(known) // 4) if known else _UNKNOWN_BYTES


def _available() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_room() -> int | None:
    """What this process's own control group leaves, if it has a limit."""
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(0, limit - used)
