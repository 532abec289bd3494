"""`python -m bench.page`: docs/results.md and docs/measurements.md from the JSON files in bench/results, so that no
figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import codecs_report, front, plots, prose, quality_report, readme, report, saved, serving_page

RESULTS = Path(__file__).parent / "results"
_DOCS = Path(__file__).parent.parent / "docs"
_RESULTS_INTRO = """\
# Results

Made by `python -m bench.page` from the JSON files in `bench/results/`, which `python -m bench all` writes in some two and a half hours (what trains
for longer: `python -m bench.quality` and `python -m bench codecs`). Every table of every file is in [measurements](measurements.md).
Machines are shared: trust ratios, not microseconds, and compare within a file only.
{commits} A `+` behind a commit: it had uncommitted changes.

- *Floor*: a gather of rows in memory that is told the row numbers; nothing is searched for. *A gather by our own prefetching kernel*: the
  same with the fastest gather there is here.
- *Cached*: in the subject's own cache or memory, the page cache warm. *Cold*: pages dropped before the call, checked with mincore.
- *Tuned RocksDB*: hash index in blocks of 4 KiB, bloom filter, a cache of as many bytes as our row cache: of blocks, or where measured
  (`rocks_tuned_rows`) nine tenths of it of rows, whichever is faster. Each peer's settings are in the JSON.
"""
_MEASUREMENTS_INTRO = """\
# Measurements

Made by `python -m bench.page`: every table of the JSON files in `bench/results/`, each section with its file and the command that wrote it.
What they say of the targets, and where peers are faster: [results](results.md). Times are medians of interleaved rounds; brackets hold the
quartiles, parentheses the median of the ratios to the baseline in the same round. The machine is shared: trust ratios, not microseconds,
and read the warnings above each table. Each file names its commit. Left out are `bench/results/store_quick.json` (a quick run shows that
everything works; its times claim nothing), `profiles.json` ([profiles](profiles.md)), and `quality_rate.json`, `quality_search.json` and
`quality_start.json` ([SCONE](scone.md)). Losses and perplexities are of held-out text; a tokenizer made by `train:SIZE` has seen all of the text.
"""


def pages() -> dict[Path, str]:
    """The documents that are made as a whole."""
    sections = [_MEASUREMENTS_INTRO]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        text = "" if result.get("options", {}).get("quick") else _section(path.stem, result)
        if text:
            sections.append(text)
    return {
        _DOCS / "results.md": "\n".join(
            [_RESULTS_INTRO.format(commits=saved.of_commits(saved.commits(RESULTS))), front.head(RESULTS)]
        ),
        _DOCS / "measurements.md": "\n".join(sections),
    }


def _section(name: str, result: dict[str, Any]) -> str:
    if "cases" in result:
        tables = [report.table(case) for case in result["cases"]]
        return _block(name, f"python -m bench {result['bench']}", [report.header(result), *tables])
    if result.get("workload") == "codecs":
        return _block(name, "python -m bench codecs", [codecs_report.text(result)])
    if result.get("workload") == "mine":
        return _block(name, "python -m bench.mine", [_mining(result)])
    if result.get("workload") == "quality" and "texts" in result:
        return _block(name, "python -m bench.quality", [_quality(result)])
    if result.get("workload") == "export":
        return _block(name, "python -m bench.export", [_export(result)])
    if result.get("workload") == "writing":
        return _block(name, "python -m bench.writing", [_writing(result)])
    if "hit_rate_by_cache_share" in result:
        command = "ngramstore demo" + (" --quick" if result["preset"] == "quick" else "")
        return _block(name, command, [_demo(result)])
    if "int4_choices" in result:
        return _block(name, "python -m bench.codec_error", [_codecs(result)])
    return ""


def _block(name: str, command: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    return f"## {name}\n\n`bench/results/{name}.json`, written by `{command}`.\n\n```\n{body}\n```\n"


def _about(result: dict[str, Any]) -> list[str]:
    """When and where a file was measured, with which commit, and what was wrong with that."""
    about = result.get("machine")
    if about is None:
        return ["machine and commit: not recorded"]
    head = f"{about['time']}, commit {saved.commit_of(result)}, {about['cpu']}, {about['cores']} cores, load {about['load'][0]}"
    return [head, *(f"warning: {text}" for text in result.get("warnings", []))]


def _mining(result: dict[str, Any]) -> str:
    lines = _about(result)
    for corpus, found in result["corpora"].items():
        lines.append(f"\n{corpus}: {found['tokens']:,} tokens, {found['ngrams']:,} n-grams, cut-off {found['cutoff']}")
        ours = found["subjects"]["ngramstore"]
        for subject, numbers in found["subjects"].items():
            lines.append(
                f"  {subject:24} {numbers['wall_s']:8.2f} s wall ({numbers['wall_s'] / ours['wall_s']:.2f}x)"
                f"  {numbers['cpu_s']:8.2f} s CPU ({numbers['cpu_s'] / ours['cpu_s']:.2f}x)"
            )
    return "\n".join(lines)


def _quality(result: dict[str, Any]) -> str:
    found = [*_about(result), f"{len(result['cells'])} cells"]
    for name, text in result["texts"].items():
        found.append(f"{name}: {text['tokens']:,} tokens in {text['documents']:,} documents")
    found.append("difference to plain in held-out nats after so many tokens: mean +- deviation (seeds)")
    return "\n".join([*found, *quality_report.lines(result["differences"])])


def _export(result: dict[str, Any]) -> str:
    found = _about(result)
    for case in result["shapes"]:
        parts = "  ".join(f"{name} {value['cpu_s']:.2f}" for name, value in case["parts"].items())
        found.append(
            f"  {case['rows']:,} rows of {case['dim']}, A_f of {case['layers']} layers, {case['codec']}: CPU s {parts}; "
            f"the store's part takes {case['store_over_model']:.2f} x the model's"
        )
    return "\n".join(found)


def _writing(result: dict[str, Any]) -> str:
    found = [
        *_about(result),
        f"a file of {result['mib']:,} MiB in pieces of 4 MiB, and its fsync; over: of direct writes in the same round",
    ]
    for way, numbers in result["ways"].items():
        seconds = numbers["seconds"]
        found.append(
            f"  {way:8} {seconds['median']:.2f} s ({min(seconds['values']):.2f} to {max(seconds['values']):.2f}), "
            f"{numbers['sync_s']['median']:.2f} of them the sync, CPU {numbers['cpu_s']['median']:.2f} s, {numbers['over_direct']:.2f} over"
        )
    return "\n".join(found)


def _demo(result: dict[str, Any]) -> str:
    lines = _about(result)
    lines += [f"{result['seconds']:.0f} s on {result['threads']} threads; held-out text, same decoder, same tokens"]
    first = result["models"][0]["nats"]
    for model in result["models"]:
        lines.append(
            f"  {model['name']:20} {model['nats']:.4f} nats ({model['nats'] - first:+.4f})  perplexity {model['perplexity']:8.3f}"
            f"  table {model['table_bytes']:,} bytes"
        )
    rates = ", ".join(f"{float(share):.1%}: {rate:.1%}" for share, rate in result["hit_rate_by_cache_share"].items())
    lines.append(f"  hit rate by share of the rows that the cache holds: {rates}")
    return "\n".join(lines)


def _codecs(result: dict[str, Any]) -> str:
    lines = [*_about(result), "relative RMS error in percent by kind of rows"]
    for codec in result["codecs"]:
        errors = "  ".join(f"{kind} {value:.3f}" for kind, value in codec["error_percent"].items())
        lines.append(f"  {codec['spec']['name']:6} {codec['bits_per_value']:6.2f} bits per value  {errors}")
    return "\n".join(lines)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
    for path, updated in ((readme.README, readme.updated), (serving_page.PAGE, serving_page.updated)):
        path.write_text(updated(path.read_text()))
    for path in prose.PAGES:
        path.write_text(prose.updated(path, path.read_text()))
    figures = [readme.README.name, serving_page.PAGE.name, *(path.name for path in prose.PAGES)]
    print(
        f"wrote {', '.join(page.name for page in pages())}, the figures of {', '.join(figures)}, and",
        *(path.name for path in plots.draw_all()),
    )
