"""The paper's tables with ours beside them, as Markdown: its numbers from bench/paper.json, ours from the saved results."""

from __future__ import annotations

import json
from pathlib import Path

from bench import saved
from bench.saved import Found

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())
_BATCHES = (1, 2, 4, 8, 16)


def section(folder: Path = saved.RESULTS) -> str:
    """Space, latency and decoding; what was not measured yet is said."""
    cases = saved.cases(folder)
    parts = [
        f"{PAPER['citation']}. Rows of {PAPER['dim']:,} values, K = {PAPER['max_n']}.",
        _space(cases.get(("paper", "space"))),
        _latency(cases),
        _decode(cases),
    ]
    return "\n\n".join(parts)


def _space(found: Found | None) -> str:
    nums, theirs = PAPER["space_gb"]["num_fgrams"], PAPER["space_gb"]
    lines = [
        "**Space**, gigabytes.",
        "",
        "| | " + " | ".join(_count(num) for num in nums) + " | how |",
        "|---|" + "---:|" * len(nums) + "---|",
        _gb_row("paper: RAM, matrix and dictionary", theirs["ram"], PAPER["row"]),
        _gb_row("paper: LMDB on NVMe", theirs["lmdb_nvme"], PAPER["row"]),
    ]
    if found is None:
        return "\n".join([*lines, "", _missing("space")])
    for subject in found.subjects:
        facts = found.case["subjects"][subject]["facts"]
        how = (
            f"`ngramstore sizes`; for {facts['num_keys']:,} keys it is {found.value(subject, 'error_percent'):+.2f} % off"
            if facts["gb_by"] == "sizes"
            else f"in proportion to {facts['num_keys']:,} keys, {found.value(subject, 'bytes_per_key'):,.0f} B each"
        )
        lines.append(_gb_row(f"here: {subject}", [facts["gb"][str(num)] for num in nums], how))
        if "resident_gb" in facts:
            lines.append(
                _gb_row(
                    f"here: {subject}, all rows in RAM",
                    [facts["resident_gb"][str(num)] for num in nums],
                    "`ngramstore sizes`",
                )
            )
    return "\n".join([*lines, "", f"{PAPER['space_note']}. `bench/results/{found.file}`{_quick(found)}."])


def _latency(cases: dict[tuple[str, str], Found]) -> str:
    lines = [
        f"**Latency.** The paper's times end on the GPU ({PAPER['latency']['what']}); ours end in host memory, on a smaller table "
        "and another machine, so only the order of magnitude is comparable. Here every token ends a stored n-gram; median, "
        "p99 in brackets, milliseconds per batch.",
        "",
        "| | f-grams | " + " | ".join(f"batch {size}" for size in _BATCHES) + " |",
        "|---|---:|" + "---:|" * len(_BATCHES),
    ]
    groups: dict[tuple[str, int | None], dict[int, str]] = {}
    for number in PAPER["latency"]["ms"]:
        text = f"{number['ms_per_batch']:g}" if "ms_per_batch" in number else f"{number['ms_per_token']:g} a token"
        groups.setdefault((number["medium"], number["num_fgrams"]), {})[number["batch"]] = text
    for (medium, num), cells in groups.items():
        lines.append(
            f"| paper: {medium} | {_count(num) if num else 'not said'} | "
            + " | ".join(cells.get(s, "") for s in _BATCHES)
            + " |"
        )
    files = []
    for name, label in (("latency_disk", "cold disk"), ("latency_ram", "memory")):
        found = cases.get(("paper", name))
        if found is None:
            continue
        files.append(f"`bench/results/{found.file}`{_quick(found)}")
        count = next((note.split(" ")[0] for note in found.case["notes"] if " n-grams of " in note), "")
        for subject in found.subjects:
            cells = (_ms(found, subject, size) for size in _BATCHES)
            lines.append(f"| here: {subject}, {label} | {count} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ", ".join(dict.fromkeys(files)) + "." if files else _missing("latency_ram")])


def _decode(cases: dict[tuple[str, str], Found]) -> str:
    lines = [
        f"**Decoding.** The paper's: {PAPER['decode']['what']}. Ours: the same small decoder on a CPU, with the store in front of "
        "it and with a plain `nn.Embedding`, batch 1, milliseconds per token.",
        "",
        "| | with the table | without |",
        "|---|---:|---:|",
    ]
    for model in PAPER["decode"]["models"]:
        cell = f"{model['ms_per_token']:g} ({model['gpu_gb']:g} GB of GPU memory)"
        lines.append(
            f"| paper: {model['model']} | " + (f" | {cell} |" if "no table" in model["model"] else f"{cell} | |")
        )
    files = []
    for (workload, name), found in cases.items():
        if workload != "decode" or not name.startswith("step_") or "batch_1" not in found.subjects:
            continue
        files.append(f"`bench/results/{found.file}`{_quick(found)}")
        for metric in found.case["subjects"]["batch_1"]["metrics"]:
            if metric.startswith("longer_"):
                mode = metric.removeprefix("longer_")
                with_ms, plain_ms = (found.value("batch_1", f"{which}_us_{mode}") / 1e3 for which in ("step", "plain"))
                lines.append(f"| here: {name.removeprefix('step_')} decoder, {mode} | {with_ms:.2f} | {plain_ms:.2f} |")
    return "\n".join(
        [
            *lines,
            "",
            ", ".join(dict.fromkeys(files)) + "." if files else "Not measured here yet: `python -m bench decode`.",
        ]
    )


def _gb_row(label: str, values: list[float | None], how: str) -> str:
    return f"| {label} | " + " | ".join("-" if value is None else f"{value:,.1f}" for value in values) + f" | {how} |"


def _ms(found: Found, subject: str, size: int) -> str:
    if not found.has(subject, f"us@{size}"):
        return ""
    return f"{found.value(subject, f'us@{size}') / 1e3:.3g} [{found.value(subject, f'p99_us@{size}') / 1e3:.3g}]"


def _count(num: int) -> str:
    return f"{num // 10**9}B" if num >= 10**9 else f"{num // 10**6}M"


def _quick(found: Found) -> str:
    return " (a quick run)" if found.is_quick else ""


def _missing(case: str) -> str:
    return f"Not measured here yet: `python -m bench paper --only {case}`."
