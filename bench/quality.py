"""What f-grams do to held-out loss: text x tokenizer x training tokens x model x f-grams x seed, and the crossover.

`python -m bench.quality --cache DIR` from the root of the repository; needs the extras `mine` and `torch`. Every cell
is one training run; cells that share a seed see the same batches and are measured on the same held-out windows. Its
result is saved as soon as it is
there: the same command goes on where it was stopped.

Models, all with the same decoder unless it says otherwise: plain; scone; wide and deep (plain, about twice the FLOPs a
token); equal (plain, trained on more tokens until it has cost what SCONE cost with its f-gram model); hashed (tables of
as many rows as there are
f-grams, summed into the input: Over-Encoding). A negative difference means better than plain after as many tokens.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from bench import machine
from bench.quality_cells import CODE, MODELS, Cell, Data, measure, num_parameters
from bench.quality_report import differences, lines
from ngramstore.cli.common import Count
from ngramstore.files import publish
from ngramstore_torch.experiment.presets import QUICK, Preset

RESULT = Path(__file__).parent / "results" / "quality.json"
GRID = replace(
    QUICK, name="grid", corpus_bytes=0, num_fgrams=100_000, max_windows=400, train=replace(QUICK.train, fgram_lr=0.1)
)
"""The quick demo's decoder (one layer, 128 wide) on a whole corpus: a cell of 400,000 tokens takes one or two minutes
of one core."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the grid: every combination of its values, seeds outermost."""

    name: str
    models: tuple[str, ...] = ("plain", "scone")
    tokenizers: tuple[int, ...] = (4096,)
    tokens: tuple[int, ...] = (400_000,)
    num_fgrams: tuple[int, ...] = (100_000,)
    fgram_layers: tuple[int, ...] = (1,)
    fgram_widths: tuple[int, ...] = (0,)
    starts: tuple[str, ...] = ("identity",)
    fgram_lrs: tuple[float, ...] = (GRID.train.fgram_lr,)
    seeds: tuple[int, ...] = (0, 1, 2)

    def cells(self, texts: Sequence[str]) -> Iterator[Cell]:
        """In order; a cell that several combinations share comes up several times."""
        for seed, tokens, tokenizer, text, size, layers, width, start, rate, model in itertools.product(
            self.seeds, self.tokens, self.tokenizers, texts, self.num_fgrams, self.fgram_layers,
            self.fgram_widths, self.starts, self.fgram_lrs, self.models,
        ):  # fmt: skip
            has_fgrams = model in ("scone", "equal")
            yield Cell(
                text=text,
                model=model,
                tokenizer=tokenizer,
                tokens=tokens,
                num_fgrams=size if has_fgrams or model == "hashed" else 0,
                fgram_layers=layers if has_fgrams else 0,
                fgram_width=width if has_fgrams else 0,
                start=start if has_fgrams else "",
                fgram_lr=rate if model == "scone" else 0,
                seed=seed,
            )


STAGES = (
    Stage(name="plain and SCONE"),
    Stage(name="rivals", models=("equal", "hashed", "deep", "wide")),
    Stage(name="crossover", tokens=(100_000, 200_000, 800_000, 1_600_000)),
    Stage(name="tokenizer", tokenizers=(1024,)),
    Stage(name="f-gram model", models=("scone",), fgram_layers=(2, 4)),
    Stage(name="number of f-grams", models=("scone",), num_fgrams=(10_000, 30_000, 300_000)),
    Stage(name="start", models=("scone",), starts=("random",)),
    Stage(name="rate", models=("scone",), tokens=(400_000, 1_600_000), fgram_lrs=(0.3, 1.0)),
    Stage(name="long", tokens=(3_200_000,)),
)
"""The published grid, the most important first."""


def run(path: Path, cells: Sequence[Cell], preset: Preset, data: Data) -> dict:
    """Measure every cell that the JSON at `path` does not have, saving each at once; returns what the file holds.

    Raises UsageError where the file was made with another preset, text or model of a name.
    """
    settings = json.loads(json.dumps(asdict(replace(preset, train=replace(preset.train, tokens=1, seed=0)))))
    saved = json.loads(path.read_text()) if path.exists() else {"settings": settings, "texts": {}, "cells": {}}
    if saved.get("settings") != settings:
        raise click.UsageError(f"{path} was made with other settings; give another --json")
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = {cell.key: cell for cell in cells}
    for number, (key, cell) in enumerate(wanted.items(), 1):
        if key in saved["cells"]:
            if saved["cells"][key]["trained_parameters"] != num_parameters(cell, preset, data):
                raise click.UsageError(f"{path}: {key} was another model; take the cell out to train it anew")
            continue
        name = f"{cell.text} {cell.tokenizer}"
        about = data.about(cell.text, cell.tokenizer)
        if saved["texts"].setdefault(name, about) != about:
            raise click.UsageError(f"{path} was made with another text of the name {cell.text!r}; give another --json")
        print(f"[{number}/{len(wanted)}] {key}", file=sys.stderr, flush=True)
        described = machine.describe()
        saved["cells"][key] = measure(cell, preset, data) | {"commit": described["commit"]}
        done = list(saved["cells"].values())
        saved = {
            "workload": "quality",
            "machine": described,
            "warnings": [
                *machine.warnings(described, len({c["seed"] for c in done})),
                "the machine was shared: no times, compare FLOPs and processor seconds",
            ],
            "settings": settings,
            "texts": saved["texts"],
            "differences": differences(done),
            "cells": saved["cells"],
        }
        publish(path, (json.dumps(saved, indent=1) + "\n").encode())
    return saved


def _texts(values: Sequence[str]) -> dict[str, list[Path]]:
    """NAME=PATH, several of one name together; the name alone of the text that needs no path."""
    found: dict[str, list[Path]] = {}
    for value in values or (CODE,):
        name, _, path = value.partition("=")
        if not path and name != CODE:
            raise click.BadParameter(f"{value!r} is neither {CODE!r} nor NAME=PATH", param_hint="--text")
        found.setdefault(name, []).extend([Path(path)] if path else [])
    return found


@click.command()
@click.option(
    "--text", "texts", multiple=True, help=f"{CODE} (Python's standard library), or NAME=PATH; repeat for more."
)
@click.option("--stage", "stages", multiple=True, type=click.Choice([s.name for s in STAGES]), help="Default: all.")
@click.option(
    "--tokenizer", "tokenizers", multiple=True, type=Count(), help="Own grid, no stages: sizes of tokenizers."
)
@click.option("--tokens", multiple=True, type=Count(), help="Own grid: training tokens.")
@click.option("--fgrams", "num_fgrams", multiple=True, type=Count(), help="Own grid: numbers of f-grams.")
@click.option("--fgram-layers", multiple=True, type=int, help="Own grid: layers of the f-gram model.")
@click.option("--fgram-width", "fgram_widths", multiple=True, type=int, help="Own grid: its widths, 0 the decoder's.")
@click.option("--start", "starts", multiple=True, type=click.Choice(["identity", "random"]), help="Own grid.")
@click.option("--fgram-lr", "fgram_lrs", multiple=True, type=float, help="Own grid: rates of the f-gram model.")
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), help="Own grid: models.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Own grid, or in place of a stage's 0, 1 and 2.")
@click.option(
    "--lr", default=GRID.train.lr, show_default=True, help="Another rate of everything; needs another --json."
)
@click.option("--threads", default=0, help="Of PyTorch.  [default: as PyTorch chooses]")
@click.option("--json", "path", default=RESULT, show_default=True, type=click.Path(path_type=Path))
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Keep corpora and vocabularies here.")
def main(
    texts: tuple[str, ...], stages: tuple[str, ...], lr: float, threads: int, path: Path, cache: Path, **grid: tuple
) -> None:
    """Run the stages of the published grid, or a grid of one's own, without the cells that the JSON has."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    given = {name: values for name, values in grid.items() if values}
    if given.keys() - {"seeds"}:
        chosen = [Stage(name="own", **given)]
    else:
        chosen = [replace(stage, **given) for stage in STAGES if not stages or stage.name in stages]
    named = _texts(texts)
    cells = [cell for stage in chosen for cell in stage.cells(list(named))]
    preset = replace(GRID, train=replace(GRID.train, lr=lr))
    saved = run(path, cells, preset, Data(cache, preset, named))
    print("\n".join(lines(differences(list(saved["cells"].values())))))


if __name__ == "__main__":
    main()
