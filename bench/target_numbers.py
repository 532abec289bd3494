"""The numbers of targets whose JSON files have no cases: each from the file's content, a KeyError or ValueError without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Any

from bench.quality_report import is_usual

MATCHING = "matching of the tokens trained on, and batches, against the processor time of a training run"
BATCHES = "making batches, against the processor time of a training run (matching is not in it)"


def demo_gain(result: dict) -> float:
    """Nats."""
    return result["gain_nats"]


def perplexity_off(store: str) -> Callable[[dict], float]:
    """Percent between this store of a demo and its live model, whichever is better."""
    return lambda result: 100 * abs(result["perplexity"][store] / result["perplexity"]["scone_live"] - 1)


def mining(result: dict) -> dict[str, Any]:
    """What was measured on code, by subject."""
    return result["corpora"]["python-stdlib"]["subjects"]


def half_a_byte(result: dict) -> float:
    """Perplexity that the best codec of at most 4.5 bits costs, mean of the tables; bits in wide rows, zstd where it pays."""
    return _best_half_a_byte(result)["perplexity_percent"]


def half_a_byte_worst_text(result: dict) -> float:
    """What the codec of `half_a_byte` costs on the text where it costs most, mean of that text's tables."""
    best = _best_half_a_byte(result)
    nats: dict[str, list[float]] = {}
    for name, table in result["tables"].items():
        of_best = (line for line in table["lines"] if all(line[key] == best[key] for key in ("family", "name")))
        nats.setdefault(name.rpartition(" seed=")[0], []).extend(line["nats"] for line in of_best)
    return 100 * math.expm1(max(mean(of_text) for of_text in nats.values()))


def _best_half_a_byte(result: dict) -> dict[str, Any]:
    small = [line for line in result["summary"] if line["is_codec"] and min(line["raw_bits"], line["wide_bits"]) <= 4.5]
    return min(small, key=lambda line: line["perplexity_percent"])


def quality_gain(result: dict, text: str) -> float:
    """Mean over the seeds at the number of tokens with the most seeds, the largest of these; as in `bench.quality`,
    100,000 f-grams."""
    (curve,) = (
        curve for curve in result["differences"]
        if (curve["text"], curve["model"], curve["tokenizer"]) == (text, "scone", 4096) and is_usual(curve)
    )  # fmt: skip
    points = curve["difference"]
    tokens = max(points, key=lambda at: (len(points[at]["seeds"]), int(at)))
    return -points[tokens]["mean"]


def matching_share(result: dict) -> float:
    """Worst cell of SCONE, by the processor time of its training: batches, and tagging where every cell says what it took."""
    has_tags = _has_tag_times(result)
    return max((cell["batch_s"] + (cell["tag_s"] if has_tags else 0)) / cell["cpu_s"] for cell in _scone_cells(result))


def matching_name(result: dict) -> str:
    """What `matching_share` is of."""
    return MATCHING if _has_tag_times(result) else BATCHES


def export_share(result: dict) -> float:
    """Worst shape."""
    return max(shape["store_over_model"] for shape in result["shapes"])


def _has_tag_times(result: dict) -> bool:
    return all("tag_s" in cell for cell in _scone_cells(result))


def _scone_cells(result: dict) -> list[dict]:
    return [cell for cell in result["cells"].values() if cell["model"] == "scone"]
