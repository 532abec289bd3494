"""Sentences with figures inside the documents, made from the JSON files between two markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench import codec_page, saved, scale_prose
from bench.readme import between
from bench.targets import two_threads

_DOCS = Path(__file__).parent.parent / "docs"
_END = "<!-- figures end -->"


def updated(path: Path, text: str, folder: Path = saved.RESULTS) -> str:
    """The document with its figures made again. Raises ValueError where a marker is not there."""
    for name, sentence in PAGES[path].items():
        text = between(text, f"<!-- figures of {name}: made by `python -m bench.page` -->", _END, sentence(folder))
    return text


def _mining(folder: Path) -> str:
    result = saved.plain("mine", folder)
    assert result is not None
    corpus = result["corpora"]["python-stdlib"]
    subjects = corpus["subjects"]
    ours = subjects["ngramstore"]
    times = {name: found["wall_s"] / ours["wall_s"] for name, found in subjects.items()}
    cpu = {name: found["cpu_s"] / ours["cpu_s"] for name, found in subjects.items()}
    speed = {name: found["million_tokens_per_s"] for name, found in subjects.items()}
    return (
        f"The source of Python's standard library, {corpus['tokens'] / 1e6:.1f} million tokens, {result['machine']['cores']} cores: "
        f"{speed['ngramstore']:.1f} million tokens per second in one thread,\n{speed['ngramstore, 2 threads']:.1f} in two. "
        f"DuckDB took {times['duckdb']:.1f} times as long as one thread and Polars {times['polars']:.1f} times, both on all cores "
        f"({cpu['duckdb']:.1f} and {cpu['polars']:.1f} times\nthe processor time). Sorting packed 5-grams in memory with numpy took "
        f"{times['numpy sort']:.1f} times as long (it needs tokens of 12 bits). In 8 MiB of memory,\nlength by length, mining takes "
        f"{times['ngramstore, 8 MiB']:.1f} times as long."
    )


def _floors(folder: Path) -> str:
    found = saved.cases(folder)["store", "warm_floors"]

    def above(subject: str) -> str:
        ratios = sorted(found.ratio(subject, "floor_ahead", f"us_per_key@{size}") for size in (1024, 8192))
        return " to ".join(f"{ratio:.2f}" for ratio in ratios)

    return (
        f"  Compared with a bare gather by the same kernel, batches cost {above('ngramstore_resident')} times as much with resident rows "
        f"and {above('ngramstore')} times\n  with a row cache that holds every row (`bench/results/{found.file}`): the cache also has to "
        "touch an entry of its table for each row."
    )


def _threads(folder: Path) -> str:
    found = saved.cases(folder)["store", "threads"]
    try:
        gains = (
            f"With two threads, one call of 8,192 cached keys is {two_threads(found, 'speedup_of_one_call'):.2f} times as fast;\n"
            f"  two callers together get {two_threads(found):.2f} times the throughput of one"
        )
    except ValueError:  # void, both of them
        gains = "What two threads gain was not measured: the machine had no two free cores"
    return (
        f"  {gains} (`bench/results/{found.file}`). How much two callers gain depends on the machine,\n  since both wait for the same "
        "memory: earlier runs had 1.72, 1.64 and 1.60 (that file in commits c4e9c7f, c4324b3 and 712877a)."
    )


def _writing(folder: Path) -> str:
    result = saved.plain("writing", folder)
    assert result is not None
    ways = [result["ways"][name] for name in ("dropped", "cached", "direct")]
    seconds, cpu = ([way[metric]["median"] for way in ways] for metric in ("seconds", "cpu_s"))
    rounds = len(ways[0]["seconds"]["values"])
    return (
        f"  {result['mib'] / 1024:.3g} GiB in pieces of 4 MiB and one `fsync` took {seconds[0]:.1f} s with `RWF_DONTCACHE`, {seconds[1]:.1f} through the page cache "
        f"and {seconds[2]:.1f} by direct writes\n  (`bench/results/writing.json`: medians of {rounds} rounds; CPU time {cpu[0]:.1f}, {cpu[1]:.1f} and {cpu[2]:.1f} s)."
    )


def _tables(folder: Path) -> str:
    cases = saved.cases(folder)
    prefill, decode, imports = (cases["tables", name] for name in ("prefill", "decode", "import"))
    fetch = cases["tables", "engramdb_fetch_264"]
    theirs_cached = (
        f"{fetch.value('engramdb_cached', 'us_1'):.1f} cached"
        if fetch.has("engramdb_cached", "us_1")
        else "not measured cached"
    )
    ways = ("in_place", "checksums", "packed")

    def line(what: str, found: saved.Found, metric: str, unit: str, digits: int = 1, scale: float = 1.0) -> str:
        return (
            f"| {what} | " + " | ".join(f"{found.value(way, metric) / scale:.{digits}f} {unit}" for way in ways) + " |"
        )

    floors = sorted(prefill.value(way, "over_floor") for way in ways)
    keys_us = median(decode.value(way, "keys_us") for way in ways)
    return "\n".join(
        (
            f"A synthetic Engram checkpoint of 5 GB, 48 rows of 264 B a token, every row as likely as any other; two shared cores "
            f"(`bench/results/{prefill.file}`, `python -m bench tables`).",
            "",
            "| | in place | `--checksums` | `--pack` |",
            "|---|---:|---:|---:|",
            line("import", imports, "seconds", "s"),
            line("prompt of 2,048 tokens (98,304 rows), files out of the page cache", prefill, "ms", "s", 2, 1000),
            line("one token, 48 cached rows, as float32", decode, "us", "us"),
            "",
            f"Finding the 48 row numbers takes another {keys_us:.0f} us a token. A cold prompt is bounded by the disk: it "
            f"took {floors[0]:.2f} to {floors[-1]:.2f} times as long as bare hinted reads of\nthe same pages. So start `prefetch` early, and size the "
            "cache by a trace of your own traffic: evenly drawn keys are the worst case for it. Beside\n`engramdb-python`, rows as stored bytes, files in the page cache, "
            f"one token a call: {fetch.value('ngramstore_uncached', 'us_1'):.1f} us without a row cache and {fetch.value('ngramstore', 'us_1'):.1f} us "
            f"cached; `engramdb-python` {fetch.value('engramdb', 'us_1'):.1f} without a cache (`Store.fetch`) and {theirs_cached} (its torch module).",
        )
    )


PAGES: dict[Path, dict[str, Callable[[Path], str]]] = {
    _DOCS / "codecs.md": codec_page.TABLES,
    _DOCS / "design.md": {"writing": _writing},
    _DOCS / "mining.md": {"mining": _mining},
    _DOCS / "tables.md": {"tables": _tables},
    _DOCS / "operating.md": {"resident rows": _floors, "threads": _threads},
    _DOCS / "scale.md": scale_prose.SENTENCES,
}
