"""What f-grams do to held-out loss: tokenizer size x training tokens x f-gram model x number of f-grams, and the crossover.

`python -m bench.quality --help` from the root of the repository; needs the extras `mine` and `torch`. The corpus is the source of
Python's standard library. Every cell is one training run from the same seed over the same batches, measured on the same held-out
windows, and its result is saved as soon as it is there: the same command goes on where it was stopped.

Models: plain (the decoder alone), scone, wide and deep (plain, about twice the FLOPs a token), hashed (tables of as many rows as
there are f-grams, summed into the input). A negative difference means better than plain after as many tokens.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import click
import torch

from bench import machine
from ngramstore.files import publish
from ngramstore.mine import TokenShards, Vocabulary, mine_ngrams, open_corpus
from ngramstore_torch.checkpoint import LanguageModel
from ngramstore_torch.cli_data import Count
from ngramstore_torch.corpus import tag_corpus
from ngramstore_torch.costs import cost_of
from ngramstore_torch.data import TaggedTokens
from ngramstore_torch.evaluate import evaluate_model
from ngramstore_torch.experiment import python_sources
from ngramstore_torch.hashed import HashedConfig, HashedModel
from ngramstore_torch.presets import DEMO, Preset
from ngramstore_torch.scone import PlainModel, SconeModel
from ngramstore_torch.train import train_model

RESULT = Path(__file__).parent / "results" / "quality.json"
MODELS = ("plain", "scone", "wide", "deep", "hashed")


@dataclass(frozen=True)
class Cell:
    """One training run. What a model does not depend on is 0 or "": the plain decoder is trained once for all f-grams."""

    model: str
    tokenizer: int
    tokens: int
    num_fgrams: int = 0
    fgram_layers: int = 0
    start: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


class Data:
    """Corpora by tokenizer size and tags by number of f-grams, made when first asked for."""

    def __init__(self, folder: Path, preset: Preset) -> None:
        self.folder, self.preset = folder, preset
        self.tagged = lru_cache(maxsize=1)(self._tagged)

    def corpus(self, tokenizer: int) -> TokenShards:
        files = python_sources(self.preset.corpus_bytes)
        return open_corpus(files, tokenizer=f"train:{tokenizer}", cache=self.folder, errors="replace", progress=True)

    def vocabulary(self, corpus: TokenShards, size: int) -> Vocabulary:
        path = self.folder / f"vocab-{corpus.identity[:16]}-{corpus.tokenizer_id[:16]}-{size}.ngv"
        if not path.exists():
            mine_ngrams(
                corpus,
                work=path.with_suffix(".work"),
                max_n=self.preset.max_n,
                size=size,
                held_out=self.preset.held_out,
            ).save(path)
        return Vocabulary.load(path)

    def _tagged(self, tokenizer: int, num_fgrams: int) -> tuple[TaggedTokens, TaggedTokens, int]:
        corpus = self.corpus(tokenizer)
        vocabulary = self.vocabulary(corpus, num_fgrams) if num_fgrams else None
        assert corpus.tokenizer is not None
        return *tag_corpus(corpus, vocabulary, held_out=self.preset.held_out), corpus.tokenizer.vocab_size


def make(cell: Cell, preset: Preset, vocab_size: int) -> LanguageModel:
    """The cell's model, its random start fixed by the seed."""
    torch.manual_seed(cell.seed)
    decoder = preset.decoder(vocab_size)
    if cell.model == "scone":
        fgram = replace(preset.fgram(), num_layers=cell.fgram_layers, identity_start=cell.start == "identity")
        return SconeModel(decoder, fgram)
    if cell.model == "hashed":
        return HashedModel(decoder, HashedConfig(num_rows=cell.num_fgrams, max_n=preset.max_n))
    if cell.model == "plain":
        return PlainModel(decoder)
    return PlainModel(decoder.scaled(2.0, by="width" if cell.model == "wide" else "depth"))


def measure(cell: Cell, preset: Preset, data: Data) -> dict:
    """Train and measure one cell. CPU seconds are of all threads: they say the cost where others share the machine."""
    train, held, vocab_size = data.tagged(cell.tokenizer, cell.num_fgrams if cell.model == "scone" else 0)
    model = make(cell, preset, vocab_size)
    config = replace(preset.train, tokens=cell.tokens, seed=cell.seed)
    cpu = time.process_time()
    result = train_model(model, train, config, progress=True)
    if result.interrupted:
        raise KeyboardInterrupt
    cpu = time.process_time() - cpu
    found = evaluate_model(model, held, seq_len=config.seq_len, max_windows=preset.max_windows)
    cost = cost_of(model)
    return asdict(cell) | {
        "nats": found.nats,
        "train_nats": sum(result.losses[-20:]) / 20,
        "matched": found.matched,
        "tokens_trained": result.tokens,
        "parameters": cost.decoder_parameters if cell.model == "scone" else cost.parameters,
        "flops_per_token": cost.flops_per_token,
        "wall_s": result.seconds,
        "cpu_s": cpu,
        "batch_s": result.batch_seconds,
        "tokens_per_s": result.tokens_per_second,
        "threads": torch.get_num_threads(),
        "load": machine.describe()["load"][0],
    }


def differences(cells: list[dict]) -> list[dict]:
    """Every cell against the plain decoder of the same tokenizer, tokens and seed; and where it crosses zero."""
    plain = {(c["tokenizer"], c["tokens"], c["seed"]): c["nats"] for c in cells if c["model"] == "plain"}
    curves: dict[tuple, list[tuple[int, float]]] = {}
    for c in cells:
        base = plain.get((c["tokenizer"], c["tokens"], c["seed"]))
        if c["model"] != "plain" and base is not None:
            key = tuple(c[name] for name in ("model", "tokenizer", "num_fgrams", "fgram_layers", "start", "seed"))
            curves.setdefault(key, []).append((c["tokens"], c["nats"] - base))
    names = ("model", "tokenizer", "num_fgrams", "fgram_layers", "start", "seed")
    return [
        dict(zip(names, key, strict=True))
        | {"difference": {str(tokens): gain for tokens, gain in sorted(points)}, "crossover": crossover(sorted(points))}
        for key, points in sorted(curves.items())
    ]


def crossover(points: list[tuple[int, float]]) -> float | str:
    """Tokens at which the difference turns negative for good, interpolated over log tokens, or on which side all points lie."""
    if all(gain < 0 for _, gain in points):
        return f"below {points[0][0]}"
    if points[-1][1] >= 0:
        return f"above {points[-1][0]}"
    last = max(i for i, (_, gain) in enumerate(points) if gain >= 0)
    (t0, g0), (t1, g1) = points[last], points[last + 1]
    return math.exp(math.log(t0) + (math.log(t1) - math.log(t0)) * g0 / (g0 - g1))


@click.command()
@click.option("--tokenizer", "tokenizers", multiple=True, type=Count(), default=("1024",), show_default=True)
@click.option("--tokens", "budgets", multiple=True, type=Count(), default=("400k", "1M"), show_default=True)
@click.option("--fgrams", multiple=True, type=Count(), default=("100k",), show_default=True)
@click.option("--fgram-layers", multiple=True, type=int, default=(1,), show_default=True)
@click.option("--start", "starts", multiple=True, type=click.Choice(["identity", "random"]), default=("identity",))
@click.option(
    "--model", "models", multiple=True, type=click.Choice(MODELS), default=("plain", "scone"), show_default=True
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0,), show_default=True)
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16.")
@click.option("--json", "path", default=RESULT, show_default=True, type=click.Path(path_type=Path))
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Keep corpora and vocabularies here.")
def main(
    tokenizers: tuple[int, ...],
    budgets: tuple[int, ...],
    fgrams: tuple[int, ...],
    fgram_layers: tuple[int, ...],
    starts: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    bf16: bool,
    path: Path,
    cache: Path,
) -> None:
    """Run every cell of the grid that the JSON does not have yet, smallest first."""
    preset = replace(DEMO, train=replace(DEMO.train, bf16=bf16))
    wanted: dict[str, Cell] = {}
    for seed, tokens, tokenizer, size, layers, start, model in itertools.product(
        seeds, sorted(budgets), tokenizers, fgrams, fgram_layers, starts, models
    ):
        uses_fgrams, uses_rows = model == "scone", model in ("scone", "hashed")
        cell = Cell(
            model=model,
            tokenizer=tokenizer,
            tokens=tokens,
            num_fgrams=size if uses_rows else 0,
            fgram_layers=layers if uses_fgrams else 0,
            start=start if uses_fgrams else "",
            seed=seed,
        )
        wanted[cell.key] = cell
    settings = {"preset": asdict(replace(preset, train=replace(preset.train, tokens=1))), "bf16": bf16}
    settings = json.loads(json.dumps(settings))
    saved = json.loads(path.read_text()) if path.exists() else {"settings": settings, "cells": {}}
    if saved["settings"] != settings:
        raise click.UsageError(f"{path} was made with other settings; give another --json")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Data(cache, preset)
    for number, (key, cell) in enumerate(wanted.items(), 1):
        if key in saved["cells"]:
            continue
        print(f"[{number}/{len(wanted)}] {key}", file=sys.stderr)
        saved["cells"][key] = measure(cell, preset, data)
        about = machine.describe()
        whole = {
            "workload": "quality",
            "machine": about,
            "warnings": [*machine.warnings(about, len(seeds)), "wall times are of a shared machine: compare cpu_s"],
            "settings": settings,
            "differences": differences(list(saved["cells"].values())),
            "cells": saved["cells"],
        }
        publish(path, (json.dumps(whole, indent=1) + "\n").encode())
    for line in differences(list(saved["cells"].values())):
        gains = "  ".join(f"{int(tokens):,}: {gain:+.4f}" for tokens, gain in line["difference"].items())
        print(
            f"{line['model']} V={line['tokenizer']} S={line['num_fgrams']} layers={line['fgram_layers']} {line['start']}"
        )
        print(f"  {gains}  crossover: {line['crossover']}")


if __name__ == "__main__":
    main()
