"""`ngramstore build`: rows from a file of tensors, and the n-grams they belong to, into a new store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import as_codec, build_options, bytes_text, emit, json_option, quiet_option
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.codec import Codec
    from ngramstore.store.building.ngram_files import NgramFile
    from ngramstore.store.building.row_files import Table

_CHUNK_BYTES = 16 << 20


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

    \b
    Examples:
      ngramstore build store/ --vocab vocab.ngv --rows table.safetensors --tensor fgrams --codec int8
      ngramstore build store/ --vocab ngrams.txt --rows rows.npy --codec int4 --memory 8GiB
      ngramstore build table/ --rows model.safetensors --tensor ngrams.weight --codec f16
      ngramstore build ple/ --rows ple.safetensors --tensor codes --scales scales --codec e4m3
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


_OF_NGRAMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "--max-n": lambda options: options["max_n"] is not None,
    "--duplicates": lambda options: options["duplicates"] != "error",
    "--no-tokens": lambda options: options["no_tokens"],
    "--seed": lambda options: options["seed"] != 0,
}
"""What means nothing for rows addressed by number, and whether it was asked for."""


_SCALES = {"int8": ("F32", "F16", "BF16"), "int4": ("BF16", "U16"), "e4m3": ("F8_E8M0", "U8")}
"""Types of scales that a codec takes, or that widen to its own without loss. The bits of other types mean other numbers."""


@dataclass(frozen=True)
class _Inputs:
    """What the options name, opened and found to fit together."""

    rows: Table
    scales: Table | None
    ngrams: NgramFile | None
    codec: Codec
    dim: int
    is_encoded: bool


def _inputs(rows_file: Path, vocab: Path | None, options: dict[str, Any]) -> _Inputs:
    """Open the files. Raises UsageError where options or shapes contradict one another."""
    from ngramstore.codec import codec_from_spec
    from ngramstore.store.building.ngram_files import open_ngrams
    from ngramstore.store.building.row_files import open_table

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
    if options["encoded"] and (options["scales"] or options["dim"] is None):
        raise UsageError("--encoded needs --dim and has no use for --scales", hint="give the width of the decoded rows")
    rows = open_table(rows_file, options["tensor"])
    scales = open_table(rows_file, options["scales"], may_be_vector=True) if options["scales"] else None
    dim = rows.width if options["dim"] is None else options["dim"]
    codec = codec_from_spec(as_codec(options["codec"]), dim)
    width = codec.row_bytes if options["encoded"] else dim
    if rows.width != width:
        raise UsageError(f"{rows.name} has rows of {rows.width}, wanted {width}", hint="check --dim and --codec")
    if options["encoded"] and rows.dtype != "U8":
        raise UsageError(f"{rows.name} holds {rows.dtype}", hint="encoded rows are uint8")
    if scales is not None and scales.dtype not in _SCALES.get(codec.name, (scales.dtype,)):
        raise UsageError(
            f"{scales.name} holds {scales.dtype}", hint=f"scales of {codec.name} are {' or '.join(_SCALES[codec.name])}"
        )
    if scales is not None and scales.num_rows != rows.num_rows:
        raise UsageError(f"{rows.num_rows:,} rows of codes, {scales.num_rows:,} rows of scales")
    ngrams = open_ngrams(vocab) if vocab is not None else None
    if ngrams is not None and ngrams.num_ngrams != rows.num_rows:
        raise UsageError(
            f"{vocab} has {ngrams.num_ngrams:,} n-grams, {rows.name} has {rows.num_rows:,} rows",
            hint="row i belongs to n-gram i: there must be as many of each",
        )
    return _Inputs(rows, scales, ngrams, codec, dim, options["encoded"])


def _pack(store: Path, given: _Inputs, options: dict[str, Any], quiet: bool) -> None:
    """Stream the rows into a new store."""
    from tqdm import tqdm

    import ngramstore as ngs

    rows, ngrams = given.rows, given.ngrams
    max_n = options["max_n"]
    if ngrams is not None and max_n is None:
        max_n = ngrams.max_n
    step = max(1, _CHUNK_BYTES // (rows.width * rows.array.itemsize))
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
            metadata={"vocabulary": ngrams.facts} if ngrams and ngrams.facts else None,
            memory_bytes=options["memory"],
            threads=options["threads"],
            restart=options["restart"],
            progress=not quiet,
        ) as builder,
        tqdm(total=rows.num_rows, desc="read", unit="row", unit_scale=True, disable=quiet) as bar,
    ):
        builder.check_space(rows.num_rows)
        keys = ngrams.chunks(step) if ngrams is not None else None
        for at in range(0, rows.num_rows, step):
            count = min(step, rows.num_rows - at)
            encoded = _encoded(given, at, count)
            if encoded is not None:
                builder.add_encoded_rows(encoded) if keys is None else builder.add_encoded(next(keys), encoded)
            else:
                chunk = rows.floats(at, count)
                builder.add_rows(chunk) if keys is None else builder.add(next(keys), chunk)
            bar.update(count)


def _encoded(given: _Inputs, at: int, count: int) -> np.ndarray | None:
    """`count` rows from `at` as they will be stored, where the file has them so; None where it holds numbers to encode."""
    if given.is_encoded:
        return given.rows.array[at : at + count]  # part of the mapped file: not copied
    if given.scales is None:
        return None
    scales = _scales(given.codec.name, given.scales, at, count)
    chunk = given.codec.pack(given.rows.raw(at, count), scales)
    chunk.flags.writeable = False  # so that the build need not copy it
    return chunk


_REPORTED = ("rows", "dim", "max_n", "addressing", "codec", "compression", "suffix_closed", "identity", "total_bytes")


def _scales(codec: str, table: Table, at: int, count: int) -> Any:
    """Scales as `codec.pack` takes them: one f32 a row for int8, else a line of bits a row."""
    if codec != "int8":
        return table.raw(at, count)
    scales = table.floats(at, count).astype("f4")
    return scales.reshape(-1) if scales.shape[1] == 1 else scales
