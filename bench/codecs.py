"""`python -m bench codecs`: what each codec costs a trained model, in held-out perplexity and in bytes, beside ways not taken.

Small SCONE models are trained (bench/trained.py) on the sources of Python's standard library and on any text given, from each
seed. Every codec of the product is measured through a store on disk; every other way (bench/codec_ways.py) by putting its
decoded rows in place of the table. Same decoder, same held-out windows: only the rows differ.

Shapes: N rows, D row width, B bytes of a stored row.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

import ngramstore
from bench import codecs_report, machine
from bench.codec_ways import ways
from bench.codecs_plot import plot
from bench.trained import Trained, opened, trained
from ngramstore.cli.common import Count
from ngramstore.codec import SecondOrderInt4, codec_from_spec, compress
from ngramstore.files import publish
from ngramstore.mine import python_sources
from ngramstore_torch.experiment.presets import DEMO, QUICK, Preset

RESULT = Path(__file__).parent / "results" / "codecs.json"
PLOT = Path(__file__).parent.parent / "docs" / "images" / "codecs.png"
SPECS: tuple[str | dict, ...] = (
    "f32", "f16", "bf16", "int8", "e4m3", "int4", {"name": "int4", "group": 16}, {"name": "int4", "group": 64},
)  # fmt: skip
SECOND_ORDER: tuple[str | dict, ...] = ("int4", {"name": "int4", "group": 64})
WIDE_VALUES = 1024
"""Small frames cost zstd more: each way is also compressed with that many values in a frame, as wide rows would be."""
_SAMPLE_ROWS = 24_000
_ROWS_A_CALL = 1 << 14


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Keep corpora and models here for the next run.")
@click.option("--text", "texts", multiple=True, type=click.Path(exists=True, path_type=Path), help="A second corpus.")
@click.option("--tokens", type=Count(), default="800k", show_default=True, help="Training tokens of each model.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--windows", default=600, show_default=True, help="Held-out windows to measure on.")
@click.option("--quick", is_flag=True, help="Seed 0, the quick demo's model and 60 windows; codecs_quick.json.")
@click.option("--codecs-only", is_flag=True, help="Leave the ways out that are no codecs of the product.")
@click.option("--page-only", is_flag=True, help="Write docs/codecs.md's table and the plot again from the JSON.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help=f"Default: results/{RESULT.name}")
def main(
    folder: Path | None,
    texts: tuple[Path, ...],
    tokens: int,
    seeds: tuple[int, ...],
    windows: int,
    quick: bool,
    codecs_only: bool,
    page_only: bool,
    path: Path | None,
) -> None:
    """Train small models and measure every codec on their tables; a table that the JSON has already is not measured again.

    A JSON of other settings or of another text is refused.
    """
    path = path or RESULT.with_stem("codecs_quick" if quick else "codecs")
    if page_only:
        _publish_page(path)
        return
    preset = replace(DEMO, train=replace(DEMO.train, tokens=tokens), max_windows=windows)
    if quick:
        preset, seeds = replace(QUICK, max_windows=60), (0,)
    corpora = {"code": tuple(python_sources(preset.corpus_bytes))} | ({"text": texts} if texts else {})
    settings = {"preset": preset.name, "tokens": preset.train.tokens, "dim": preset.dim, "windows": preset.max_windows}
    settings["fgram_lr"] = preset.train.fgram_lr
    saved = json.loads(path.read_text()) if path.exists() else {"settings": settings, "tables": {}}
    if saved["settings"] != settings:
        raise click.UsageError(f"{path.name} was made with other settings; give another --json")
    with tempfile.TemporaryDirectory(prefix="ngramstore-bench-") as temporary:
        work = folder or Path(temporary)
        require_texts(saved["tables"])
        about_texts = {name: about_text(work, files, preset) for name, files in corpora.items()}
        for name, found in about_texts.items():
            require_same_text(saved["tables"], name, found)
        for seed in seeds:
            for name, files in corpora.items():
                if (key := f"{name} seed={seed}") in saved["tables"]:
                    continue
                print(f"{key}: train", file=sys.stderr, flush=True)
                table = trained(work, files, preset, seed)
                saved["tables"][key] = about_texts[name] | {
                    "files": [file.resolve().name for file in files] if name == "text" else [],
                    **measured(table, preset, not codecs_only and not quick),
                }
                about = machine.describe()
                whole = {
                    "workload": "codecs",
                    "machine": about,
                    "warnings": machine.warnings(about, len(seeds)),
                    "settings": settings,
                    "summary": codecs_report.summary(saved["tables"]),
                    "tables": saved["tables"],
                }
                publish(path, (json.dumps(whole, indent=1) + "\n").encode())
    print(codecs_report.table(codecs_report.summary(saved["tables"])))
    _publish_page(path)
    print(f"\nsaved {path.name} and its plot")


def about_text(work: Path, files: Sequence[Path], preset: Preset) -> dict[str, str | int]:
    """What a table is of, as JSON values: the identities of corpus and tokenizer, and the size."""
    corpus = opened(work, files, preset)
    return {"corpus_id": corpus.identity, "tokenizer_id": corpus.tokenizer_id, "tokens": corpus.num_tokens}


def require_texts(tables: Mapping[str, Mapping]) -> None:
    """Raises UsageError where a table does not say which text it is of: seeds of two texts could be averaged under one name."""
    for key, table in tables.items():
        if "corpus_id" not in table:
            raise click.UsageError(f"{key!r} does not say which text it is of; give another --json, or remove the file")


def require_same_text(tables: Mapping[str, Mapping], name: str, text: Mapping[str, str | int]) -> None:
    """Raises UsageError where a table "NAME seed=.." of this name is of another text, as `about_text` tells it."""
    for key, table in tables.items():
        if key.rpartition(" seed=")[0] != name:
            continue
        found = {field: table.get(field) for field in text}
        if found != text:
            raise click.UsageError(f"{key!r} is of another text: it has {found}, now {dict(text)}; give another --json")


def _publish_page(path: Path) -> None:
    """The plot; and, of the result that the repository keeps, the table in docs/codecs.md."""
    result = json.loads(path.read_text())
    if path == RESULT:
        codecs_report.write_page(result)
    plot(result, PLOT if path == RESULT else path.with_suffix(".png"))


def measured(table: Trained, preset: Preset, with_ways: bool) -> dict:
    """Everything about one table: `live_nats`, and a line for each codec and way."""
    f32 = table.nats(table.rows_ND)
    lines = []
    for spec in SPECS:
        lines.append(_codec(table, spec, f32))
        _say(lines[-1])
    sensitivity_DD = table.sensitivity()
    for spec in SECOND_ORDER:
        lines.append(_codec(table, spec, f32, sensitivity_DD))
        _say(lines[-1])
    for family, name, way in ways() if with_ways else ():
        started = time.process_time()
        decoded_ND, stored_NB = way(table.rows_ND)
        line = {"family": family, "name": name, "is_codec": False} | _errors(table.rows_ND, decoded_ND)
        line |= _bits(stored_NB, preset.dim) | {"nats": table.nats(decoded_ND) - f32}
        lines.append(line | {"cpu_s": time.process_time() - started})
        _say(lines[-1])
    return {"rows": len(table.rows_ND), "f32_nats": f32, "statistics": statistics(table.rows_ND), "lines": lines}


def statistics(rows_ND: np.ndarray) -> dict[str, float]:
    """What decides which way wins: tails, sizes of rows, and how far the axes' variances are from equal."""
    rms_N1 = np.sqrt((rows_ND**2).mean(axis=1, keepdims=True))
    spectrum_D = np.linalg.eigvalsh(rows_ND.T.astype(np.float64) @ rows_ND / len(rows_ND))
    spectrum_D = np.maximum(spectrum_D, spectrum_D[-1] * 1e-12)
    return {
        "kurtosis": float(((rows_ND / rms_N1) ** 4).mean()),
        "largest_over_rms": float(np.median(np.abs(rows_ND / rms_N1).max(axis=1))),
        "row_rms_spread": float(np.percentile(rms_N1, 99) / np.percentile(rms_N1, 1)),
        "transform_gain_bits": float(-0.5 * np.log2(np.exp(np.log(spectrum_D).mean()) / spectrum_D.mean())),
    }


def _codec(table: Trained, spec: str | dict, f32_nats: float, sensitivity_DD: np.ndarray | None = None) -> dict:
    """One codec, served from a store; with a sensitivity its rows are rounded by it."""
    rows_ND = table.rows_ND
    tokens_NK, lengths_N = table.vocabulary.ngrams
    codec = codec_from_spec(spec, rows_ND.shape[1])
    encoder = codec if sensitivity_DD is None else SecondOrderInt4(codec, sensitivity_DD)
    stored_NB = encoder.encode(rows_ND)
    with tempfile.TemporaryDirectory(prefix="ngramstore-bench-") as folder:
        files = {}
        for compression in ("none", "zstd"):
            path = Path(folder) / compression
            with ngramstore.build(
                path, dim=codec.dim, max_n=table.vocabulary.max_n, codec=spec, compression=compression
            ) as build:
                for at in range(0, len(rows_ND), _ROWS_A_CALL):
                    part = slice(at, at + _ROWS_A_CALL)
                    build.add_encoded((tokens_NK[part], lengths_N[part]), stored_NB[part])
            files[compression] = sum(file.stat().st_size for file in path.glob("base-*.rows")) / len(rows_ND)
        with ngramstore.open(Path(folder) / "none") as store:
            nats = table.served_nats(store) - f32_nats
    options = {key: value for key, value in codec.spec().items() if key != "name"}
    name = ", ".join(f"{key} {value}" for key, value in options.items()) or f"{codec.row_bytes} B a row"
    family = f"codec {codec.name}" + ("" if sensitivity_DD is None else " rounded by sensitivity")
    line = {"family": family, "name": name, "is_codec": True} | _errors(rows_ND, codec.decode(stored_NB))
    return line | _bits(stored_NB, codec.dim) | {"nats": nats, "rows_file_bytes_per_row": files}


def _errors(rows_ND: np.ndarray, decoded_ND: np.ndarray) -> dict[str, float]:
    """Relative RMS error in percent: of the table, and of its worst row."""
    wrong_N = ((decoded_ND - rows_ND).astype(np.float64) ** 2).sum(axis=1)
    size_N = (rows_ND.astype(np.float64) ** 2).sum(axis=1)
    worst = np.sqrt((wrong_N / size_N).max())
    return {
        "error_percent": 100 * float(np.sqrt(wrong_N.sum() / size_N.sum())),
        "worst_row_percent": 100 * float(worst),
    }


def _bits(stored_NB: np.ndarray, dim: int) -> dict[str, float]:
    """Bits a value of the stored rows, without their checksums (32 / D more on disk): as they are, in zstd frames of a
    dictionary, in frames as long as those of wide rows, and by the entropy of single bytes, each place in a row alike."""
    chosen = np.random.default_rng(0).permutation(len(stored_NB))[:_SAMPLE_ROWS]
    sample_MB = stored_NB[chosen]
    joined = -(-WIDE_VALUES // dim)
    wide_MB = sample_MB[: len(sample_MB) // joined * joined].reshape(-1, joined * stored_NB.shape[1])
    raw = 8 * stored_NB.shape[1] / dim
    counts = np.bincount(sample_MB.reshape(-1), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return {
        "raw_bits": raw,
        "zstd_bits": raw * (1 - _saving(sample_MB)),
        "wide_bits": raw * (1 - _saving(wide_MB)),
        "entropy_bits": float(-(share * np.log2(share)).sum() * stored_NB.shape[1] / dim),
    }


def _saving(sample_MB: np.ndarray) -> float:
    return compress.saving(sample_MB[1::2], compress.train_dictionary(sample_MB[::2]))


def _say(line: dict) -> None:
    print(
        f"  {line['family']}, {line['name']}: {line['raw_bits']:.2f} bits, zstd {line['zstd_bits']:.2f}, wide {line['wide_bits']:.2f};"
        f" error {line['error_percent']:.2f} %, perplexity {100 * math.expm1(line['nats']):+.3f} %",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
