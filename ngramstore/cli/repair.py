"""`ngramstore repair`: every good row of a damaged store into a new base, and a list of what is lost."""

from __future__ import annotations

from pathlib import Path

import click

from ngramstore.cli.common import emit, json_option, quiet_option, say


@click.command(name="repair", short_help="Save every good row of a damaged store.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only report what would be kept and what is lost.")
@click.option("--out", type=click.Path(path_type=Path), help="Write into this new directory and leave STORE as it is.")
@click.option("--drop-tokens", is_flag=True, help="Keep rows whose tokens are lost: the new store keeps none at all.")
@quiet_option
@json_option
def command(store: Path, dry_run: bool, out: Path | None, drop_tokens: bool, quiet: bool, as_json: bool) -> None:
    """Save every good row of a damaged store. Prints a line for each row or change that is lost, or for neighbours that are.

    An undamaged store is left unchanged. Otherwise all good rows, with published and unpublished changes, are written as a new
    base, which replaces the old one atomically; it needs room for a second copy. What is stored redundantly is restored: IDs from
    tokens, tokens from IDs, headers from the manifest. In row-addressed stores a lost row becomes zeros. A row whose tokens are
    lost can still be looked up, but not in a store that keeps tokens: it is dropped, or with --drop-tokens all tokens are. Exit
    status 1 if anything was lost, 0 if not.

    \b
    Examples:
      ngramstore repair store/ --dry-run
      ngramstore repair store/
      ngramstore repair store/ --out saved/
    """
    from ngramstore.store.repair.repair import repair

    report = repair(store, out, dry_run=dry_run, drop_tokens=drop_tokens, progress=not quiet)
    if as_json:
        emit(
            {
                "store": str(store),
                "out": report.out,
                "dry_run": dry_run,
                "faults": [str(fault) for fault in report.faults],
                "lost": report.lost,
                "lost_rows": report.num_lost,
                "lost_for_want_of_tokens": report.num_without_tokens,
                "rows": report.num_rows,
                "changed": report.is_damaged and not dry_run,
            }
        )
    else:
        for line in report.lost:
            click.echo(f"lost: {line}")
        if not report.is_damaged:
            click.echo(f"{store}: all is well, nothing to repair")
        else:
            verb = "would be kept" if dry_run else f"are in {report.out}"
            lost = f"{report.num_lost:,} rows lost ({len(report.lost):,} line{'s' * (len(report.lost) != 1)})"
            say(f"{len(report.faults):,} faults; {report.num_rows:,} rows {verb}, {lost}")
            if report.num_without_tokens:
                say(f"{report.num_without_tokens:,} of the lost rows only lack their tokens: --drop-tokens keeps them")
    click.get_current_context().exit(1 if report.lost else 0)
