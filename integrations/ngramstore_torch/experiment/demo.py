"""The whole of SCONE on real text, from a folder of files to text generated from a store: what `ngramstore demo` runs.

Every stage leaves its result in the demo's folder, complete or not at all, and a second run goes on behind the last one.
Every model sees the same tokens in the same order and is measured on the same held-out windows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ngramstore
from ngramstore.errors import UsageError
from ngramstore.files import publish
from ngramstore.mine import TokenShards, Vocabulary, mine_ngrams, open_corpus, python_sources, report
from ngramstore_torch.data.batches import TaggedTokens
from ngramstore_torch.data.corpus import tag_corpus
from ngramstore_torch.experiment.comparison import Experiment, table
from ngramstore_torch.experiment.demo_report import plot_demo, verdict
from ngramstore_torch.experiment.presets import DEMO, QUICK, Preset
from ngramstore_torch.model.scone import SconeModel
from ngramstore_torch.serving.embedding import NGramEmbedding
from ngramstore_torch.serving.loop import generate_served

CODECS = ("int8", "int4")
CACHE_SHARES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
_HIT_RATE_SHARE = 0.1
_NEW_TOKENS = 120
_PROMPT_TOKENS = 24
_STEP_TOKENS = 128  # positions a look-up when hit rates are measured


def run(
    folder: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    quick: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Mine, train both decoders, export int8 and int4, evaluate, generate; leave report.json and report.png in `folder`.

    texts: files and folders to learn from; none: the sources of Python's standard library. Returns what report.json holds.
    Raises UsageError where the folder holds a demo of other text or settings.
    """
    preset, folder = (QUICK if quick else DEMO), Path(folder)
    started = time.perf_counter()
    inputs = [Path(text) for text in texts] or python_sources(preset.corpus_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"1/6 read     {len(inputs)} files" + ("" if texts else " of Python's standard library"))
    corpus = open_corpus(
        inputs, tokenizer=f"train:{preset.tokenizer_size}", cache=folder / "cache", errors="replace", progress=progress
    )
    identity = {
        "tokenizer_id": corpus.tokenizer_id,
        "tokenizer_name": corpus.tokenizer_name,
        "corpus_id": corpus.identity,
        "preset": preset.name,
    }
    _same_demo(folder / "demo.json", identity)
    say(
        f"             {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents, {preset.tokenizer_size:,} token types"
    )

    vocabulary = _mined(corpus, preset, folder, progress)
    matches = report(vocabulary, corpus, preset.held_out)
    say(f"2/6 mine     {len(vocabulary):,} f-grams; they end at {matches.held_out.coverage:.0%} of held-out tokens")
    train, held = tag_corpus(corpus, vocabulary, held_out=preset.held_out)

    say(f"3/6 train    {preset.train.num_steps * preset.train.tokens_per_step:,} tokens, the plain decoder and SCONE")
    experiment = Experiment(
        preset,
        train,
        held,
        vocabulary,
        preset.tokenizer_size,
        folder,
        identity=identity,
        progress=progress,
        resume=True,
    )
    experiment.plain()
    model = experiment.scone()
    if corpus.tokenizer is not None:
        corpus.tokenizer.save(folder / "scone" / "tokenizer.json")  # `ngramstore generate` looks for it there
    say(f"4/6 export   {len(vocabulary):,} rows of {preset.dim} values, as {' and '.join(CODECS)}")
    stores = {codec: experiment.served(model, codec) for codec in CODECS}
    say("5/6 measure  served from the stores")
    say(table(experiment.measured))

    hit_rates = _hit_rates(stores["int8"], held, preset)
    text, speed = _generated(model, stores["int8"], corpus, held)
    say(f"6/6 generate {speed:.0f} tokens/s from the int8 store:\n{_indented(text)}")
    result = _outcome(experiment) | {
        "tokens_per_s": speed,
        "hit_rate": hit_rates[_HIT_RATE_SHARE],
        "hit_rate_by_cache_share": {str(share): rate for share, rate in hit_rates.items()},
        "seconds": time.perf_counter() - started,
        "matched": matches.as_dict(),
        "store_bytes": {codec: _store_bytes(path) for codec, path in stores.items()},
        "generated": text,
        **identity,
        "threads": torch.get_num_threads(),
    }
    publish(folder / "report.json", (json.dumps(result, indent=1) + "\n").encode())
    plot_demo(result, folder / "report.png")
    say(f"\nSCONE served from disk is {verdict(result['gain_nats'])} than the plain decoder on held-out text.")
    say(f"{result['seconds']:.0f} s in all; {folder / 'report.json'} and {folder / 'report.png'} have the rest.")
    return result


def _outcome(experiment: Experiment) -> dict[str, Any]:
    """What training and measuring gave, as report.json holds it."""
    nats = {line.name: line.nats for line in experiment.measured}
    names = {"plain": "plain", "scone_live": "scone", **{f"store_{codec}": f"scone, {codec} store" for codec in CODECS}}
    return {
        "perplexity": {key: float(np.exp(nats[name])) for key, name in names.items()},
        "nats": {key: nats[name] for key, name in names.items()},
        "gain_nats": nats["plain"] - nats["scone, int8 store"],
        "losses": {name: found.losses for name, found in experiment.results.items()},
        "models": [asdict(line) for line in experiment.measured],
    }


def _same_demo(path: Path, identity: dict[str, str]) -> None:
    """Remember what this folder's demo is about; refuse to mix two."""
    if not path.exists():
        publish(path, (json.dumps(identity, indent=1) + "\n").encode())
    elif json.loads(path.read_text()) != identity:
        raise UsageError(
            f"{path.parent} holds a demo of other text or settings", hint="give another --out, or delete that folder"
        )


def _mined(corpus: TokenShards, preset: Preset, folder: Path, progress: bool) -> Vocabulary:
    path = folder / "vocabulary.ngv"
    if path.exists():
        return Vocabulary.load(path)
    return mine_ngrams(
        corpus,
        work=folder / "mining",
        max_n=preset.max_n,
        size=preset.num_fgrams,
        held_out=preset.held_out,
        save_to=path,
        progress=progress,
    )


def _hit_rates(path: Path, held: TaggedTokens, preset: Preset) -> dict[float, float]:
    """Hit rate of the row cache over held-out text, read once in order, by share of the rows that the cache can hold."""
    tokens = np.asarray(held.tokens_P, np.uint32)
    lines = tokens[: len(tokens) // _STEP_TOKENS * _STEP_TOKENS].reshape(-1, 1, _STEP_TOKENS)
    rates = {}
    for share in CACHE_SHARES:
        with ngramstore.open(path, cache_bytes=0) as probe:
            (needed,) = ngramstore.sizes(len(probe), probe.dim, codec=probe.spec.codec.spec())
        with ngramstore.open(path, cache_bytes=max(1, int(share * needed.cache_bytes_for_all))) as store:
            for line in lines:
                store.lookup(line)
            rates[share] = store.stats()["hit_rate"] or 0.0
    return rates


def _generated(model: SconeModel, path: Path, corpus: TokenShards, held: TaggedTokens) -> tuple[str, float]:
    """Text continued from held-out tokens, each embedding from the store through its cache; and tokens a second."""
    assert corpus.tokenizer is not None
    prompt = np.asarray(held.tokens_P[:_PROMPT_TOKENS], np.uint32)
    new = min(_NEW_TOKENS, model.decoder.config.max_positions - len(prompt))
    model.eval()
    with ngramstore.open(path) as store:
        started = time.perf_counter()
        tokens = list(generate_served(model.decoder, NGramEmbedding(store, model.decoder.tokens), prompt, new))
        seconds = time.perf_counter() - started
    return corpus.tokenizer.decode([*prompt.tolist(), *tokens]), len(tokens) / seconds


def _store_bytes(path: Path) -> int:
    with ngramstore.open(path) as store:
        return int(store.stats()["total_bytes"])


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
