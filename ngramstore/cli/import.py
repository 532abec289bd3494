"""`ngramstore import`: serve the n-gram tables of a shipped checkpoint, in place or packed into a store of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ngramstore.cli.common import as_codec, bytes_text, emit, json_option, quiet_option, say
from ngramstore.cli.keys import read_token_map, read_tokenizer


@click.command(name="import", short_help="Make a store of the n-gram tables of a shipped model.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--checksums", is_flag=True, help="In place: write 4 bytes a row beside, so that every read is verified.")
@click.option("--pack", is_flag=True, help="Copy the rows into the store instead of reading them in place.")
@click.option("--codec", help='With --pack: store them as, for example, int8 or "int4:group=32". Default: as they are.')
@click.option("--compression", type=click.Choice(["auto", "none", "zstd"]), default="auto", show_default=True)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json; Engram: freeze its token map's digest."
)
@click.option("--token-map", type=click.Path(path_type=Path), help="Or the token map itself, a .npy file.")
@click.option(
    "--restart", is_flag=True, help="Throw away an import that was killed in OUT, instead of going on with it."
)
@quiet_option
@json_option
def command(
    checkpoint: Path,
    out: Path,
    checksums: bool,
    pack: bool,
    codec: str | None,
    compression: str,
    tokenizer: Path | None,
    token_map: Path | None,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Recognize the tables in CHECKPOINT (config.json and safetensors files) and make a store in OUT.

    By default nothing is copied: OUT holds a manifest that points into the checkpoint's files. Open such a store with
    trust_external=True. A --pack that was killed goes on where it was when the same command is given again; the rows that
    are there are verified first.

    \b
    Examples:
      ngramstore import DeepSeek-V4.1-Flash/ engram/
      ngramstore import Qwen3.8-Flash-Next-FP8/ ple/ --pack --codec int4
    """
    from ngramstore.store.importing import import_checkpoint

    report = import_checkpoint(
        checkpoint,
        out,
        checksums=checksums,
        pack=pack,
        codec=None if codec is None else as_codec(codec),
        compression=compression,
        tokenizer=None if tokenizer is None else read_tokenizer(tokenizer),
        token_map=None if token_map is None else read_token_map(token_map),
        restart=restart,
        progress=not quiet,
    )
    if as_json:
        emit(report.as_dict())
        return
    if report.resumed_rows:
        say(f"went on behind {report.resumed_rows:,} rows that were there")
    click.echo(f"{report.model}: {report.num_rows:,} rows of {report.dim} values, {report.codec['name']}")
    click.echo(_where(report))
    if report.largest_error:
        click.echo(
            f"error of {report.codec['name']}: {report.rms_error:.3g} rms, {report.largest_error:.3g} at most "
            f"(values: {report.rms_value:.3g} rms), over a sample"
        )
    click.echo(f"zstd would save {report.zstd_saves:.1%} of these rows" + (": used" if report.is_compressed else ""))


def _where(report: Any) -> str:
    if not report.is_in_place:
        return f"packed: {bytes_text(report.disk_bytes)}, every row under a checksum"
    checked = (
        f"every row verified by {bytes_text(report.disk_bytes)} of checksums" if report.is_checked else "rows unchecked"
    )
    return f"in place: {checked}; open it with trust_external=True"
