"""`ngramstore evaluate`: held-out perplexity of trained models, live or served from a store, and their differences."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import emit, json_option, quiet_option, say
from ngramstore.errors import UsageError
from ngramstore_torch.cli.device import choose_device, device_option
from ngramstore_torch.cli.stores import require_exported_from
from ngramstore_torch.cli.text import Text, open_text, text_options
from ngramstore_torch.data.identities import require_tokenizer

if TYPE_CHECKING:
    import ngramstore
    from ngramstore_torch.data.batches import TaggedTokens
    from ngramstore_torch.model.kinds import LanguageModel
    from ngramstore_torch.training.checkpoint import Checkpoint


@click.command(name="evaluate", short_help="Measure held-out perplexity, live or served from a store.")
@text_options(held_out="Fraction to measure on.  [default: that of the vocabulary]")
@click.option("--vocab", required=True, type=click.Path(path_type=Path), help="The vocabulary file that `mine` wrote.")
@click.option(
    "--checkpoint",
    "runs",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Run folder of `train`; can be repeated.",
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Store exported from the SCONE run among them, to measure as served; can be repeated.",
)
@click.option(
    "--max-windows",
    default=0,
    type=click.IntRange(0),
    help="Measure on this many windows, evenly spread.  [default: all]",
)
@device_option
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16.")
@json_option
@quiet_option
def command(
    inputs: tuple[Path, ...],
    shards: Path | None,
    vocab: Path,
    runs: tuple[Path, ...],
    stores: tuple[Path, ...],
    max_windows: int,
    device: str,
    bf16: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure models on the text that mining and training held out: nats per token, perplexity, and the difference from
    the first.

    \b
    Examples:
      ngramstore evaluate --corpus corpus/ --vocab vocab.ngv --checkpoint plain/ --checkpoint scone/ --store table/
    """
    # Imported here so that --help needs no torch.
    import ngramstore
    from ngramstore_torch.data.corpus import tag_held_out
    from ngramstore_torch.training import checkpoint

    place = choose_device(device)  # what is wrong is said before the text is read, which may take long
    loaded = {str(run): checkpoint.load(run) for run in runs}
    scones = [saved for saved in loaded.values() if saved.model.kind == "scone"]
    if stores and len(scones) != 1:
        raise UsageError(f"--store belongs to one SCONE checkpoint, {len(scones)} are given")
    text = open_text(inputs, shards, vocab, progress=not quiet, **options)
    held = tag_held_out(text.corpus, text.vocabulary, held_out=text.held_out)
    if not len(held):
        raise UsageError("nothing was held out", hint="mine with --held-out 0.05, or give --held-out")
    for name, saved in loaded.items():
        _require_fit(name, saved, text)
    measure = partial(
        _measured,
        held,
        seq_len=_window_length(loaded),
        max_windows=max_windows,
        bf16=bf16,
        device=place,
        progress=not quiet,
    )
    results = [measure(f"{name} ({saved.model.kind})", saved.model) for name, saved in loaded.items()]
    for path in stores:
        with ngramstore.open(path) as store:
            _require_store(path, store, scones[0], text, vocab)
            results.append(measure(f"{path} (served)", scones[0].model, store=store))
    for result in results:
        result["difference"] = result["nats"] - results[0]["nats"]
    if as_json:
        emit({"results": results})
    else:
        _show(results)


def _window_length(loaded: dict[str, Checkpoint]) -> int:
    """Of the windows that all are measured on, in tokens: the shortest that a run was trained with; 0: unknown."""
    lengths = {name: saved.description["train"].get("seq_len", 0) for name, saved in loaded.items()}
    seq_len = min((length for length in lengths.values() if length), default=0)
    if len({*lengths.values()}) > 1:
        say(f"note: windows of {seq_len} tokens for all, the shortest that a run was trained with: {lengths}")
    return seq_len


def _measured(
    held: TaggedTokens,
    name: str,
    model: LanguageModel,
    *,
    store: ngramstore.Store | None = None,
    device: str,
    seq_len: int,
    max_windows: int,
    bf16: bool,
    progress: bool,
) -> dict[str, Any]:
    """One line of the answer; its difference is filled in when the first line is known."""
    from ngramstore_torch.experiment.evaluate import evaluate_model
    from ngramstore_torch.model.costs import cost_of

    found = evaluate_model(
        model.to(device),
        held,
        store=store,
        seq_len=seq_len,
        max_windows=max_windows,
        bf16=bf16,
        progress=progress,
    )
    cost = cost_of(model)
    return {
        "name": name,
        "nats": found.nats,
        "difference": 0.0,
        "perplexity": found.perplexity,
        "tokens": found.num_tokens,
        "parameters": cost.parameters if store is None else cost.decoder_parameters,
        "flops_per_token": cost.flops_per_token,
    }


def _show(results: list[dict[str, Any]]) -> None:
    """The lines for people."""
    width = max(len(result["name"]) for result in results)
    click.echo(f"{'':{width}}    nats  difference  perplexity  parameters  MFLOPs/token")
    for r in results:
        click.echo(
            f"{r['name']:{width}}  {r['nats']:.4f}  {r['difference']:+10.4f}  {r['perplexity']:10.3f}"
            f"  {r['parameters']:10,}  {r['flops_per_token'] / 1e6:12.2f}"
        )


def _require_store(path: Path, store: ngramstore.Store, scone: Checkpoint, text: Text, vocab: Path) -> None:
    """UsageError for a store that this model cannot be served from; a note where it holds other f-grams than the live
    line uses."""
    metadata = store.metadata or {}
    require_tokenizer(str(path), metadata, text.corpus.tokenizer_id)
    identity = text.identity()["vocabulary_id"]
    if metadata.get("vocabulary_id", identity) != identity:
        say(f"note: {path} holds the f-grams of another vocabulary than {vocab}, which the live line uses")
    require_exported_from(store, scone, hint="export again from the checkpoint as it is now")


def _require_fit(name: str, saved: Checkpoint, text: Text) -> None:
    """UsageError where a run cannot be measured on this text; a note where it saw another corpus or other f-grams in training."""
    from ngramstore_torch.model.scone import SconeModel

    data = saved.description["data"]
    require_tokenizer(name, data, text.corpus.tokenizer_id)
    if data.get("corpus_id") == text.corpus.identity and data.get("held_out", 0.0) < text.held_out:
        raise UsageError(
            f"{name} was trained with held_out={data.get('held_out', 0.0)}: it has seen some of what "
            f"held_out={text.held_out} would measure it on",
            hint="give the --held-out that it was trained with, or train again",
        )
    if data.get("corpus_id") not in (text.corpus.identity, "", None):
        say(
            f"note: {name} was trained on another corpus: it may have seen some of the text that it is measured on here"
        )
    assert text.vocabulary is not None
    if not isinstance(saved.model, SconeModel):
        return
    most = saved.model.fgram_model.config.max_n
    if text.vocabulary.max_n > most:
        raise UsageError(
            f"the vocabulary has n-grams of {text.vocabulary.max_n} tokens, {name} takes up to {most}",
            hint="give the vocabulary that it was trained with",
        )
    if data.get("vocabulary_id") not in (text.identity()["vocabulary_id"], "", None):
        say(f"note: {name} was trained with another vocabulary; n-grams that were not trained get untried vectors")
