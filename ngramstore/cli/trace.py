"""`ngramstore trace`: which rows real tokens ask for, and how often, into a small file that caches are warmed from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import (
    Count,
    bytes_text,
    corpus_options,
    emit,
    json_option,
    quiet_option,
    require_place,
    say,
    trust_option,
)
from ngramstore.cli.model_files import read_token_map, read_tokenizer
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    from ngramstore.mine import TokenShards
    from ngramstore.serve.store import Store
    from ngramstore.store.trace import Trace

_SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@click.command(name="trace", short_help="Record which rows a text requests, the most frequent first.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The trace to write.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="The model's tokenizer: for text, and for Engram's token map."
)
@click.option("--token-map", type=click.Path(path_type=Path), help="Engram: the token map itself, a .npy file.")
@corpus_options
@click.option("--top", type=Count(), help="Keep only this many of the most frequent rows.  [default: all]")
@click.option(
    "--max-entries",
    type=Count(),
    default="4M",
    show_default=True,
    help="Count at most this many rows; the rarest are dropped.",
)
@trust_option
@quiet_option
@json_option
def command(
    source: Path, inputs: tuple[Path, ...], out: Path, top: int | None, quiet: bool, as_json: bool, **options: Any
) -> None:
    """Record which rows the tokens of INPUTS request. No row is read.

    SOURCE is a store, or the config.json of a model whose n-gram table is known (`ngramstore keys`). INPUTS are token
    files (.npy, .bin) or text, as `ngramstore mine` takes them. Documents are sequences: no n-gram reaches back into
    the one before.

    \b
    Examples:
      ngramstore trace ple/ tokens.npy --out hot.ngt --trust-external
      ngramstore trace DeepSeek-V4.1-Flash/config.json logs/ --tokenizer DeepSeek-V4.1-Flash/ --out hot.ngt
    """
    from ngramstore.store.trace import TRACE_MAGIC  # here, so that --help needs no numpy

    require_place(out, "trace", TRACE_MAGIC)
    if top is not None and top < 1:
        raise UsageError(f"--top is {top}", hint="keep one row at least, or leave it out for all")
    trace, slot_bytes = _recorded(source, inputs, quiet, options)
    kept = trace if top is None else trace.top(top)
    kept.save(out)
    rows_for = {share: trace.rows_for(share) for share in _SHARES}
    num_dropped = trace.num_lookups - int(trace.counts.sum())  # what is dropped for room takes its counts with it
    if num_dropped:
        say(
            f"{num_dropped / trace.num_lookups:.1%} of the look-ups were of rows dropped for room: counts are lower bounds, and "
            f"how many rows there are is not known; raise --max-entries, which is {options['max_entries']:,}"
        )
    if not as_json:
        _print(out, kept, rows_for, slot_bytes)
        return
    emit(
        {
            "out": str(out),
            "lookups": trace.num_lookups,
            "distinct": None if num_dropped else len(trace.keys),
            "kept": len(kept.keys),
            "kept_share": kept.share(len(kept.keys)),
            "rows_for_share": {str(share): rows for share, rows in rows_for.items()},
            "cache_bytes_for_share": {
                str(share): None if slot_bytes is None or rows is None else rows * slot_bytes
                for share, rows in rows_for.items()
            },
        }
    )


def _print(out: Path, kept: Trace, rows_for: dict[float, int | None], slot_bytes: int | None) -> None:
    click.echo(f"{out}: {len(kept.keys):,} rows, {kept.share(len(kept.keys)):.1%} of {kept.num_lookups:,} look-ups")
    for share, rows in rows_for.items():
        held = "" if slot_bytes is None or rows is None else f", a cache of {bytes_text(rows * slot_bytes)}"
        said = "not known" if rows is None else f"{rows:,} rows{held}"
        if kept.num_lookups:
            click.echo(f"  {share:4.0%} of the look-ups: {said}")


def _recorded(source: Path, inputs: tuple[Path, ...], quiet: bool, options: dict[str, Any]) -> tuple[Trace, int | None]:
    """The trace, and what a cached row costs; None where `source` is a config, which says nothing of a codec."""
    if not (source / "MANIFEST").is_file():
        from ngramstore.keys import read_config

        return _of_keys(read_config(source), None, inputs, quiet, options), None

    import ngramstore as ngs
    from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES

    with ngs.open(source, cache_bytes=0, trust_external=options["trust_external"]) as store:
        return _of_store(store, inputs, quiet, options), store.spec.codec.row_bytes + SLOT_OVERHEAD_BYTES


def _of_store(store: Store, inputs: tuple[Path, ...], quiet: bool, options: dict[str, Any]) -> Trace:
    from ngramstore.mine import require_tokenizer
    from ngramstore.serve.recorder import record_matches

    if not store.spec.is_ngram:
        spec = store.metadata.get("keys")
        if spec is None:
            raise UsageError(
                f"{store.path} does not say how its rows are numbered", hint="give the model's config.json instead"
            )
        return _of_keys(None, spec, inputs, quiet, options)
    if options["token_map"] is not None:
        raise UsageError(
            f"--token-map has no use for {store.path}, a store of n-grams",
            hint="leave it out; it is for Engram's tables",
        )
    with tempfile.TemporaryDirectory(prefix="ngramstore-trace-") as cache:
        corpus = _corpus(inputs, cache, quiet, options)
        require_tokenizer(str(store.path), store.metadata, corpus.tokenizer_id)
        return _with_bar(record_matches, store, corpus, quiet, options)


def _of_keys(
    config: dict[str, Any] | None,
    spec: dict[str, Any] | None,
    inputs: tuple[Path, ...],
    quiet: bool,
    options: dict[str, Any],
) -> Trace:
    from ngramstore.keys import keys_from_config, keys_from_spec, text_config, token_map_of
    from ngramstore.serve.recorder import record_rows

    token_map = None if options["token_map"] is None else read_token_map(options["token_map"])
    assert config is not None or spec is not None
    is_engram = (
        spec.get("model") == "engram"
        if isinstance(spec, dict)
        else text_config(config or {}).get("engram_layer_ids") is not None
    )
    if token_map is None and options["tokenizer"] is not None and is_engram:
        token_map = token_map_of(read_tokenizer(options["tokenizer"]))
    if config is not None:
        keys = keys_from_config(config, token_map=token_map)
    else:
        assert spec is not None
        keys = keys_from_spec(spec, token_map=token_map)
    with tempfile.TemporaryDirectory(prefix="ngramstore-trace-") as cache:
        return _with_bar(record_rows, keys, _corpus(inputs, cache, quiet, options), quiet, options)


def _with_bar(
    record: Callable[..., Trace], asks: Any, corpus: TokenShards, quiet: bool, options: dict[str, Any]
) -> Trace:
    """What `asks`, a store or keys, is asked for on the corpus."""
    from tqdm import tqdm

    with tqdm(total=corpus.num_tokens, unit="token", unit_scale=True, desc="trace", disable=quiet) as bar:
        return record(asks, corpus.documents(), max_entries=options["max_entries"], on_progress=bar.update)


def _corpus(inputs: tuple[Path, ...], cache: str, quiet: bool, options: dict[str, Any]) -> TokenShards:
    from ngramstore.mine import open_corpus

    return open_corpus(
        list(inputs),
        tokenizer=options["tokenizer"],
        cache=cache,
        eos_id=options["eos_id"],
        dtype=options["dtype"],
        documents=options["documents"],
        suffixes=options["suffixes"] or None,
        errors=options["errors"],
        progress=not quiet,
    )
