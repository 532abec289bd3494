"""What the tables of `python -m bench codecs` say together: means, the worst of them, as markdown and as text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_BITS = ("raw_bits", "zstd_bits", "wide_bits", "entropy_bits")
_HEAD = "| codec or way | bits a value | zstd | zstd, wide rows | entropy | row error % | worst row % | perplexity % | worst |"


def summary(tables: dict[str, dict]) -> list[dict[str, Any]]:
    """One line for each codec and way: means over the tables, and the worst cost in perplexity, in percent of it."""
    found: dict[tuple[str, str], list[dict]] = {}
    for table in tables.values():
        for line in table["lines"]:
            found.setdefault((line["family"], line["name"]), []).append(line)
    return [
        {"family": family, "name": name, "is_codec": lines[0]["is_codec"], "tables": len(lines)}
        | {key: float(np.mean([line[key] for line in lines])) for key in (*_BITS, "error_percent", "worst_row_percent")}
        | {
            "perplexity_percent": 100 * math.expm1(float(np.mean([line["nats"] for line in lines]))),
            "worst_perplexity_percent": 100 * math.expm1(max(line["nats"] for line in lines)),
        }
        for (family, name), lines in found.items()
    ]


def table(lines: list[dict[str, Any]]) -> str:
    """The summary as markdown."""
    rows = [_HEAD, "|---|" + "---:|" * 8]
    for line in lines:
        bits = " | ".join(f"{line[key]:.2f}" for key in _BITS)
        errors = f"{line['error_percent']:.3g} | {line['worst_row_percent']:.3g}"
        cost = f"{line['perplexity_percent']:+.3f} | {line['worst_perplexity_percent']:+.3f}"
        rows.append(f"| {line['family']}, {line['name']} | {bits} | {errors} | {cost} |")
    return "\n".join(rows)


def text(result: dict[str, Any]) -> str:
    """The section of the results page: machine, tables, the summary."""
    about, settings = result["machine"], result["settings"]
    lines = [
        f"{about['time']}, {about['cpu']}, commit {about['commit']}",
        f"models of preset {settings['preset']}, {settings['tokens']:,} tokens, D = {settings['dim']}, {settings['windows']} held-out windows",
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    for name, found in result["tables"].items():
        facts = ", ".join(f"{key} {value:.3g}" for key, value in found["statistics"].items())
        lines.append(f"{name}: {found['rows']:,} rows, {found['f32_nats']:.4f} nats with f32 rows; {facts}")
    return "\n".join([*lines, "", table(result["summary"])])
