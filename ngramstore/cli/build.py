"""`ngramstore build`: rows from a file of tensors, and the n-grams they belong to, into a new store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ngramstore.cli.common import as_codec, build_options, bytes_text, emit, json_option, quiet_option
from ngramstore.cli.dump_facts import read_metadata
from ngramstore.cli.row_input import RowInput, open_row_input
from ngramstore.errors import UsageError


@click.command(name="build", short_help="Pack rows into a new store.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--rows", "rows_file", required=True, type=click.Path(path_type=Path), help=".safetensors, .npy or PyTorch file."
)
@click.option("--tensor", help="Which tensor of that file; not needed if it holds one matrix.")
@click.option("--vocab", type=click.Path(path_type=Path), help="The n-grams, in the order of the rows.")
@click.option(
    "--addressing",
    type=click.Choice(["ngram", "row"]),
    help="By n-gram, or by row number.  [default: ngram with --vocab, else row]",
)
@click.option(
    "--codec", default="int8", show_default=True, help="f32, f16, bf16, int8, int4, e4m3; options as int4:group=64."
)
@click.option(
    "--scales",
    help="The tensor of scales in the same file, where rows are codes already: a matrix, or a vector of one a row. "
    "Both are kept bit for bit.",
)
@click.option("--encoded", is_flag=True, help="Rows are uint8, each a whole stored row of --codec. Needs --dim.")
@click.option("--dim", type=int, help="Row width.  [default: that of the tensor]")
@click.option("--max-n", type=int, help="Longest n-gram the store takes, up to 16.  [default: that of the vocabulary]")
@click.option(
    "--duplicates",
    type=click.Choice(["error", "last"]),
    default="error",
    show_default=True,
    help="An n-gram given twice: refuse, or keep the last.",
)
@click.option(
    "--no-tokens",
    is_flag=True,
    help="Leave out the n-grams themselves: 8 to 12 B less per row; they cannot be listed, and puts cannot see collisions.",
)
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    help="Keep these metadata in the store: a file that holds a JSON object, or metadata.json of a `dump`.",
)
@build_options
@click.option("--restart", is_flag=True, help="Discard what a killed build left here.")
@json_option
@quiet_option
def command(store: Path, rows_file: Path, vocab: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Pack rows into a new store, which cannot be read before it is complete.

    Rows are streamed from the file, never loaded whole. --vocab may be the .ngv file of `mine`, an .npy array (M, n) of token
    ids, a folder with tokens.npy (M, K) and lengths.npy (M,), or text with one n-gram per line ("3 14", "3,14" or [3,
    14]). Without --vocab rows are addressed by their number. Rows that do not fit --memory are sorted on disk, in
    STORE: such a build needs room for twice the table, and asks for it before it reads a row.

    Of metadata.json of a `dump` only the metadata are taken: name its codec, dim and seed with the options. What a .ngv
    file says of itself is kept as "vocabulary", also beside --metadata.

    \b
    Examples:
      ngramstore build store/ --vocab vocab.ngv --rows table.safetensors --tensor fgrams --codec int8
      ngramstore build store/ --vocab ngrams.txt --rows rows.npy --codec int4 --memory 8GiB
      ngramstore build table/ --rows model.safetensors --tensor ngrams.weight --codec f16
      ngramstore build ple/ --rows ple.safetensors --tensor codes --scales scales --codec e4m3
      ngramstore build again/ --vocab dump/ --rows dump/rows.npy --metadata dump/metadata.json --codec int4
    """
    import ngramstore as ngs

    given = _inputs(rows_file, vocab, options)
    _pack(store, given, options, quiet)
    with ngs.open(store, cache_bytes=0) as done:
        stats = done.stats()
    if as_json:
        emit({"store": str(store), "rows_read": given.rows.num_rows} | {name: stats[name] for name in _REPORTED})
        return
    raw_bytes = given.rows.num_rows * given.dim * 4
    click.echo(
        f"{store}: {stats['rows']:,} rows of {given.dim} numbers, {given.codec.name}, {stats['compression']} compression, "
        f"{bytes_text(stats['total_bytes'])} ({stats['total_bytes'] / raw_bytes:.3f} of f32)"
    )


_REPORTED = ("rows", "dim", "max_n", "addressing", "codec", "compression", "suffix_closed", "identity", "total_bytes")

_OF_NGRAMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "--max-n": lambda options: options["max_n"] is not None,
    "--duplicates": lambda options: options["duplicates"] != "error",
    "--no-tokens": lambda options: options["no_tokens"],
    "--seed": lambda options: options["seed"] != 0,
}
"""What means nothing for rows addressed by number, and whether it was asked for."""


def _inputs(rows_file: Path, vocab: Path | None, options: dict[str, Any]) -> RowInput:
    """Open the files. Raises UsageError where options or shapes contradict one another."""
    addressing = options["addressing"]
    if addressing is not None and (addressing == "ngram") != (vocab is not None):
        raise UsageError(
            f"--addressing {addressing} {'needs' if vocab is None else 'has no use for'} --vocab",
            hint="n-grams come from --vocab; rows addressed by number have none",
        )
    if vocab is None:
        given = [option for option, is_given in _OF_NGRAMS.items() if is_given(options)]
        if given:
            raise UsageError(
                f"{given[0]} needs --vocab", hint="rows addressed by number have no n-grams; leave the option out"
            )
    if options["encoded"] and options["dim"] is None:
        raise UsageError("--encoded needs --dim", hint="give the width of the decoded rows")
    return open_row_input(
        rows_file,
        vocab,
        tensor=options["tensor"],
        scales=options["scales"],
        is_encoded=options["encoded"],
        codec=as_codec(options["codec"]),
        dim=options["dim"],
    )


def _pack(store: Path, given: RowInput, options: dict[str, Any], quiet: bool) -> None:
    """Stream the rows into a new store."""
    from tqdm import tqdm

    import ngramstore as ngs

    rows, ngrams = given.rows, given.ngrams
    max_n = options["max_n"]
    if ngrams is not None and max_n is None:
        max_n = ngrams.max_n
    stored_as = given.codec if options["encoded"] else None
    metadata = {} if options["metadata"] is None else read_metadata(options["metadata"], stored_as)
    if ngrams is not None and ngrams.facts:
        metadata["vocabulary"] = ngrams.facts
    with (
        ngs.build(
            store,
            dim=given.dim,
            max_n=max_n,
            codec=given.codec.spec(),
            addressing="row" if ngrams is None else "ngram",
            compression=options["compression"],
            duplicates=options["duplicates"],
            tokens=not options["no_tokens"],
            seed=options["seed"],
            metadata=metadata,
            memory_bytes=options["memory"],
            threads=options["threads"],
            restart=options["restart"],
            progress=not quiet,
        ) as builder,
        tqdm(total=rows.num_rows, desc="read", unit="row", unit_scale=True, disable=quiet) as bar,
    ):
        builder.check_space(rows.num_rows)
        for _, keys, part in given.parts():
            if given.is_stored_form:
                builder.add_encoded_rows(part) if keys is None else builder.add_encoded(keys, part)
            else:
                builder.add_rows(part) if keys is None else builder.add(keys, part)
            bar.update(len(part))
