"""`ngramstore verify`: read everything, list every fault with file and offset; exit status 1 if there is one."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ngramstore.cli.common import bytes_text, emit, json_option, quiet_option, say


@click.command(name="verify", short_help="Read everything and list every fault.")
@click.argument("store", type=click.Path(path_type=Path))
@quiet_option
@json_option
@click.pass_context
def command(ctx: click.Context, store: Path, quiet: bool, as_json: bool) -> None:
    """Read every byte of a store and check it. Prints a line for each fault; exit status 1 if there is one.

    Checks the manifest, headers, index pages, the order of IDs, each row's checksum and frame, each n-gram against its ID,
    counts, padding, the published changes, and the journal if no writer is at work. Nothing is changed.

    \b
    Examples:
      ngramstore verify store/
      ngramstore verify store/ --json
    """
    from ngramstore.store.repair.check import examine

    begin = time.perf_counter()
    report = examine(store, progress=not quiet)
    seconds = time.perf_counter() - begin
    if as_json:
        faults = [{"file": fault.file, "offset": fault.offset, "what": fault.what} for fault in report.faults]
        result = {"store": str(store), "is_well": not faults, "faults": faults, "notes": report.notes}
        emit(result | {"rows": report.num_rows, "bytes": report.num_bytes, "seconds": round(seconds, 3)})
    else:
        for fault in report.faults:
            click.echo(str(fault))
        for note in report.notes:
            say(f"note: {note}")
        read = f"{report.num_rows:,} rows, {bytes_text(report.num_bytes)}, {seconds:.1f} s"
        if report.faults:
            next_step = "`ngramstore repair` saves what is good"
            if report.manifest is None:
                next_step = "without its MANIFEST nothing can be saved: put a copy back, from a backup made since the last compaction"
            elif report.manifest.sources:
                next_step = "rows are read in place, and `ngramstore repair` takes no such store: put the checkpoint's files back, or import them again"
            say(f"{store}: {len(report.faults):,} faults ({read}); {next_step}")
        else:
            click.echo(f"{store}: all is well ({read})")
    ctx.exit(1 if report.faults else 0)
