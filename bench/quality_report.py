"""What the quality grid found: differences to the plain decoder, seed by seed, and where they cross zero; as lines of text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FGRAM_LR = 0.1
"""Rate of the f-gram model where nothing else is said: TrainConfig's."""
RESULT = Path(__file__).parent / "results" / "quality.json"


def differences(cells: Sequence[Mapping]) -> list[dict]:
    """Every model against the plain decoder of the same text, tokenizer, tokens and seed; and where that crosses zero.

    `difference` is by tokens: the mean over seeds, the seeds themselves, and their deviation (None for one seed).
    """
    plain = {_base(c): c["nats"] for c in cells if c["model"] == "plain"}
    names = ("text", "model", "tokenizer", "num_fgrams", "fgram_layers", "fgram_width", "start", "fgram_lr")
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
            sizes += f" {curve['start']}" + (f" rate {curve['fgram_lr']:g}" if curve["fgram_lr"] else "")
        gains = "  ".join(f"{int(tokens):,}: {_spread(gain)}" for tokens, gain in curve["difference"].items())
        yield f"{curve['text']} V={curve['tokenizer']:,} {curve['model']}{sizes}: {gains}  {_ahead(curve['crossover'])}"


def _ahead(where: float | str) -> str:
    """What a crossover means, in words."""
    if isinstance(where, float):
        return f"ahead for good from {where:,.0f} tokens"
    side, tokens = where.split()
    if side == "below":
        return f"ahead at every size measured, from {int(tokens):,} tokens on"
    return f"not ahead at {int(tokens):,} tokens, the most measured"


def _spread(gain: Mapping) -> str:
    spread = "" if gain["deviation"] is None else f" +- {gain['deviation']:.3f}"
    return f"{gain['mean']:+.3f}{spread} ({len(gain['seeds'])})"


def is_usual(curve: Mapping) -> bool:
    """Not one of the cells that vary the f-gram model, its start or rate, or the number of f-grams."""
    return has_usual_shape(curve) and curve["fgram_lr"] in (0, FGRAM_LR)


def has_usual_shape(curve: Mapping) -> bool:
    """As `is_usual`, whatever the rate of the f-gram model."""
    return (
        curve["fgram_layers"] in (0, 1)
        and curve["fgram_width"] == 0
        and curve["start"] in ("", "identity")
        and curve["num_fgrams"] in (0, 100_000)
    )
