"""`ngramstore put`: insert, replace or delete rows of a store, from files as `build` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import emit, json_option, quiet_option, say, trust_option
from ngramstore.cli.row_input import RowInput, open_row_input, rows_of_a_part
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.serve.store import Store
    from ngramstore.store.building.ngram_files import NgramFile

_REPORTED = ("generation", "rows", "overlay_rows", "tombstones")
_CHECKED_AT_ONCE = 1 << 16
_OF_ROWS = ("vocab", "tensor", "first", "scales", "encoded")


@click.command(name="put", short_help="Insert, replace or delete rows of a store.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--rows", "rows_file", type=click.Path(path_type=Path), help=".safetensors, .npy or PyTorch file.")
@click.option("--tensor", help="Which tensor of that file; not needed if it holds one matrix.")
@click.option("--vocab", type=click.Path(path_type=Path), help="The n-grams of the rows, as `build` takes them.")
@click.option(
    "--first",
    type=click.IntRange(0),
    help="A store addressed by row number: the row that the first one of the file replaces; the others follow it.",
)
@click.option("--scales", help="The tensor of scales in the same file, where rows are codes already.")
@click.option("--encoded", is_flag=True, help="Rows are uint8, each a whole stored row of the store's codec.")
@click.option(
    "--delete", "deleted", type=click.Path(path_type=Path), help="Delete these n-grams; a file as for --vocab."
)
@trust_option
@json_option
@quiet_option
def command(store: Path, trust_external: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Insert the rows of n-grams in STORE or replace those that are there; or delete n-grams. Width and codec are the store's.

    Of an n-gram given twice the last row counts; n-grams to delete that are not stored are fine. Files are read in
    parts of about 16 MiB. Each part is in the store's journal at once, whole or not at all; all are published when the
    command ends. If it fails before that, readers see nothing of it, and the next `put`, `compact` or other
    writer publishes the parts that are in the journal: to give the same command again is safe. Look-ups slow down as
    changes add up: `ngramstore compact` merges them.

    \b
    Examples:
      ngramstore put store/ --vocab new.txt --rows new.npy
      ngramstore put store/ --delete old.txt
      ngramstore put table/ --rows rows.npy --first 5000
      ngramstore put store/ --vocab dump/ --rows dump/rows.npy --encoded
    """
    import ngramstore as ngs

    if (options["rows_file"] is None) == (options["deleted"] is None):
        raise UsageError("give --rows or --delete", hint="rows to put with --vocab, or n-grams to delete")
    with ngs.open(store, mode="rw", cache_bytes=0, trust_external=trust_external) as opened:
        counts = _put(opened, quiet, options) if options["deleted"] is None else _delete(opened, quiet, options)
        stats = opened.stats()
    if as_json:
        emit({"store": str(store)} | counts | {name: stats[name] for name in _REPORTED})
        return
    done = (
        f"{counts['inserted']:,} rows inserted, {counts['replaced']:,} replaced"
        if options["deleted"] is None
        else f"{counts['deleted']:,} rows deleted, {counts['absent']:,} n-grams were not stored"
    )
    found = counts["found_unpublished"]
    earlier = f", with {found:,} changes that were in the journal" if found else ""
    click.echo(
        f"{store}: {done}{earlier}; {stats['rows']:,} rows, generation {stats['generation']}, "
        f"{stats['overlay_rows']:,} changed rows and {stats['tombstones']:,} deletions since the last compact"
    )


def _put(store: Store, quiet: bool, options: dict[str, Any]) -> dict[str, int]:
    """Put the rows of the files; returns how many were new, and how many in place of others."""
    spec, first = store.spec, options["first"]
    if spec.is_ngram and (options["vocab"] is None or first is not None):
        raise UsageError(
            f"{store.path} is addressed by n-gram", hint="give the n-grams of the rows with --vocab, and no --first"
        )
    if not spec.is_ngram and (options["vocab"] is not None or first is None):
        raise UsageError(f"{store.path} is addressed by row number", hint="give --first, and no --vocab")
    given = open_row_input(
        options["rows_file"],
        options["vocab"],
        tensor=options["tensor"],
        scales=options["scales"],
        is_encoded=options["encoded"],
        codec=spec.codec.spec(),
        dim=spec.dim,
    )
    total, before, found = given.rows.num_rows, len(store), store.stats()["unpublished_changes"]
    if not spec.is_ngram and first + total > before:
        raise UsageError(
            f"rows {first:,} to {first + total - 1:,} do not all exist; {store.path} has rows 0 to {before - 1:,}",
            hint="rows by number can be replaced, not added: build a larger store",
        )
    if given.ngrams is not None:
        _require_lengths(given.ngrams, options["vocab"], spec.max_n)
    _apply(store, _changes(given, first), total, "put", quiet)
    inserted = len(store) - before
    return {"put": total, "inserted": inserted, "replaced": total - inserted, "found_unpublished": found}


def _changes(given: RowInput, first: int | None) -> Iterator[tuple[Any, np.ndarray]]:
    """Keys and encoded rows, part by part. A value that cannot be stored is named by its row in the file."""
    import numpy as np

    for at, ngrams, rows in given.parts():
        encoded = rows if given.is_stored_form else given.codec.encode(rows, first_row=at)
        yield ngrams if first is None else np.arange(first + at, first + at + len(encoded)), encoded


def _delete(store: Store, quiet: bool, options: dict[str, Any]) -> dict[str, int]:
    """Delete the n-grams of a file; returns how many were stored, and how many were not."""
    from ngramstore.store.building.ngram_files import open_ngrams

    useless = [name for name in _OF_ROWS if options[name] is not None and options[name] is not False]
    if useless:
        raise UsageError(f"--delete has no use for --{useless[0]}", hint="--delete names the n-grams itself")
    if not store.spec.is_ngram:
        raise UsageError(
            f"{store.path} is addressed by row number", hint="rows by number can be replaced, not deleted: give --rows"
        )
    ngrams, found = open_ngrams(options["deleted"]), store.stats()["unpublished_changes"]
    _require_lengths(ngrams, options["deleted"], store.spec.max_n)
    step = rows_of_a_part(store.spec.codec.row_bytes, ngrams.max_n)  # the journal has room for a row beside each
    parts = ((part, None) for part in ngrams.chunks(step))
    deleted = _apply(store, parts, ngrams.num_ngrams, "delete", quiet)
    return {"deleted": deleted, "absent": ngrams.num_ngrams - deleted, "found_unpublished": found}


def _require_lengths(ngrams: NgramFile, name: Path, max_n: int) -> None:
    """UsageError for the first n-gram of a file that is longer than the store's, before anything is changed."""
    import numpy as np

    at = 0
    for _, lengths in ngrams.chunks(_CHECKED_AT_ONCE) if ngrams.max_n > max_n else ():
        if len(bad := np.flatnonzero(lengths > max_n)):
            raise UsageError(
                f"{name}: n-gram {at + bad[0]:,} has {lengths[bad[0]]} tokens, the store's have {max_n} at most",
                hint="leave longer ones out: they cannot be stored there",
            )
        at += len(lengths)


def _apply(store: Store, changes: Iterator[tuple[Any, np.ndarray | None]], total: int, what: str, quiet: bool) -> int:
    """Put each part, or delete it where it has no rows, and publish; returns how many n-grams were there to delete.

    What fails, after parts that may be in the journal already, says how many.
    """
    from tqdm import tqdm

    done = deleted = 0
    is_begun = False
    try:
        with tqdm(total=total, desc=what, unit="row", unit_scale=True, disable=quiet) as bar:
            for keys, rows in changes:
                is_begun = True
                if rows is None:
                    deleted += store.delete(keys)
                    count = len(keys[1])
                else:
                    store.put_encoded(keys, rows)
                    count = len(rows)
                done += count
                bar.update(count)
        store.flush()
    except BaseException:
        if is_begun:
            what_is_there = f"{what}: at least {done:,} of {total:,} are in the journal"
            say(f"{what_is_there}; the next put, compact or writer publishes them")
        raise
    return deleted
