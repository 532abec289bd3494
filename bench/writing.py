"""The ways in which a large new file can be written, beside each other: what `FileWriter` chooses from (docs/design.md).

`python -m bench.writing --dir FOLDER`: each round writes, syncs and removes a file once in every way, in random order. What was
written is compared with what was given, before it counts. The disk must be a real one: nothing of this holds on a tmpfs.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import click
import numpy as np

from bench import machine
from ngramstore import file_writer
from ngramstore.file_writer import FileWriter, aligned_bytes

RESULT = Path(__file__).parent / "results" / "writing.json"
PIECE_BYTES = 4 << 20


def write(way: file_writer.Way, path: Path, piece: np.ndarray, count: int) -> dict[str, float]:
    """Seconds of the writes and of the sync behind them, and processor time of both."""
    before, began = os.times(), time.perf_counter()
    with mock.patch.object(file_writer, "WAYS", (way,)), FileWriter(path, is_uncached=True) as writer:
        for _ in range(count):
            writer.write(piece)
        written = time.perf_counter()
        writer.finish()
    ended, after = time.perf_counter(), os.times()
    return {
        "seconds": ended - began,
        "sync_s": ended - written,
        "cpu_s": after.user + after.system - before.user - before.system,
    }


def check(path: Path, piece: np.ndarray, count: int) -> None:
    """RuntimeError unless the file holds that many pieces."""
    with open(path, "rb") as file:
        same = all(file.read(len(piece)) == piece.tobytes() for _ in range(count)) and not file.read(1)
    if not same:
        raise RuntimeError(f"{path} does not hold what was written to it")


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, object]]:
    """By way: medians and values of each metric, and the median of the ratios to direct writes in the same round."""
    found: dict[str, dict[str, object]] = {}
    for way in rounds[0]:
        found[way] = {
            metric: {
                "median": statistics.median(one[way][metric] for one in rounds),
                "values": [one[way][metric] for one in rounds],
            }
            for metric in rounds[0][way]
        }
        found[way]["over_direct"] = statistics.median(one[way]["seconds"] / one["direct"]["seconds"] for one in rounds)
    return found


@click.command()
@click.option(
    "--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="On the disk to measure."
)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--mib", type=click.IntRange(4), default=1024, show_default=True, help="Size of the file.")
@click.option(
    "--json", "result_file", type=click.Path(dir_okay=False, path_type=Path), default=RESULT, show_default=True
)
def main(folder: Path | None, rounds: int, mib: int, result_file: Path) -> None:
    """Write a file in every way that FileWriter knows; saves seconds, their sync and processor time as JSON."""
    about = machine.describe()
    piece = aligned_bytes(PIECE_BYTES)
    piece[:] = np.random.default_rng(0).integers(0, 256, PIECE_BYTES, np.uint8)
    count = mib * (1 << 20) // PIECE_BYTES
    ways = list(file_writer.WAYS)
    chosen = random.Random(0)
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "file"
        for _ in range(rounds):
            chosen.shuffle(ways)
            one = {}
            for way in ways:
                one[way.__name__] = write(way, path, piece, count)
                check(path, piece, count)
                path.unlink()
            found.append(one)
    result = {"workload": "writing", "machine": about, "mib": count * PIECE_BYTES >> 20, "ways": summary(found)}
    result_file.write_text(json.dumps(result, indent=1) + "\n")
    for way, numbers in result["ways"].items():
        click.echo(f"{way:8} {numbers['seconds']['median']:.2f} s, {numbers['over_direct']:.2f} of direct")  # type: ignore[index]


if __name__ == "__main__":
    main()
