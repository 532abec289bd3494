"""`ngramstore get`: the rows of exactly these n-grams, or of these row numbers."""

from __future__ import annotations

from pathlib import Path

import click

from ngramstore.cli.common import as_ngram, emit, json_option, row_text, trust_option
from ngramstore.errors import UsageError


@click.command(name="get", short_help="Rows of n-grams, or of row numbers.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--ngram", "ngrams", multiple=True, help='Token ids, such as "3,14"; can be repeated.')
@click.option(
    "--row",
    "numbers",
    multiple=True,
    type=int,
    help="A row number, where rows are addressed by number; can be repeated.",
)
@click.option("--all-values", is_flag=True, help="Print whole rows, not only their first values.")
@trust_option
@json_option
def command(
    store: Path,
    ngrams: tuple[str, ...],
    numbers: tuple[int, ...],
    all_values: bool,
    trust_external: bool,
    as_json: bool,
) -> None:
    """Print the rows of n-grams (or of row numbers). An n-gram that is not stored is reported as such; that is not an error.

    \b
    Examples:
      ngramstore get store/ --ngram "3,14" --ngram "15 9 2"
      ngramstore get engram/ --row 17 --row 4 --json
    """
    import numpy as np

    import ngramstore as ngs

    if bool(ngrams) == bool(numbers):
        raise UsageError("give --ngram or --row", hint='such as --ngram "3,14"')
    with ngs.open(store, cache_bytes=0, trust_external=trust_external) as opened:
        if ngrams:
            keys: list = [as_ngram(text) for text in ngrams]
            rows, found = opened.get(keys)
        else:
            keys = list(numbers)
            rows, found = opened.rows(keys), np.ones(len(keys), bool)
    if as_json:
        results = [
            {"key": key, "found": bool(there), "row": row.tolist() if there else None}
            for key, row, there in zip(keys, rows, found, strict=True)
        ]
        emit({"store": str(store), "results": results})
        return
    for key, row, there in zip(keys, rows, found, strict=True):
        name = " ".join(map(str, key)) if ngrams else str(key)
        click.echo(f"{name}\t{row_text(row, len(row) if all_values else 6) if there else 'not stored'}")
