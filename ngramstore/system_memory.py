"""How much memory this process may count on, also inside a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_LEAST_BYTES = 256 << 20
_UNKNOWN_BYTES = 1 << 30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def default_memory_bytes() -> int:
    """For a build, where nobody says: a quarter of the memory that is free now, 256 MiB at least; 1 GiB where the
    system does not say (macOS)."""
    known = [value for value in (_available(), _cgroup_room()) if value is not None]
    return max(_LEAST_BYTES, min(known) // 4) if known else _UNKNOWN_BYTES


@cache
def limit_bytes() -> int:
    """The machine's memory, or the narrowest limit of this process's control groups as it was when first asked for."""
    limits = [limit for directory, name, _, _ in _groups() if (limit := _number(directory / name)) is not None]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def _available() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_room() -> int | None:
    """What this process's control groups leave, the narrowest of them and those around it; None: none has a limit that
    is known."""
    rooms = [room for group in _groups() if (room := _room(*group)) is not None]
    return min(rooms, default=None)


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Directory of each group, and the names of its limit, of its use, and of the part of that which is given back on demand."""
    v1, v2 = _CGROUP / "memory", _CGROUP
    of_v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    of_v2 = ("memory.max", "memory.current", "inactive_file")
    yield v2, *of_v2  # a container sees its own group here
    yield v1, *of_v1
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        for base, names in (
            (v2, of_v2 if number == "0" else None),
            (v1, of_v1 if "memory" in controllers.split(",") else None),
        ):
            place = Path(name.lstrip("/"))
            if names is not None and ".." not in place.parts:
                for part in (place, *place.parents):
                    yield base / part, *names


def _room(group: Path, limit_name: str, used_name: str, cache_name: str) -> int | None:
    limit, used = _number(group / limit_name), _number(group / used_name)
    if limit is None or used is None:
        return None
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(stat.get(cache_name, 0))  # page cache, which is free as soon as it is wanted
    except (OSError, ValueError):
        pass
    return max(0, limit - used)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
