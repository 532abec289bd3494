"""The header of every result: which machine, which versions, how busy; and what that makes doubtful."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "ngramstore", "numpy", "numba", "zstandard", "rocksdict", "lmdb", "torch", "tokenizers", "duckdb", "polars", "redis",
    "safetensors", "pylance", "fbgemm-gpu-cpu",
)  # fmt: skip


def describe() -> dict:
    """Facts about this machine and this software, ready for JSON."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "ram_gib": round(_meminfo("MemTotal") / 2**20, 1),
        "available_gib": round(_meminfo("MemAvailable") / 2**20, 1),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "assertions": __debug__,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def warnings(machine: dict, rounds: int) -> list[str]:
    """What a reader of the numbers has to know about the run."""
    found = []
    if machine["load"][0] > 0.5:
        found.append(f"load average was {machine['load'][0]} at the start: something else was running")
    if rounds < 5:
        found.append(f"{rounds} round(s) only; 5 or more are needed to trust a spread")
    if (machine["cores"] or 1) <= 2:
        found.append(f"{machine['cores']} cores: the operating system shares them with the benchmark")
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _meminfo(field: str) -> int:
    """KiB of one field of /proc/meminfo; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_WRITTEN = (":(top,exclude)bench/results", ":(top,exclude)docs", ":(top,exclude)README.md")


def _commit() -> str | None:
    """The commit of this checkout, with a + where tracked files differ from it, results and documents apart: those are
    what a run writes."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "--", ":(top)", *_WRITTEN],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
