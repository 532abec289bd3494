"""`ngramstore sizes`: disk and memory of a store before it is built, for each codec, from counts alone."""

from __future__ import annotations

import click
from click.core import ParameterSource

from ngramstore.cli.common import Count, as_codec, bytes_text, emit, json_option, table
from ngramstore.errors import UsageError


@click.command(name="sizes", short_help="Disk and memory of a store before building it.")
@click.option("--rows", required=True, type=Count(), help="How many rows, such as 1B.")
@click.option("--dim", required=True, type=int, help="Row width.")
@click.option("--codec", help="Only this codec, such as int8 or int4:group=64.  [default: all of them]")
@click.option(
    "--addressing",
    type=click.Choice(["ngram", "row"]),
    default="ngram",
    show_default=True,
    help="By n-gram, or by row number: with an index of some kilobytes, without tokens.",
)
@click.option("--mean-length", default=3.0, show_default=True, help="Average tokens in an n-gram.")
@click.option("--no-tokens", is_flag=True, help="Leave out the n-grams themselves, as `build --no-tokens` does.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    rows: int,
    dim: int,
    codec: str | None,
    addressing: str,
    mean_length: float,
    no_tokens: bool,
    as_json: bool,
) -> None:
    """Print the space that a store will take, without compression. Nothing is read or written.

    Disk is rows, index and tokens together. `index` is mapped, and in memory when it is warm; `resident` is the memory of
    a store opened with resident=True, index included; `cache for all` is the row cache that would hold every row.

    \b
    Examples:
      ngramstore sizes --rows 1B --dim 2048
      ngramstore sizes --rows 100M --dim 1024 --codec int8 --json
    """
    from ngramstore.store.sizes import sizes

    if rows < 1:
        raise UsageError(f"--rows {rows}", hint="give at least one row")
    for name, option in (("mean_length", "--mean-length"), ("no_tokens", "--no-tokens")):
        if addressing == "row" and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(f"{option} is for stores of n-grams, not with --addressing row", hint="leave it out")
    found = sizes(
        rows,
        dim,
        codec=as_codec(codec) if codec else None,
        addressing=addressing,
        mean_length=mean_length,
        tokens=not no_tokens,
    )
    if as_json:
        emit({"rows": rows, "dim": dim, "addressing": addressing, "sizes": [size.as_dict() for size in found]})
        return
    header = ("codec", "row", "disk", "rows", "index", "tokens", "resident", "cache for all")
    click.echo(
        table(
            header,
            [
                (
                    size.codec,
                    *map(
                        bytes_text,
                        (
                            size.row_bytes,
                            size.disk_bytes,
                            size.rows_bytes,
                            size.index_bytes,
                            size.tokens_bytes,
                            size.resident_bytes,
                            size.cache_bytes_for_all,
                        ),
                    ),
                )
                for size in found
            ],
        )
    )
