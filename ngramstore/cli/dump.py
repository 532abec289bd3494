"""`ngramstore dump`: the n-grams and rows of a store as files that `build` reads again.

Shapes: M rows of a batch, D numbers of a row, B bytes of a stored row, K longest n-gram.
"""

from __future__ import annotations

import math
import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ngramstore.cli.common import bytes_text, emit, json_option, quiet_option, trust_option
from ngramstore.cli.dump_facts import FACTS_NAME, facts_of
from ngramstore.cli.row_input import rows_of_a_part
from ngramstore.errors import DamagedStore, UsageError

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.codec import Codec
    from ngramstore.serve.store import Store

_ROWS, _TOKENS, _LENGTHS = "rows.npy", "tokens.npy", "lengths.npy"
_LINES_AT_ONCE = 1 << 16


@click.command(name="dump", short_help="Write n-grams and rows as files that build reads.")
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--encoded", is_flag=True, help="Rows as they are stored, bit for bit, instead of f32.")
@click.option(
    "--ngrams",
    "only_ngrams",
    is_flag=True,
    help="No files: print the n-grams, one per line, in ID order. Rows are read and checked too.",
)
@trust_option
@quiet_option
@json_option
def command(
    store: Path,
    out: Path | None,
    encoded: bool,
    only_ngrams: bool,
    trust_external: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the published state of STORE into the new folder DIR, complete or not at all, while others read and write.

    An empty folder that is there is replaced.

    DIR gets rows.npy, (M, D) f32, with --encoded (M, bytes of a row) uint8; tokens.npy, (M, K) uint32 with zeros behind
    each n-gram, and lengths.npy, (M,) uint8; and metadata.json: the store's metadata, and its codec, dim, max_n and
    seed. `build` takes DIR as --vocab, rows.npy as --rows, metadata.json as --metadata. Rows are in the order of the
    store, changes applied; those of a store addressed by number need no n-grams. A damaged row ends the dump.
    Encoded rows, built with the same codec, dim and seed, give the same rows bit for bit; f32 rows fit any codec.

    \b
    Examples:
      ngramstore dump store/ dump/
      ngramstore build small/ --vocab dump/ --rows dump/rows.npy --metadata dump/metadata.json --codec int4
      ngramstore dump store/ exact/ --encoded
      ngramstore build same/ --vocab exact/ --rows exact/rows.npy --metadata exact/metadata.json \\
        --encoded --codec int8 --dim 1024
      ngramstore dump store/ --ngrams > ngrams.txt
    """
    import ngramstore as ngs

    if only_ngrams:
        if out is not None or encoded or as_json:
            raise UsageError("--ngrams prints text and writes no files", hint="leave out DIR, --encoded and --json")
    elif out is None:
        raise UsageError("dump needs DIR", hint="name a new folder, or give --ngrams to print the n-grams")
    with ngs.open(store, cache_bytes=0, trust_external=trust_external) as opened:
        _require_tokens(opened, only_ngrams)
        if out is None:
            _print_ngrams(opened)
            return
        if not len(opened):
            raise UsageError(
                f"{store} holds no rows", hint="there is nothing to build again; `backup` copies it as it is"
            )
        num_bytes = dump(opened, out, is_encoded=encoded, progress=not quiet)
        spec, num_rows = opened.spec, len(opened)
        again = _build_command(opened, out, encoded)
    if as_json:
        told = {"rows": num_rows, "dim": spec.dim, "addressing": spec.addressing, "codec": spec.codec.spec()}
        emit({"store": str(store), "dump": str(out)} | told | {"is_encoded": encoded, "bytes": num_bytes})
        return
    what = f"stored as {spec.codec.name}" if encoded else "f32"
    click.echo(f"{out}: {num_rows:,} rows of {spec.dim} numbers, {what}, {bytes_text(num_bytes)}")
    click.echo(f"to build it again: {again}")


def dump(store: Store, target: Path, *, is_encoded: bool, progress: bool = False) -> int:
    """Write the published state into a new or empty folder, complete or absent; returns bytes of arrays.

    progress: a bar on stderr. Raises UsageError, DiskFull, DamagedRows, DamagedStore.
    """
    from ngramstore.files import fsync_directory, our_errors, publish, rename
    from ngramstore.mine.scratch import folder_beside

    with our_errors(target):
        place = _place(store, target)
    with folder_beside(place) as folder:
        num_bytes = _write_arrays(store, folder, is_encoded, progress)
        publish(folder / FACTS_NAME, facts_of(store, is_encoded=is_encoded))
        rename(folder, place)
    fsync_directory(place.parent)
    return num_bytes


def _place(store: Store, target: Path) -> Path:
    """Where the folder comes to be, links followed."""
    place = Path(os.path.realpath(target))
    if Path(os.path.realpath(store.path)) in (place, *place.parents):
        raise UsageError(f"{target} lies in the store {store.path}", hint="give the dump a folder beside it")
    if os.path.lexists(place) and (not place.is_dir() or os.listdir(place)):
        raise UsageError(f"{target} is there already", hint="give the dump a new folder")
    if os.path.ismount(place) or (place.parent.is_dir() and not os.access(place.parent, os.W_OK)):
        raise UsageError(
            f"{target} cannot be replaced: a dump is written beside its place, and renamed there once it is whole",
            hint=f"give the dump a new folder in it, such as {target / 'dump'}",
        )
    return place


def _require_tokens(store: Store, only_ngrams: bool) -> None:
    """UsageError where the n-grams are wanted and the store has none, or only their IDs."""
    if not store.spec.is_ngram:
        if only_ngrams:
            raise UsageError(f"{store.path} is addressed by row number: it holds no n-grams")
    elif not store.spec.has_tokens:
        raise UsageError(
            f"{store.path} was built without tokens: it knows the IDs of its n-grams, not the tokens that a build needs",
            hint="`ngramstore backup` copies it as it is",
        )


def _write_arrays(store: Store, folder: Path, is_encoded: bool, progress: bool) -> int:
    """The `.npy` files, batch by batch; returns their bytes."""
    import numpy as np
    from tqdm import tqdm

    from ngramstore.file_writer import FileWriter
    from ngramstore.files import require_space
    from ngramstore.npy import npy_header

    spec, num_rows = store.spec, len(store)
    width, row_type = (spec.codec.row_bytes, "u1") if is_encoded else (spec.dim, "<f4")
    arrays: dict[str, tuple[str, tuple[int, ...]]] = {_ROWS: (row_type, (num_rows, width))}
    if spec.is_ngram:
        arrays |= {_TOKENS: ("<u4", (num_rows, spec.max_n)), _LENGTHS: ("u1", (num_rows,))}
    headers = {name: npy_header(*array) for name, array in arrays.items()}
    num_bytes = sum(len(headers[name]) + np.dtype(dtype).itemsize * math.prod(s) for name, (dtype, s) in arrays.items())
    require_space(folder, num_bytes, "the dump")
    step, count = rows_of_a_part(4 * spec.dim), 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(FileWriter(folder / name)) for name in arrays}
        for name, header in headers.items():
            files[name].write(header)
        bar = stack.enter_context(tqdm(total=num_rows, desc="dump", unit="row", unit_scale=True, disable=not progress))
        for tokens, lengths, rows in store.batches():
            if spec.is_ngram:
                files[_TOKENS].write(np.ascontiguousarray(tokens, "<u4"))
                files[_LENGTHS].write(np.ascontiguousarray(lengths, "u1"))
            for at in range(0, len(rows), step):
                part = np.ascontiguousarray(rows[at : at + step])
                files[_ROWS].write(part if is_encoded else _floats(spec.codec, part))
                bar.update(len(part))
            count += len(rows)
        if count != num_rows:
            raise DamagedStore(f"the manifest of {store.path} says {num_rows:,} rows, its layers hold {count:,}")
        for file in files.values():
            file.finish()
    return num_bytes


def _floats(codec: Codec, rows_MB: np.ndarray) -> np.ndarray:
    """C-contiguous stored rows (M, B) u8 -> (M, D) f32, as look-ups give them."""
    import numpy as np

    rows_MD = np.empty((len(rows_MB), codec.dim), np.float32)
    codec.scatter(rows_MB.reshape(-1), np.arange(len(rows_MB), dtype=np.int64) * codec.row_bytes, rows_MD)
    return rows_MD


def _print_ngrams(store: Store) -> None:
    for tokens, lengths, _ in store.batches():
        for at in range(0, len(lengths), _LINES_AT_ONCE):
            part = slice(at, at + _LINES_AT_ONCE)
            ngrams = zip(tokens[part].tolist(), lengths[part].tolist(), strict=True)
            click.echo("\n".join(" ".join(map(str, ngram[:length])) for ngram, length in ngrams))


def _build_command(store: Store, out: Path, is_encoded: bool) -> str:
    """What makes the store anew from the dump, with its codec."""
    spec = store.spec
    options = spec.codec.spec()
    codec = options.pop("name")
    if options:
        codec += ":" + ",".join(f"{key}={value}" for key, value in options.items())
    words = ["ngramstore", "build", "NEW", *(["--vocab", str(out)] if spec.is_ngram else [])]
    words += ["--rows", str(out / _ROWS), "--metadata", str(out / FACTS_NAME), "--codec", codec]
    words += ["--encoded", "--dim", str(spec.dim)] if is_encoded else []
    return shlex.join([*words, *(["--seed", str(spec.seed)] if spec.seed else [])])
