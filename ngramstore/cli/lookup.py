"""`ngramstore lookup`: the longest stored n-gram that ends at each token of a sequence."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ngramstore.cli.common import as_ngram, emit, json_option, row_text, table, trust_option
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.serve.store import Store

_PART_TOKENS = 1 << 14
"""Rows of so many tokens are held at once."""


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

    if with_rows and not as_json:
        raise UsageError(
            "--rows is for --json", hint="add --json, or leave it out: the first values are printed anyway"
        )
    if text is None and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is no number either, and is refused as that
    lines = [text] if text is not None else (sys.stdin.readlines() if sys.stdin is not None else [])
    sequences = [as_ngram(line) for line in lines if line.strip()]
    if not sequences:
        raise UsageError("no tokens", hint='give --tokens "1 2 3", or sequences on stdin')
    results: list[dict] = []
    with ngs.open(store, trust_external=trust_external) as opened:
        if not opened.spec.is_ngram:
            raise UsageError(f"{store} addresses rows by number", hint="use `ngramstore get --row`")
        for tokens in sequences:
            if not as_json:
                click.echo(_shown(opened, tokens))
                continue
            result: dict = {"tokens": list(tokens), "length": opened.match_ids(np.array(tokens))[1].tolist()}
            if with_rows:
                result["rows"] = [row.tolist() for _, _, row in _found(opened, tokens)]
            results.append(result)
    if as_json:
        emit({"store": str(store), "sequences": results})


def _shown(store: Store, tokens: tuple[int, ...]) -> str:
    """A table for people, a line for each token."""
    import numpy as np

    cells = []
    for at, length, row in _found(store, tokens):
        ngram = " ".join(map(str, tokens[at + 1 - length : at + 1])) if length else "-"
        norm = f"{np.linalg.norm(row):.4g}" if length else "-"
        cells.append((at, tokens[at], length, ngram, norm, row_text(row, 4) if length else ""))
    return table(("position", "token", "length", "n-gram", "norm", "row"), cells)


def _found(store: Store, tokens: tuple[int, ...]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(position, length, row (D,) f32) of each token; looked up in parts, each with the tokens that an n-gram reaches back to."""
    import numpy as np

    tokens_T = np.array(tokens)
    for first in range(0, len(tokens), _PART_TOKENS):
        begin = max(0, first - store.max_n + 1)
        hit = store.lookup(tokens_T[begin : first + _PART_TOKENS])
        lengths, rows_TD = hit.length[first - begin :].tolist(), hit.rows[first - begin :]
        yield from zip(range(first, first + len(lengths)), lengths, rows_TD, strict=True)
