"""`ngramstore keys`: the row numbers that a model's tables are asked for, from its config alone where that suffices."""

from __future__ import annotations

from pathlib import Path

import click

from ngramstore.cli.common import as_ngram, emit, json_option
from ngramstore.cli.model_files import read_token_map, read_tokenizer
from ngramstore.errors import UsageError


@click.command(name="keys", short_help="Row numbers of tokens in the tables of a shipped model.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--tokens", required=True, help='Token ids of one sequence, such as "248044 1000 17".')
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Engram needs this or --token-map: the model's tokenizer.json."
)
@click.option(
    "--token-map",
    type=click.Path(path_type=Path),
    help="Engram: the token map itself, a .npy file, in place of --tokenizer.",
)
@json_option
def command(config: Path, tokens: str, tokenizer: Path | None, token_map: Path | None, as_json: bool) -> None:
    """Print the row number of each head at each token. CONFIG is the model's config.json (or the directory with it).

    Several tables of a model are numbered one after the other; `tables` says which rows are whose.

    \b
    Example:
      ngramstore keys config.json --tokens "248044 1000" --json
    """
    import numpy as np

    from ngramstore.keys import keys_from_config, read_config

    keys = keys_from_config(
        read_config(config),
        tokenizer=None if tokenizer is None else read_tokenizer(tokenizer),
        token_map=None if token_map is None else read_token_map(token_map),
    )
    ids = as_ngram(tokens)
    if not ids:
        raise UsageError("there are no tokens", hint='write integers, such as --tokens "248044 1000"')
    try:
        array = np.array(ids, np.int64)
    except OverflowError:
        raise UsageError(f"token id {max(ids)} is out of range", hint=f"ids are 0 to {keys.vocab_size - 1}") from None
    rows = keys.rows(array)
    if as_json:
        emit({"model": keys.model, "rows": rows, "tables": [vars(table) for table in keys.tables]})
        return
    for token, line in zip(ids, rows.tolist(), strict=True):
        click.echo(f"{token}\t{' '.join(map(str, line))}")
