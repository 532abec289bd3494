"""`python -m bench.scale_plan`: a billion keys on paper, in docs/scale.md: sizes from the code, times from
bench/results/scale.json.

Sizes are what `ngramstore.sizes` says; times are those of the largest store that was built, times the number of keys.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ngramstore
from bench import saved
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.building.held import HeldRows
from ngramstore.store.building.runs import _HELD_SHARE
from ngramstore.store.sizes import Sizes

RESULT = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
KEYS = 1_000_000_000
PLANS: tuple[tuple[str, int], ...] = (("int8", 64), ("int4", 1024), ("int4", 2048))
MEMORY_BYTES = 4 << 30
_LENGTH = 3
_ID_AND_LENGTH_BYTES = 9
_MIXES = ("zipf", "zipf_quarter", "uniform", "hot", "absent")


def main() -> None:
    """Write the measured and the computed tables between the marks of docs/scale.md."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + section(newest()) + after)
    print(f"wrote {PAGE.name}")


def newest() -> dict[str, Any]:
    """The run of RESULT, and the cases of later runs that it does not have."""
    result = json.loads(RESULT.read_text())
    there = {case["name"] for case in result["cases"]}
    more = [found.case for (bench, name), found in saved.cases().items() if bench == "scale" and name not in there]
    return {**result, "cases": result["cases"] + more}


def section(result: dict[str, Any]) -> str:
    """What stands between the marks, with them."""
    parts = [measured(result), plan(result)]
    return f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"


def measured(result: dict[str, Any]) -> str:
    """Every store of the run, side by side."""
    cases = {case["name"]: case for case in result["cases"]}
    sizes = list(cases["build"]["subjects"])
    about = result["machine"]
    loads = f"{about['load'][0]} at the start, {result['load_at_end'][0]} at the end"
    rows = [
        f"{about['time']}, {about['cpu']}, {about['cores']} cores, {about['ram_gib']} GiB RAM, commit {about['commit']}, load {loads}.",
        "",
        "| | " + " | ".join(sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for name, metric, label in _LINES:
        if name in cases:
            subjects = cases[name]["subjects"]
            values = [subjects[size]["metrics"].get(metric) if size in subjects else None for size in sizes]
            rows.append(f"| {label} | " + " | ".join(_cell(value) for value in values) + " |")
    return "\n".join(rows)


_LINES = (
    ("build", "us_per_row", "build, us per row"),
    ("build", "add_s", "of which `add`: encode, sort, spill, s"),
    ("build", "finish_s", "of which merge and write, s"),
    ("build", "anon_mib", "build, peak anonymous memory, MiB"),
    ("build", "index_bytes_per_key", "index, bytes per key"),
    ("build", "bytes_per_key", "all files, bytes per key"),
    ("open", "open_ms", "open, ms"),
    ("open", "first_get_ms", "first look-up, ms"),
    *(
        (mix, metric, f"{mix}, {label}")
        for mix in _MIXES
        for metric, label in (
            ("us_per_key@1", "one key, us"),
            ("mean_us_per_key@1", "one key, mean, us"),
            ("p99_us_per_call@1", "one key, p99, us"),
            ("us_per_key@1024", "1,024 keys, us per key"),
            ("mean_us_per_key@1024", "1,024 keys, mean, us per key"),
            ("p99_us_per_call@1024", "1,024 keys, p99 of a call, us"),
            ("hit_rate@1024", "1,024 keys, hit rate of the row cache"),
        )
        if (mix, metric) != ("absent", "hit_rate@1024")
    ),
    ("changes", "put_us_per_row", "put, us per row"),
    ("changes", "flush_s", "flush, s"),
    ("changes", "compact_s", "compact, s"),
    ("changes", "compact_anon_mib", "compact, peak anonymous memory, MiB"),
    ("verify", "seconds", "verify, s"),
    ("verify", "anon_mib", "verify, peak anonymous memory, MiB"),
)


def plan(result: dict[str, Any]) -> str:
    """A billion keys: sizes computed, times extrapolated by the key (and by the byte, where bytes are moved)."""
    cases = {case["name"]: case for case in result["cases"]}
    largest = list(cases["build"]["subjects"])[-1]
    facts = cases["build"]["subjects"][largest]["facts"]
    num, dim = facts["num_keys"], facts["dim"]
    small = _sizes("int8", dim, num)
    rows = [
        f"Times are scaled from {num:,} keys (int8, D = {dim}) in the run above: costs per key times {KEYS / num:g}, costs per byte",
        f"times the bytes. The build has {MEMORY_BYTES >> 30} GiB.",
        "",
        "| 1,000,000,000 keys | " + " | ".join(f"{codec}, D = {width}" for codec, width in PLANS) + " |",
        "|---|" + "---:|" * len(PLANS),
    ]
    lines: dict[str, list[str]] = {}
    for codec, width in PLANS:
        size = _sizes(codec, width, KEYS)
        spilled = KEYS * (size.row_bytes + 4 * _LENGTH + _ID_AND_LENGTH_BYTES)
        runs = math.ceil(KEYS / (_HELD_SHARE * MEMORY_BYTES // HeldRows.bytes_of_row(size.row_bytes, _LENGTH)))
        by_byte = size.disk_bytes / small.disk_bytes
        entries = {
            "rows, GB": f"{size.rows_bytes / 1e9:,.0f}",
            f"of which checksums ({CHECKSUM_BYTES} B per row), GB": f"{KEYS * CHECKSUM_BYTES / 1e9:.0f}",
            "index, GB (bytes per key)": f"{size.index_bytes / 1e9:.2f} ({size.index_bytes / KEYS:.2f})",
            "tokens, GB": f"{size.tokens_bytes / 1e9:.1f}",
            "store, GB": f"{size.disk_bytes / 1e9:,.0f}",
            "disk while building: store + spilled runs, GB": f"{(size.disk_bytes + spilled) / 1e9:,.0f}",
            "sorted runs to merge": f"{runs:,}",
            "bytes moved by a build: runs out and in, store out, GB": f"{(2 * spilled + size.disk_bytes) / 1e9:,.0f}",
        }
        for name, metric, label in (
            ("build", "seconds", "build, h"),
            ("changes", "compact_s", "compact, h"),
            ("verify", "seconds", "verify, h"),
        ):
            if name in cases and largest in cases[name]["subjects"]:
                seconds = cases[name]["subjects"][largest]["metrics"][metric]["median"]
                entries[label] = f"{seconds * by_byte / 3600:.1f}"
        for label, text in entries.items():
            lines.setdefault(label, []).append(text)
    rows += [f"| {label} | " + " | ".join(texts) + " |" for label, texts in lines.items()]
    return "\n".join(rows)


def _sizes(codec: str, dim: int, num: int) -> Sizes:
    return ngramstore.sizes(num, dim, codec=codec, mean_length=_LENGTH)[0]


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "not measured"
    value = metric["median"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
