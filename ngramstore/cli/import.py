"""`ngramstore import`: serve the n-gram tables of a shipped checkpoint, in place or packed into a store of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ngramstore.cli.common import as_codec, bytes_text, emit, json_option, quiet_option, say
from ngramstore.cli.model_files import read_token_map, read_tokenizer


@click.command(name="import", short_help="Make a store of the n-gram tables of a shipped model.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--checksums",
    is_flag=True,
    help="Without --pack: also write a checksum of 4 bytes per row, so that every read is verified.",
)
@click.option("--pack", is_flag=True, help="Copy the rows into the store instead of reading them in place.")
@click.option(
    "--codec", help="With --pack: store them as int8, int4:group=32 or another codec.  [default: as they are]"
)
@click.option(
    "--compression",
    type=click.Choice(["auto", "none", "zstd"]),
    default="auto",
    show_default=True,
    help="With --pack; auto: zstd where it saves 5 % of a sample.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Engram: the model's tokenizer.json. The store keeps the digest of its token map.",
)
@click.option(
    "--token-map",
    type=click.Path(path_type=Path),
    help="Engram: the token map itself, a .npy file, in place of --tokenizer.",
)
@click.option("--restart", is_flag=True, help="Discard an import that was killed in OUT, instead of resuming it.")
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
    trust_external=True (`--trust-external` on the command line). If a --pack was killed, run the same command again to resume:
    the rows that are there are verified first. If files of CHECKPOINT were written to or replaced since, it needs --restart.

    \b
    Examples:
      ngramstore import DeepSeek-V4.1-Flash/ engram/
      ngramstore import Qwen3.8-Flash-Next-FP8/ ple/ --pack --codec int4
    """
    from ngramstore.store.imports.importing import import_checkpoint

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
        say(f"resumed behind {report.resumed_rows:,} rows that were there")
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
    return f"in place: {checked}; open it with trust_external=True (`--trust-external` on the command line)"
