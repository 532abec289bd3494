"""What the quality grid found: differences to the plain decoder, seed by seed, as text and as a picture.

`python -m bench.quality_report` draws docs/images/quality.png from bench/results/quality.json.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "quality.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "quality.png"
LABELS = {
    "plain": "plain",
    "scone": "SCONE",
    "wide": "plain, 2x FLOPs\na token (wider)",
    "deep": "plain, 2x FLOPs\na token (deeper)",
    "equal": "plain, equal\ntraining FLOPs",
    "hashed": "hashed table of\nas many rows",
}


def differences(cells: Sequence[Mapping]) -> list[dict]:
    """Every model against the plain decoder of the same text, tokenizer, tokens and seed; and where that crosses zero.

    `difference` is by tokens: the mean over seeds, the seeds themselves, and their deviation (None for one seed).
    """
    plain = {_base(c): c["nats"] for c in cells if c["model"] == "plain"}
    names = ("text", "model", "tokenizer", "num_fgrams", "fgram_layers", "fgram_width", "start")
    curves: dict[tuple, dict[int, list[float]]] = {}
    for c in cells:
        if c["model"] != "plain" and _base(c) in plain:
            points = curves.setdefault(tuple(c[name] for name in names), {})
            points.setdefault(c["tokens"], []).append(c["nats"] - plain[_base(c)])
    return [
        dict(zip(names, key, strict=True))
        | {
            "difference": {
                str(tokens): {
                    "mean": statistics.mean(gains),
                    "deviation": statistics.stdev(gains) if len(gains) > 1 else None,
                    "seeds": sorted(gains),
                }
                for tokens, gains in sorted(points.items())
            },
            "crossover": crossover([(tokens, statistics.mean(gains)) for tokens, gains in sorted(points.items())]),
        }
        for key, points in sorted(curves.items())
    ]


def _base(cell: Mapping) -> tuple:
    return cell["text"], cell["tokenizer"], cell["tokens"], cell["seed"]


def crossover(points: list[tuple[int, float]]) -> float | str:
    """Tokens at which the difference turns negative for good, interpolated over log tokens, or on which side all points lie."""
    if all(gain < 0 for _, gain in points):
        return f"below {points[0][0]}"
    if points[-1][1] >= 0:
        return f"above {points[-1][0]}"
    last = max(i for i, (_, gain) in enumerate(points) if gain >= 0)
    (t0, g0), (t1, g1) = points[last], points[last + 1]
    return math.exp(math.log(t0) + (math.log(t1) - math.log(t0)) * g0 / (g0 - g1))


def lines(found: Sequence[Mapping]) -> Iterator[str]:
    """`differences` as text, a curve a line."""
    for curve in found:
        sizes = f" S={curve['num_fgrams']:,}" if curve["num_fgrams"] else ""
        if curve["fgram_layers"]:
            sizes += f" A_f={curve['fgram_layers']} layer(s)" + (
                f" {curve['fgram_width']} wide" if curve["fgram_width"] else ""
            )
            sizes += f" {curve['start']}"
        gains = "  ".join(f"{int(tokens):,}: {_spread(gain)}" for tokens, gain in curve["difference"].items())
        where = curve["crossover"]
        where = f"at {where:,.0f} tokens" if isinstance(where, float) else where + " tokens"
        yield f"{curve['text']} V={curve['tokenizer']:,} {curve['model']}{sizes}: {gains}  crossover {where}"


def _spread(gain: Mapping) -> str:
    spread = "" if gain["deviation"] is None else f" +- {gain['deviation']:.3f}"
    return f"{gain['mean']:+.3f}{spread} ({len(gain['seeds'])})"


def picture(result: Mapping, path: Path) -> None:
    """Two panels as a PNG: the difference to plain by tokens trained, and every model at the tokens most of them were trained on."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = result["differences"]
    figure, (growth, rivals) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for curve in (c for c in curves if c["model"] == "scone" and _is_usual(c)):
        tokens = [int(t) for t in curve["difference"]]
        points = list(curve["difference"].values())
        name = f"{curve['text']}, vocabulary {curve['tokenizer']:,}"
        growth.errorbar(
            tokens,
            [p["mean"] for p in points],
            [p["deviation"] or 0 for p in points],
            marker="o",
            capsize=3,
            label=name,
        )
    growth.axhline(0, color="0.5", linewidth=1)
    growth.set(
        xscale="log",
        xlabel="tokens trained on",
        ylabel="held-out nats, SCONE - plain",
        title="SCONE against the plain decoder",
    )
    growth.legend(fontsize=8)

    tokens, tokenizer = _most_compared(curves)
    shown = [c for c in curves if c["tokenizer"] == tokenizer and str(tokens) in c["difference"] and _is_usual(c)]
    texts = sorted({c["text"] for c in shown})
    models = [m for m in ("scone", "hashed", "equal", "wide", "deep") if any(c["model"] == m for c in shown)]
    for number, text in enumerate(texts):
        for place, model in enumerate(models):
            for c in shown:
                if (c["text"], c["model"]) == (text, model):
                    gain = c["difference"][str(tokens)]
                    rivals.bar(
                        place + 0.38 * (number - (len(texts) - 1) / 2), gain["mean"], 0.36, yerr=gain["deviation"],
                        color=f"C{number}", capsize=3, label=text if place == 0 else None,
                    )  # fmt: skip
    rivals.set_xticks(range(len(models)), [LABELS[model] for model in models], fontsize=8)
    rivals.axhline(0, color="0.5", linewidth=1)
    rivals.set(
        ylabel="held-out nats, model - plain",
        title=f"After {tokens:,} tokens, vocabulary {tokenizer:,} (lower is better)",
    )
    rivals.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _is_usual(curve: Mapping) -> bool:
    """Not one of the cells that vary the f-gram model, its start, or the number of f-grams."""
    return (
        curve["fgram_layers"] in (0, 1)
        and curve["fgram_width"] == 0
        and curve["start"] in ("", "identity")
        and curve["num_fgrams"] in (0, 100_000)
    )


def _most_compared(curves: Sequence[Mapping]) -> tuple[int, int]:
    """Tokens and tokenizer at which the most models were measured."""
    counts = Counter((int(tokens), c["tokenizer"]) for c in curves for tokens in c["difference"])
    return max(counts, key=lambda point: (counts[point], point))


if __name__ == "__main__":
    picture(json.loads(RESULT.read_text()), PICTURE)
    print(f"wrote {PICTURE.name}")
