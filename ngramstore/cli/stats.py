"""`ngramstore stats`: what a store holds and what it costs on disk."""

from __future__ import annotations

from pathlib import Path

import click

from ngramstore.cli.common import bytes_text, emit, json_option, trust_option


@click.command(name="stats", short_help="Counts, sizes and settings of a store.")
@click.argument("store", type=click.Path(path_type=Path))
@trust_option
@json_option
def command(store: Path, trust_external: bool, as_json: bool) -> None:
    """Print the numbers of a store: rows, lengths of its n-grams, codec, bytes on disk. Reads the manifest and headers only.

    \b
    Example:
      ngramstore stats store/ --json
    """
    from ngramstore.kernels.jit import cache_is_on_disk
    from ngramstore.store.stats import stats_of
    from ngramstore.store.view import View

    view = View.open(store.absolute(), trust_external=trust_external)
    stats = stats_of(view) | {"kernels_cached_on_disk": cache_is_on_disk(), "metadata": view.manifest.spec.metadata}
    if as_json:
        emit(stats)
        return
    for name, value in stats.items():
        if isinstance(value, dict):
            if value:
                click.echo(f"{name}:")
            for key, inner in value.items():
                click.echo(f"  {key!s:<24} {bytes_text(inner) if name == 'file_bytes' else _text(inner)}")
        else:
            click.echo(f"{name:<24}  {bytes_text(value) if name.endswith('bytes') else _text(value)}")


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
