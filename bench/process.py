"""What Linux says of this process: its memory, and what it made the disk read. OSError where /proc does not tell."""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> dict[str, float]:
    """Resident memory in MiB: anonymous (`RssAnon`, what a memory budget is about) and of files (`RssFile`)."""
    return {kind: value / 1024 for kind, value in _numbers("status", ("RssAnon", "RssFile")).items()}


def anonymous_mib() -> float:
    """The anonymous part alone."""
    return resident_mib()["RssAnon"]


def disk_bytes() -> int:
    """Bytes that this process has had the kernel fetch from a disk so far."""
    return _numbers("io", ("read_bytes",))["read_bytes"]


def _numbers(file: str, names: tuple[str, ...]) -> dict[str, int]:
    lines = Path("/proc/self", file).read_text().splitlines()
    found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in names}
    if missing := set(names) - set(found):
        raise OSError(f"/proc/self/{file} of this system does not tell {', '.join(sorted(missing))}")
    return found
