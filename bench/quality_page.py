"""`python -m bench.quality_page`: the tables of docs/scone.md between its marks, and docs/images/quality.png, from quality.json.

Each number is a difference in held-out nats to the plain decoder of the same text, tokenizer, tokens and seed: below
zero is better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.quality_picture import PICTURE, picture
from bench.quality_report import FGRAM_LR, RESULT, has_usual_shape, is_usual

PAGE = Path(__file__).parent.parent / "docs" / "scone.md"
RATES = RESULT.with_name("quality_rate.json")
BEGIN, END = "<!-- quality -->", "<!-- quality end -->"
RIVALS = {
    ("scone", FGRAM_LR): f"SCONE, A_f at {FGRAM_LR:g} of the decoder's rate",
    ("scone", 1.0): "SCONE, A_f at the decoder's rate",
    ("deep", 0): "plain, {flops:.2f} x the FLOPs per token, by depth",
    ("wide", 0): "plain, {flops:.2f} x the FLOPs per token, by width",
    ("equal", 0): "plain, equal training FLOPs",
    ("hashed", 0): "hashed n-gram tables, as many rows",
}


def main() -> None:
    """Write the tables and the picture."""
    result, rates = (json.loads(path.read_text()) for path in (RESULT, RATES))
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + section(result, rates) + after)
    picture(result, PICTURE)
    print(f"wrote {PAGE.name} and {PICTURE.name}")


def section(result: Mapping, rates: Mapping) -> str:
    """What stands between the marks, with them. rates: the same at another rate of everything."""
    curves = result["differences"]
    tables = ("\n".join(t) for t in (_by_tokens(curves), _rivals(result), _rates((result, rates)), _shapes(curves)))
    return f"{BEGIN}\n" + "\n\n".join(tables) + f"\n{END}"


def _by_tokens(curves: Sequence[Mapping]) -> Iterator[str]:
    """SCONE of the usual shape by tokens trained on, and by the rate of A_f."""
    shown = [c for c in curves if c["model"] == "scone" and has_usual_shape(c)]
    shown.sort(key=lambda c: (c["text"], -c["tokenizer"], c["fgram_lr"]))
    tokens = sorted({int(t) for c in shown for t in c["difference"]})
    yield "| SCONE less plain, after tokens | " + " | ".join(f"{t:,}" for t in tokens) + " |"
    yield "|---|" + "---:|" * len(tokens)
    for c in shown:
        yield f"| {_name(c)} | " + " | ".join(_cell(c["difference"].get(str(t))) for t in tokens) + " |"


def _rivals(result: Mapping) -> Iterator[str]:
    """Every model after the tokens that most of them were trained on, and after the most; vocabulary of 4,096."""
    shown = [c for c in result["differences"] if c["tokenizer"] == 4096 and has_usual_shape(c)]
    columns = [(text, tokens) for text in sorted({c["text"] for c in shown}) for tokens in (400_000, 1_600_000)]
    yield "| vocabulary 4,096 | " + " | ".join(f"{text}, {tokens:,} tokens" for text, tokens in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for (model, rate), label in RIVALS.items():
        found = {c["text"]: c["difference"] for c in shown if (c["model"], c["fgram_lr"]) == (model, rate)}
        cells = (_cell(found.get(text, {}).get(str(tokens))) for text, tokens in columns)
        yield f"| {label.format(flops=_flops(result, model))} | " + " | ".join(cells) + " |"


def _flops(result: Mapping, model: str) -> float:
    """FLOPs a token served costs, in those of the plain decoder; of every cell of the model the same."""
    per_token = {name: {c["flops_per_token"] for c in _cells(result, name)} for name in (model, "plain")}
    (flops,), (plain,) = per_token[model], per_token["plain"]
    return flops / plain


def _cells(result: Mapping, model: str) -> list[Mapping]:
    return [c for c in result["cells"].values() if c["model"] == model and c["tokenizer"] == 4096 and is_usual(c)]


def _rates(grids: Sequence[Mapping]) -> Iterator[str]:
    """Held-out nats at each rate of everything, of the cells that all grids have; the best less the plain decoder's best."""
    keys = [key for key, c in grids[-1]["cells"].items() if all(key in grid["cells"] for grid in grids) and is_usual(c)]
    cells = [grids[-1]["cells"][key] for key in keys]
    (tokens,), (seed,), (text,) = ({c[name] for c in cells} for name in ("tokens", "seed", "text"))
    nats = {c["model"]: [grid["cells"][key]["nats"] for grid in grids] for key, c in zip(keys, cells, strict=True)}
    rates = " | ".join(f"rate {grid['settings']['train']['lr']:g}" for grid in grids)
    yield f"| {text}, {tokens:,} tokens, seed {seed}: held-out nats | {rates} | best, less plain's best |"
    yield "|---|" + "---:|" * (len(grids) + 1)
    labels = {model: label for (model, rate), label in RIVALS.items() if rate in (0, FGRAM_LR)}
    for model in ("plain", *labels):
        if model in nats:
            label = labels.get(model, "plain").format(flops=_flops(grids[0], model))
            gain = min(nats[model]) - min(nats["plain"])
            yield f"| {label} | " + " | ".join(f"{n:.3f}" for n in nats[model]) + f" | {gain:+.3f} |"


def _shapes(curves: Sequence[Mapping]) -> Iterator[str]:
    """SCONE with other numbers of f-grams, other f-gram models and the other start, all at one rate of A_f."""
    found = [c for c in curves if c["model"] == "scone" and c["tokenizer"] == 4096 and c["text"] == "code"]
    rates = {c["fgram_lr"] for c in found if not has_usual_shape(c)}
    shown = [c for c in found if c["fgram_lr"] in rates]
    tokens = sorted({int(t) for c in shown if not has_usual_shape(c) for t in c["difference"]})
    yield "| code, vocabulary 4,096: f-grams, A_f, start, rate | " + " | ".join(f"{t:,} tokens" for t in tokens) + " |"
    yield "|---|" + "---:|" * len(tokens)
    for c in sorted(
        shown, key=lambda c: (c["start"], -c["fgram_lr"], c["fgram_layers"], c["fgram_width"], c["num_fgrams"])
    ):
        width = f", {c['fgram_width']} wide" if c["fgram_width"] else ""
        layers = f"{c['fgram_layers']} layer" + "s" * (c["fgram_layers"] > 1)
        label = f"{c['num_fgrams']:,}, {layers}{width}, {c['start']}, {c['fgram_lr']:g}"
        yield f"| {label} | " + " | ".join(_cell(c["difference"].get(str(t))) for t in tokens) + " |"


def _name(curve: Mapping) -> str:
    return f"{curve['text']}, vocabulary {curve['tokenizer']:,}, A_f at rate {curve['fgram_lr']:g}"


def _cell(gain: Mapping | None) -> str:
    if gain is None:
        return "-"
    spread = "" if gain["deviation"] is None else f" ± {gain['deviation']:.3f}"
    seeds = len(gain["seeds"])
    return f"{gain['mean']:+.3f}{spread} ({seeds} seed{'s' * (seeds > 1)})"


if __name__ == "__main__":
    main()
