"""What the tables of `python -m bench codecs` say together: means, the worst of them, as markdown and as text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "codecs.md"
BEGIN, END = "<!-- trained -->", "<!-- end trained -->"
_LEGEND = """\
From `bench/results/codecs.json`. *zstd*: frames of one row with a dictionary, as in a store. *zstd, wide rows*: frames of at least 1,024
values, as rows of that width would take; at 192 values, the 8 to 9 bytes that a frame adds are 0.4 bits per value. *Entropy*: what an
ideal order-0 coder with one table for all bytes would reach. Checksums, 4 bytes per row, are not included: 0.03 bits per value at D = 1024,
0.17 at 192. *±*: the standard error of the mean over {tables}, which are not independent. All lines come from the same
tables: compare their differences on each table, not the ±.
"""
_IMAGE = "![Held-out perplexity against bits per value](images/codecs.png)"

_BITS = ("raw_bits", "zstd_bits", "wide_bits", "entropy_bits")
_HEAD = "| codec or way | bits per value | zstd | zstd, wide rows | entropy | row error % | worst row % | perplexity % | worst |"


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
            "standard_error_percent": _standard_error([100 * line["nats"] for line in lines]),
            "worst_perplexity_percent": 100 * math.expm1(max(line["nats"] for line in lines)),
        }
        for (family, name), lines in found.items()
    ]


def _standard_error(values: list[float]) -> float | None:
    """Of the mean over the tables; None of one table."""
    return None if len(values) < 2 else float(np.std(values, ddof=1) / math.sqrt(len(values)))


def table(lines: list[dict[str, Any]]) -> str:
    """The summary as markdown."""
    rows = [_HEAD, "|---|" + "---:|" * 8]
    for line in lines:
        bits = " | ".join(f"{line[key]:.2f}" for key in _BITS)
        errors = f"{line['error_percent']:.3g} | {line['worst_row_percent']:.3g}"
        error = line["standard_error_percent"]
        cost = f"{line['perplexity_percent']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
        cost += f" | {line['worst_perplexity_percent']:+.3f}"
        rows.append(f"| {line['family']}, {line['name']} | {bits} | {errors} | {cost} |")
    return "\n".join(rows)


def write_page(result: dict[str, Any]) -> None:
    """Put the summary between the marks of docs/codecs.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + section(result) + rest.split(END)[1])


def section(result: dict[str, Any]) -> str:
    """What stands between the marks of docs/codecs.md, with them."""
    legend = _LEGEND.format(tables=_counted(list(result["tables"])))
    return f"{BEGIN}\n{legend}\n{text(result, is_page=True)}\n\n{_IMAGE}\n{END}"


def _counted(keys: list[str]) -> str:
    """Tables of the names "TEXT seed=SEED", by text and seed where each text has each seed."""
    texts, seeds = ({key.rpartition(" seed=")[at] for key in keys} for at in (0, 2))
    if len(texts) * len(seeds) != len(keys):
        return f"{len(keys)} tables"
    return f"{len(texts)} text{'s' * (len(texts) > 1)} x {len(seeds)} seed{'s' * (len(seeds) > 1)}"


def text(result: dict[str, Any], *, is_page: bool = False) -> str:
    """Machine, tables, the summary: for the results page, or (is_page) as paragraphs of docs/codecs.md."""
    about, settings = result["machine"], result["settings"]
    lines = [
        f"{about['time']}, {about['cpu']}, commit {about['commit']}; models of preset {settings['preset']}, "
        f"{settings['tokens']:,} tokens, D = {settings['dim']}, {settings['windows']} held-out windows, "
        f"learning rate of the f-gram model {settings.get('fgram_lr', 1):g} of the decoder's."
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"] if not is_page]
    for name, found in result["tables"].items():
        facts = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in found["statistics"].items())
        size = f"{found['rows']:,} rows, {found['f32_nats']:.4f} nats with f32 rows"
        lines.append(f"{name}{_corpus(found)}: {size}; {facts}.")
    return ("\n- " if is_page else "\n").join(lines) + "\n\n" + table(result["summary"])


def _corpus(found: dict[str, Any]) -> str:
    """Which text a table is of, in parentheses; nothing where the JSON does not say it."""
    if "corpus_id" not in found:
        return ""
    parts = [*found["files"], f"corpus {found['corpus_id'][:16]}", f"{found['tokens']:,} tokens"]
    return f" ({', '.join(parts)})"
