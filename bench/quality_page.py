"""`python -m bench.quality_page`: the tables of docs/scone.md between its marks, and docs/images/quality.png, from quality.json.

Each number is a difference in held-out nats to the plain decoder of the same text, tokenizer, tokens and seed: below zero is better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.quality_picture import PICTURE, picture
from bench.quality_report import FGRAM_LR, RESULT, has_usual_shape

PAGE = Path(__file__).parent.parent / "docs" / "scone.md"
BEGIN, END = "<!-- quality -->", "<!-- quality end -->"
RIVALS = {
    ("scone", FGRAM_LR): f"SCONE, A_f at {FGRAM_LR:g} of the decoder's rate",
    ("scone", 1.0): "SCONE, A_f at the decoder's rate",
    ("deep", 0): "plain, twice the FLOPs per token, by depth",
    ("wide", 0): "plain, twice the FLOPs per token, by width",
    ("equal", 0): "plain, equal training FLOPs",
    ("hashed", 0): "hashed n-gram tables, as many rows",
}


def main() -> None:
    """Write the tables and the picture."""
    result = json.loads(RESULT.read_text())
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + section(result) + after)
    picture(result, PICTURE)
    print(f"wrote {PAGE.name} and {PICTURE.name}")


def section(result: Mapping) -> str:
    """What stands between the marks, with them."""
    curves = result["differences"]
    tables = ("\n".join(table) for table in (_by_tokens(curves), _rivals(curves), _shapes(curves)))
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


def _rivals(curves: Sequence[Mapping]) -> Iterator[str]:
    """Every model after the tokens that most of them were trained on, and after the most; vocabulary of 4,096."""
    shown = [c for c in curves if c["tokenizer"] == 4096 and has_usual_shape(c)]
    columns = [(text, tokens) for text in sorted({c["text"] for c in shown}) for tokens in (400_000, 1_600_000)]
    yield "| vocabulary 4,096 | " + " | ".join(f"{text}, {tokens:,} tokens" for text, tokens in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for (model, rate), label in RIVALS.items():
        found = {c["text"]: c["difference"] for c in shown if (c["model"], c["fgram_lr"]) == (model, rate)}
        cells = (_cell(found.get(text, {}).get(str(tokens))) for text, tokens in columns)
        yield f"| {label} | " + " | ".join(cells) + " |"


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
