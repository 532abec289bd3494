"""`ngramstore lookup`: the longest stored n-gram that ends at each token of a sequence."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click

from ngramstore.cli.common import as_ngram, emit, json_option, row_text, table, trust_option
from ngramstore.errors import UsageError


@click.command(name="lookup", short_help="The longest stored n-gram at each token.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--tokens", "text", help='Token ids of one sequence, such as "1 2 3 4".  [default: stdin, one sequence per line]'
)
@click.option("--rows", "with_rows", is_flag=True, help="With --json: the rows too, not only their lengths.")
@trust_option
@json_option
def command(store: Path, text: str | None, with_rows: bool, trust_external: bool, as_json: bool) -> None:
    """Print, for each token, the length of the longest stored n-gram that ends there (0: none), and its row.

    Blank lines of stdin are passed over.

    \b
    Examples:
      ngramstore lookup store/ --tokens "1 2 3 4"
      ngramstore lookup store/ --tokens "1 2 3 4" --json --rows
      cat ids.txt | ngramstore lookup store/ --json
    """
    import numpy as np

    import ngramstore as ngs

    if text is None and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is no number either, and is refused as that
    lines = [text] if text is not None else (sys.stdin.readlines() if sys.stdin is not None else [])
    sequences = [as_ngram(line) for line in lines if line.strip()]
    if not sequences:
        raise UsageError("no tokens", hint='give --tokens "1 2 3", or sequences on stdin')
    results: list[dict] = []
    with ngs.open(store, trust_external=trust_external) as opened:
        for tokens in sequences:
            hit = opened.lookup(np.array(tokens))
            result: dict = {"tokens": list(tokens), "length": hit.length.tolist()}
            if as_json:
                results.append(result | ({"rows": hit.rows.tolist()} if with_rows else {}))
                continue
            cells = []
            for at, (token, length, row) in enumerate(zip(tokens, hit.length.tolist(), hit.rows, strict=True)):
                ngram = " ".join(map(str, tokens[at + 1 - length : at + 1])) if length else "-"
                norm = f"{np.linalg.norm(row):.4g}" if length else "-"
                cells.append((at, token, length, ngram, norm, row_text(row, 4) if length else ""))
            click.echo(table(("position", "token", "length", "n-gram", "norm", "row"), cells))
    if as_json:
        emit({"store": str(store), "sequences": results})
