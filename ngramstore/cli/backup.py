"""`ngramstore backup`: a copy of the published state in a new directory."""

from __future__ import annotations

from pathlib import Path

import click

from ngramstore.cli.common import bytes_text, emit, json_option, quiet_option, trust_option


@click.command(name="backup", short_help="Copy the published state into a new directory.")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@trust_option
@quiet_option
@json_option
def command(store: Path, target: Path, trust_external: bool, quiet: bool, as_json: bool) -> None:
    """Copy the published state of STORE into the new directory TARGET, complete or not at all, while others read and write.

    Changes that a writer has not flushed are not in it. Bytes are copied as they are: run `ngramstore verify TARGET` afterwards.
    Rows that an import left in place are not copied: the backup, too, reads them in the checkpoint's files.

    \b
    Example:
      ngramstore backup store/ /backup/store-monday && ngramstore verify /backup/store-monday
    """
    import ngramstore as ngs

    with ngs.open(store, cache_bytes=0, trust_external=trust_external) as opened:
        opened.backup(target, progress=not quiet)
    with ngs.open(target, cache_bytes=0, trust_external=trust_external) as copy:
        stats = copy.stats()
    if as_json:
        names = ("generation", "identity", "rows", "total_bytes")
        emit({"store": str(store), "backup": str(target)} | {name: stats[name] for name in names})
    else:
        click.echo(
            f"{target}: {stats['rows']:,} rows, {bytes_text(stats['total_bytes'])}, generation {stats['generation']}"
        )
