"""`ngramstore compact`: merge all changes into the packed rows."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ngramstore.cli.common import bytes_text, emit, json_option, quiet_option, trust_option


@click.command(name="compact", short_help="Merge all changes into the packed rows.")
@click.argument("store", type=click.Path(path_type=Path))
@trust_option
@quiet_option
@json_option
def command(store: Path, trust_external: bool, quiet: bool, as_json: bool) -> None:
    """Merge all changes, also those not published yet, into the packed rows, so that look-ups probe one index again.

    Needs room for a second copy of the store. Readers keep what they have open. Rows that an import
    left in place are copied into the store, which needs no --trust-external afterwards.

    \b
    Example:
      ngramstore compact store/
    """
    import ngramstore as ngs

    begin = time.perf_counter()
    with ngs.open(store, mode="rw", cache_bytes=0, trust_external=trust_external) as opened:
        before = opened.stats()
        opened.flush()
        changes = opened.stats()
        opened.compact(progress=not quiet)
        after = opened.stats()
    seconds = time.perf_counter() - begin
    names = ("generation", "rows", "overlay_rows", "tombstones", "unpublished_changes", "total_bytes")
    if as_json:
        state = {"before": {name: before[name] for name in names}, "after": {name: after[name] for name in names}}
        emit(
            {"store": str(store), "changed": before["generation"] != after["generation"]} | state | {"seconds": seconds}
        )
    elif before["generation"] == after["generation"]:
        click.echo(f"{store}: nothing to merge")
    else:
        click.echo(
            f"{store}: merged {changes['overlay_rows']:,} changed rows and "
            f"{changes['tombstones']:,} deletions into {after['rows']:,} rows, "
            f"{bytes_text(after['total_bytes'])}, {seconds:.1f} s"
        )
