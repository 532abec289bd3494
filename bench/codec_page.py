"""The tables of docs/codecs.md that `python -m bench.codec_error` measured, and in what company."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import saved


def errors(folder: Path) -> str:
    """What each codec loses on rows of each kind."""
    result = _result(folder)
    kinds = list(result["codecs"][0]["error_percent"])
    found = (
        [_spec(codec), f"{codec['bits_per_value']:.3f}", *(f"{codec['error_percent'][kind]:.3g}" for kind in kinds)]
        for codec in result["codecs"]
    )
    return (
        f"Relative RMS error in percent, D = {result['dim']:,}, five kinds of rows ({_machine(result)}):\n\n"
        f"{_table(['codec', 'bits per value', *kinds], found)}"
    )


def speeds(folder: Path) -> str:
    """How long decoding and encoding take."""
    result = _result(folder)
    found = (
        [
            _spec(codec),
            *(f"{us:.3f}" for us in codec["scatter_us_per_row"].values()),
            f"{codec['scatter_us_one_row_f32']:.2f}",
            f"{codec['encode_mb_per_s']:,}",
        ]
        for codec in result["codecs"]
    )
    return (
        f"Microseconds per row, D = {result['dim']:,}, one thread, {result['num_rows']} rows that fit the L2 cache, best of "
        f"{result['repeats']} runs; one row in a call of its own; encoding\nin MB of f32 a second "
        f"(load {result['machine']['load'][0]:.1f} on {result['machine']['cores']} cores at the start; compare within the table):\n\n"
        f"{_table(['codec', 'to f32', 'to f16', 'to bf16', 'one row', 'encode MB/s'], found)}"
    )


def choices(folder: Path) -> str:
    """The ways in which int4 might have been made."""
    ways = _result(folder)["int4_choices"]
    kinds = list(ways[0]["error_percent"])
    found = (
        [
            way["way"].replace("|", "\\|"),
            str(way["group"]),
            f"{way['bits_per_value']:.2f}",
            *(f"{way['error_percent'][kind]:.2f}" for kind in kinds),
        ]
        for way in ways
    )
    return _table(["variant", "group", "bits", *kinds], found)


TABLES: dict[str, Callable[[Path], str]] = {
    "codec errors": errors,
    "codec speeds": speeds,
    "int4 variants": choices,
}


def _result(folder: Path) -> dict[str, Any]:
    result = saved.plain("codec_error", folder)
    assert result is not None
    return result


def _machine(result: dict[str, Any]) -> str:
    about = result["machine"]
    return f"`bench/results/codec_error.json`, {about['time'][:10]}, commit {about['commit']}, {about['cpu']}"


def _spec(codec: dict[str, Any]) -> str:
    return f"`{json.dumps(codec['spec'])}`"


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, *lines)).replace("\n", f"\n|{'|'.join(rule)}|\n", 1)
