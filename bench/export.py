"""Exports taken apart: what the model's own time is, and what the store adds (quantize, spool, sort, pack and write).

`python -m bench.export` from the root of the repository; needs the extra `torch`. Models with random weights and
made-up f-grams of 2 to 5 tokens: the arithmetic is the same whatever was learned. Rows of random models do not
compress, as those of trained ones hardly do. Every round exports every case once, from the first row to a published
store.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from bench import machine
from ngramstore.mine import Vocabulary
from ngramstore_torch.export.table import Exported, SconeRows, export_table
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.fgram import FgramConfig
from ngramstore_torch.model.scone import SconeModel

RESULT = Path(__file__).parent / "results" / "export.json"
TOKEN_TYPES, MAX_N = 4096, 5


@dataclass(frozen=True)
class Case:
    """Shape of an f-gram model, rows to export, and their codec."""

    rows: int
    dim: int
    layers: int
    codec: str


CASES = (
    Case(100_000, 192, 1, "int8"),
    Case(100_000, 192, 1, "int4"),
    Case(20_000, 512, 2, "int8"),
    Case(4_000, 1024, 2, "int8"),
)
"""The demo's, which is the smallest A_f that anybody will export, and larger ones."""


def source(case: Case) -> SconeRows:
    """A model whose f-gram model is not the identity that it would start as."""
    torch.manual_seed(0)
    heads = case.dim // 64
    decoder = DecoderConfig(vocab_size=TOKEN_TYPES, dim=case.dim, num_layers=1, num_heads=heads)
    fgram = FgramConfig(dim=case.dim, max_n=MAX_N, num_layers=case.layers, num_heads=heads, identity_start=False)
    return SconeRows(SconeModel(decoder, fgram))


def vocabulary(num: int) -> Vocabulary:
    """Distinct n-grams of 2 to MAX_N tokens, shorter ones first, as in a ranking most are."""
    rng = np.random.default_rng(0)
    tokens_MK = rng.integers(0, TOKEN_TYPES, (num + num // 10 + 64, MAX_N)).astype(np.uint32)
    _, first = np.unique(tokens_MK[:, 0].astype(np.uint64) << 32 | tokens_MK[:, 1], return_index=True)
    tokens_MK = tokens_MK[np.sort(first)[:num]]
    lengths_M = np.sort(rng.choice([2, 3, 4, 5], len(tokens_MK), p=[0.4, 0.3, 0.2, 0.1]))
    tokens_MK[np.arange(MAX_N) >= lengths_M[:, None]] = 0
    return Vocabulary(tokens_MK, lengths_M, np.arange(len(tokens_MK), 0, -1))


def measure(case: Case, rounds: int, folder: Path) -> dict:
    """Export once to warm up, then `rounds` times: medians by part, and the ratio of the store's time to the model's."""
    rows, words = source(case), vocabulary(case.rows)
    done: list[Exported] = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            done.append(export_table(rows, words, Path(place) / "store", codec=case.codec))
    done = done[1:]
    parts = {
        name: {
            "wall_s": statistics.median(export.seconds[name] for export in done),
            "cpu_s": statistics.median(export.cpu_seconds[name] for export in done),
        }
        for name in done[0].seconds
    }
    return vars(case) | {
        "rounds": rounds,
        "parts": parts,
        "store_over_model": statistics.median(_share(export.cpu_seconds) for export in done),
        "store_over_model_wall": statistics.median(_share(export.seconds) for export in done),
    }


def _share(parts: dict) -> float:
    return (sum(parts.values()) - parts["model"]) / parts["model"]


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=0, help="Of PyTorch.  [default: as PyTorch chooses]")
@click.option("--scale", default=1.0, show_default=True, help="Rows, as a share of what the cases say.")
@click.option("--json", "path", default=RESULT, show_default=True, type=click.Path(path_type=Path))
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write the stores here.")
def main(rounds: int, threads: int, scale: float, path: Path, folder: Path | None) -> None:
    """Take exports apart and save the numbers."""
    if threads:
        torch.set_num_threads(threads)
    about = machine.describe()
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for case in CASES:
            scaled = Case(max(64, round(case.rows * scale)), case.dim, case.layers, case.codec)
            found.append(measure(scaled, rounds, Path(place)))
            parts = "  ".join(f"{name} {part['cpu_s']:.3f}" for name, part in found[-1]["parts"].items())
            print(f"{scaled}: CPU s {parts}; store / model {found[-1]['store_over_model']:.3f}", flush=True)
    notes = machine.warnings(about, rounds)
    whole = {
        "workload": "export",
        "machine": about,
        "warnings": [*notes, "processor seconds: other work on the machine changes them little"],
        "threads": torch.get_num_threads(),
        "shapes": found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(*notes, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
