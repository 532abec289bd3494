"""`ngramstore warm`: read the rows of a trace once, so that their pages are in memory for every process of this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ngramstore.cli.common import ByteSize, bytes_text, emit, json_option, quiet_option, trust_option

_STEP_ROWS = 1 << 16


@click.command(name="warm", short_help="Load the rows of a trace into the page cache.")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--max-bytes", type=ByteSize(), help="Stop after this many bytes of rows.  [default: all]")
@trust_option
@quiet_option
@json_option
def command(store: Path, trace: Path, max_bytes: int | None, trust_external: bool, quiet: bool, as_json: bool) -> None:
    """Load rows of STORE into the page cache (`ngramstore warmup` compiles kernels).

    TRACE, made by `ngramstore trace`, says which rows; the most frequent are read first. All processes share the page
    cache; the system drops pages from it when memory runs short. A row cache belongs to one process: fill it there with
    `store.warm(ngramstore.Trace.load("hot.ngt"))`.

    \b
    Example:
      ngramstore warm ple/ hot.ngt --trust-external --max-bytes 2GiB
    """
    from tqdm import tqdm

    import ngramstore as ngs

    begin = time.perf_counter()
    wanted = ngs.Trace.load(trace)
    with ngs.open(store, cache_bytes=64 << 20, trust_external=trust_external) as opened:
        limit = len(wanted.keys) if max_bytes is None else max_bytes // opened.spec.codec.row_bytes
        kept = wanted.top(limit)
        step = min(_STEP_ROWS, opened.stats()["cache_slots"])
        for at in tqdm(range(0, len(kept.keys), step), desc="warm", disable=quiet):
            part = slice(at, at + step)
            opened.warm(ngs.Trace(kept.addressing, kept.space, kept.num_lookups, kept.keys[part], kept.counts[part]))
        stats = opened.stats()
    seconds = time.perf_counter() - begin
    share = kept.share(len(kept.keys))
    if as_json:
        result = {"store": str(store), "rows_read": stats["rows_read"], "bytes_read": stats["bytes_read"]}
        emit(result | {"share_of_lookups": share, "seconds": round(seconds, 3)})
    else:
        click.echo(
            f"{stats['rows_read']:,} rows, {bytes_text(stats['bytes_read'])} in {seconds:.1f} s; they answered "
            f"{share:.1%} of the look-ups of the trace"
        )
