"""What docs/serving.md says was measured, made from the JSON files between two markers."""

from __future__ import annotations

from pathlib import Path

from bench import saved
from bench.readme import between
from bench.saved import Found

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
BEGIN, END = "<!-- measured: made by `python -m bench.page` -->", "<!-- measured end -->"
_BATCHES = ("batch_1", "batch_8", "batch_64")
_STEPS = (
    ("longer_cached", "step ratio, all rows cached"),
    ("longer_tenth", "step ratio, a tenth cached, the rest in the page cache"),
    ("longer_cold", "step ratio, cold: no row cache, and no page of the rows in memory before a step"),
    ("longer_candidates", "step ratio, cold, with `prefetch_candidates` of 8 candidates a sequence"),
    ("added_cold", "extra, cold"),
    ("added_candidates", "extra, cold, with `prefetch_candidates`"),
)
_TRACES = {
    "code": "code (Python's standard library)",
    "english": "English (WikiText-2, tinyshakespeare)",
    "mixed": "mixed, 256 tokens of each in turn",
}
_SHARES = ("1%", "10%", "30%")


def updated(text: str, folder: Path = saved.RESULTS) -> str:
    """The page with its tables made anew. Raises ValueError where the markers are not there."""
    return between(text, BEGIN, END, section(folder))


def section(folder: Path = saved.RESULTS) -> str:
    """Steps of each decoder, one call, hit rates."""
    cases = saved.cases(folder)
    steps = [
        _steps(size, cases["decode", f"step_{size}"])
        for size in ("10M", "50M", "120M")
        if ("decode", f"step_{size}") in cases
    ]
    return "\n\n".join(
        [
            *steps,
            _call(cases["decode", "overhead"], cases["decode", "step_50M"]),
            _hit_rates(cases["decode", "hit_rate"]),
        ]
    )


def _steps(size: str, found: Found) -> str:
    lines = [
        f"| {size} decoder, one-token steps (`{found.file}`) | batch 1 | batch 8 | batch 64 |",
        "|---|---|---|---|",
    ]
    for metric, label in _STEPS:
        digits = 3 if metric.startswith("added") else 2
        cells = (f"{found.value(batch, metric):.{digits}f}" for batch in _BATCHES)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _call(overhead: Found, step: Found) -> str:
    ours, absent, theirs = (
        [overhead.value(subject, metric) for subject in overhead.subjects]
        for metric in ("call_us", "call_not_found_us", "nn_embedding_us")
    )
    between = ", ".join(
        f"{step.value(batch, 'call_us_cached'):.0f} us and `nn.Embedding` {step.value(batch, 'own_us_cached'):.0f} at {batch.replace('_', ' ')}"
        for batch in ("batch_1", "batch_8")
    )
    return (
        f"One call in a loop of its own, one token, all rows cached (`{overhead.file}`): {min(ours):.1f} to {max(ours):.1f} us by width, "
        f"{max(absent):.1f} where no n-gram ends;\n`nn.Embedding` {min(theirs):.1f} to {max(theirs):.1f}. Between two steps of the 50M decoder, "
        f"whose weights push everything else out of the processor's caches,\na call takes {between} (`{step.file}`)."
    )


def _hit_rates(found: Found) -> str:
    lines = [
        f"Hit rate of row requests (`{found.file}`), LRU / the best possible (Belady), after a warm-up of a fifth of the trace. What even Belady",
        "misses with 30 % of the rows cached are first requests for a row:",
        "",
        "| trace | 1 % of the rows | 10 % | 30 % |",
        "|---|---|---|---|",
    ]
    for subject, label in _TRACES.items():
        cells = (
            " / ".join(f"{1 - found.value(subject, f'miss_{policy}_{share}'):.2f}" for policy in ("lru", "belady"))
            for share in _SHARES
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
