"""`ngramstore inspect`: a store, a block or a row as a human reads it: fields, places, bytes, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ngramstore.cli.common import as_ngram, bytes_text, emit, json_option, row_text, table, trust_option
from ngramstore.errors import UsageError


@click.command(name="inspect", short_help="Show a store, a block or a row in readable form.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--block", type=int, help="List this block of 64 rows of the base, counted from 0.")
@click.option(
    "--row",
    "number",
    type=int,
    help="Show this row of the base: its rank by ID, or its number where rows are addressed by number.",
)
@click.option("--ngram", help='Show the row of this n-gram, such as "3,14", in the base or among changes.')
@trust_option
@json_option
def command(
    store: Path, block: int | None, number: int | None, ngram: str | None, trust_external: bool, as_json: bool
) -> None:
    """Show what lies on disk. Without an option: the manifest, and the header of every file, field by field.

    --block lists the rows of a block: ID, n-gram, where each is stored. --row and --ngram show one row: its place, the hex of
    its stored bytes, whether its checksum is right, and its values. An n-gram that is not stored is reported as such; that is
    not an error.

    \b
    Examples:
      ngramstore inspect store/
      ngramstore inspect store/ --block 0
      ngramstore inspect store/ --ngram "3,14"
    """
    if sum(choice is not None for choice in (block, number, ngram)) > 1:
        raise UsageError("--block, --row and --ngram exclude each other")
    result = _found(store, trust_external, block, number, ngram)
    if as_json:
        emit(result)
    else:
        _print(result)


def _found(
    path: Path, trust_external: bool, block: int | None, number: int | None, ngram: str | None
) -> dict[str, Any]:
    """What was asked for, as --json prints it."""
    from ngramstore.store.view import View

    view = View.open(path, trust_external=trust_external)
    if block is not None:
        return _block(view, block)
    if number is not None:
        _require_row(view.base, number)
        return _row(view, view.base, number)
    if ngram is not None:
        return _of_ngram(view, as_ngram(ngram))
    return _store(view)


def _print(result: dict[str, Any]) -> None:
    """A manifest with its files, a block, or a row, for people."""
    if "manifest" in result:
        _print_fields("manifest", result["manifest"])
        for name, fields in result["files"].items():
            _print_fields(name, fields)
    elif "rows" in result:
        lines = [
            (line["row"], line["id"], _words(line["ngram"]), line["file_offset"], line["stored_bytes"], line["is_good"])
            for line in result["rows"]
        ]
        click.echo(f"{result['file']}: block {result['block']}")
        click.echo(table(("row", "ID", "n-gram", "at byte", "stored", "good"), lines))
    elif not result.get("found", True):
        click.echo(f"the n-gram {_words(result['ngram'])} is not stored; its ID is {result['id']}")
    else:
        shown = {name: value for name, value in result.items() if name != "found"}
        _print_fields(f"row {result['row']} of {result['file']}", shown)


def _store(view: Any) -> dict[str, Any]:
    import json

    from ngramstore.store.layers.manifest import MANIFEST_NAME

    text = (view.directory / MANIFEST_NAME).read_bytes().partition(b"\n")[2]
    return {
        "manifest": json.loads(text),
        "files": {file.path.name: {name: _plain(value) for name, value in file.header.items()} for file in view.files},
    }


def _block(view: Any, block: int) -> dict[str, Any]:
    from ngramstore.layout import BLOCK_ROWS
    from ngramstore.store.layers.packed_layer import PackedLayer

    layer = view.base
    if not isinstance(layer, PackedLayer):
        raise UsageError(
            f"the rows of {view.directory} are read in place from a checkpoint and have no blocks", hint="use --row"
        )
    if block < 0 or block * BLOCK_ROWS >= layer.num_rows:
        raise UsageError(f"block {block} does not exist", hint=f"blocks are 0 to {(layer.num_rows - 1) // BLOCK_ROWS}")
    first = block * BLOCK_ROWS
    count = min(BLOCK_ROWS, layer.num_rows - first)
    bad: list[int] = []
    batch = layer.batch(first, count, bad=bad)
    starts, sizes = layer.places(first, count)
    rows = [
        {
            "row": first + i,
            "id": f"0x{int(batch.ids[i]):016x}" if layer.is_keyed else int(batch.ids[i]),
            "ngram": batch.tokens[i, : batch.lengths[i]].tolist() if layer.tokens is not None else None,
            "file_offset": int(starts[i]),
            "stored_bytes": int(sizes[i]),
            "is_good": first + i not in bad,
        }
        for i in range(count)
    ]
    return {"file": layer.rows.path.name, "block": block, "rows": rows}


def _of_ngram(view: Any, ngram: tuple[int, ...]) -> dict[str, Any]:
    from ngramstore.hashing import ngram_ids
    from ngramstore.kernels.native.index import RANK_BITS, RANK_MASK
    from ngramstore.windows import as_ngrams

    spec = view.manifest.spec
    if not spec.is_ngram:
        raise UsageError(f"{view.directory} addresses rows by number", hint="use --row")
    tokens, lengths = as_ngrams([ngram], spec.max_n)
    ids = ngram_ids(tokens, lengths, spec.seed)
    key = int(view.find(ids)[0])
    if key < 0:
        return {"found": False, "ngram": list(ngram), "id": f"0x{int(ids[0]):016x}"}
    return {"found": True} | _row(view, view.layer_of(key >> RANK_BITS), key & RANK_MASK)


def _row(view: Any, layer: Any, number: int) -> dict[str, Any]:
    from ngramstore.layout import CHECKSUM_BYTES
    from ngramstore.store.layers.packed_layer import PackedLayer

    bad: list[int] = []
    batch = layer.batch(number, 1, bad=bad)
    codec = view.manifest.spec.codec
    start, size, stored, is_compressed = None, codec.row_bytes, batch.rows.tobytes(), False
    if isinstance(layer, PackedLayer):
        (start,), (size,) = (values.tolist() for values in layer.places(number, 1))
        stored = layer.rows.file.read(start, size + CHECKSUM_BYTES)
        is_compressed = layer.rows.is_compressed and size < layer.rows.row_bytes
    codes, scales = codec.unpack(batch.rows)
    values = codec.decode(batch.rows)[0]
    return {
        "file": layer.path_of(number).name,
        "row": number,
        "id": f"0x{int(batch.ids[0]):016x}" if layer.is_keyed else int(batch.ids[0]),
        "ngram": batch.tokens[0, : batch.lengths[0]].tolist() if layer.tokens is not None else None,
        "file_offset": start,
        "stored_bytes": size,
        "is_compressed": is_compressed,
        "checksum": stored[size:].hex(),
        "is_good": not bad,
        "stored_hex": stored[:size].hex(),
        "codes": codes[0].tolist(),
        "scales": None if scales is None else scales[0].tolist(),
        "values": None if bad else values.tolist(),
    }


def _require_row(layer: Any, number: int) -> None:
    if not 0 <= number < layer.num_rows:
        raise UsageError(f"row {number} does not exist", hint=f"rows are 0 to {layer.num_rows - 1:,}")


def _print_fields(title: str, fields: dict[str, Any]) -> None:
    click.echo(f"{title}")
    for name, value in fields.items():
        if name in ("codes", "values") and value is not None:
            value = row_text(value, 8)
        elif name == "stored_hex":
            value = f"{value[:64]}{'...' if len(value) > 64 else ''}"
        elif name == "ngram":
            value = _words(value)
        elif name in ("file_bytes", "bytes") and isinstance(value, int):
            value = f"{value} ({bytes_text(value)})"
        click.echo(f"  {name:<16} {value}")


def _words(ngram: list[int] | None) -> str:
    return "(not kept)" if ngram is None else " ".join(map(str, ngram))


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
