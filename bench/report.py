"""The text table on stdout: one line a subject, median [quartiles] (ratio to the baseline) for each headline metric."""

from __future__ import annotations

from bench import saved

_CLIENTS = {"redis": "redis-py"}
"""Packages that are named after the server they talk to."""


def header(result: dict) -> str:
    """Machine, versions and warnings, before any number."""
    machine = result["machine"]
    packages = ", ".join(f"{_CLIENTS.get(name, name)} {version}" for name, version in machine["packages"].items())
    lines = [
        f"{result['bench']}, {machine['time']}, commit {machine['commit']}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB RAM, kernel {machine['kernel']}, "
        f"load {machine['load'][0]}",
        f"Python {machine['python']}, {packages}",
        "options: " + ", ".join(f"{name}={value}" for name, value in result["options"].items()),
    ]
    lines += [f"warning: {text}" for text in result["warnings"]]
    return "\n".join(lines)


def table(case: dict) -> str:
    """One case as aligned text."""
    lines = [f"\n{case['name']}: {case['title']} ({case['rounds']} round(s), baseline {case['baseline']})"]
    lines += [f"  {note}" for note in case["notes"]]
    columns = [metric for metric in case["headline"] if any(metric in s["metrics"] for s in case["subjects"].values())]
    cells = [["subject", *columns]]
    for name, subject in case["subjects"].items():
        label = saved.label(name, subject["facts"])
        cells.append([label, *(_cell(subject["metrics"].get(metric)) for metric in columns)])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines += [
        "  "
        + "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    for name, subject in case["subjects"].items():
        lines += [f"  {name}: warning: {warning}" for warning in subject["facts"].get("warnings", [])]
    lines += [f"  {name}: no result: {error}" for name, error in case["errors"].items()]
    return "\n".join(lines)


def _cell(metric: dict | None) -> str:
    if metric is None:
        return "-"
    text = _number(metric["median"])
    if metric["rounds"] > 1:
        text += f" [{_number(metric['q1'])}, {_number(metric['q3'])}]"
    return text + (f" ({metric['ratio']['median']:.2f}x)" if metric["ratio"] else "")


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    return (
        f"{value:,.0f}"
        if magnitude >= 100
        else f"{value:.1f}"
        if magnitude >= 10
        else f"{value:.2f}"
        if magnitude >= 0.1
        else f"{value:.4f}"
    )
