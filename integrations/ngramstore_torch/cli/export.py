"""`ngramstore export`: a trained SCONE run in, a store with the vector of every f-gram out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import as_codec, build_options, emit, json_option, quiet_option, say
from ngramstore.errors import UsageError
from ngramstore_torch.cli.device import choose_device, device_option
from ngramstore_torch.cli.text import open_text, text_options, written_options
from ngramstore_torch.data.identities import require_tokenizer, vocabulary_identity

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.mine import Vocabulary
    from ngramstore_torch.cli.text import Text
    from ngramstore_torch.export.table import Exported
    from ngramstore_torch.model.scone import SconeModel
    from ngramstore_torch.training.checkpoint import Checkpoint


@click.command(name="export", short_help="Compute the f-gram table of a trained model into a store.")
@click.option("--checkpoint", "run", required=True, type=click.Path(path_type=Path), help="Run folder of `train`.")
@click.option("--vocab", required=True, type=click.Path(path_type=Path), help="The vocabulary it was trained with.")
@click.option("--store", "path", required=True, type=click.Path(path_type=Path), help="Store to write.")
@click.option(
    "--codec",
    default="int8",
    show_default=True,
    help="f32, f16, bf16, int8, int4, e4m3; options as int4:group=64. int8 keeps perplexity within 0.05 %.",
)
@text_options(held_out="Fraction that the sample leaves out.  [default: that of the run]")
@build_options
@click.option("--batch", default=4096, show_default=True, help="F-grams per forward pass.")
@device_option
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16.")
@click.option("--restart", is_flag=True, help="Begin again, throwing away what an export that was killed left.")
@json_option
@quiet_option
def command(
    run: Path,
    vocab: Path,
    path: Path,
    codec: str,
    inputs: tuple[Path, ...],
    shards: Path | None,
    compression: str,
    memory: int | None,
    threads: int | None,
    seed: int,
    batch: int,
    device: str,
    bf16: bool,
    restart: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run the f-gram model over every f-gram of the vocabulary, once, straight into a store.

    The store remembers tokenizer, vocabulary and checkpoint. It cannot be read before it is complete. An export that was
    killed leaves STORE.export: run the same command again to resume behind the rows it holds.

    With --codec int4, give the text that the model was trained on (--corpus or --shards, and how to read them): how much each
    rounding error costs the decoder is measured there, and rows are rounded so that it costs least. What the run held out is
    left out of that. The store has the same size and the same readers. Measured on small
    models, half less perplexity is lost on code, 15 to 27 % less on English.

    \b
    Examples:
      ngramstore export --checkpoint scone/ --vocab vocab.ngv --store table/
      ngramstore export --checkpoint scone/ --vocab vocab.ngv --store small/ --codec int4 --corpus corpus/
      ngramstore export --checkpoint scone/ --vocab vocab.ngv --store large/ --codec f16 --device cuda --bf16
    """
    # Imported here so that --help needs no torch.
    from ngramstore.codec import codec_from_spec
    from ngramstore.mine import Vocabulary
    from ngramstore_torch.export.spool import discard_spool, spool_path
    from ngramstore_torch.export.table import SconeRows, export_table
    from ngramstore_torch.training import checkpoint

    spec = as_codec(codec)
    is_int4 = codec_from_spec(spec, 1).name == "int4"
    has_text = bool(inputs) or shards is not None
    _require_sense(path, codec, has_text and not is_int4, [] if has_text else written_options(options))
    saved = checkpoint.load(run)
    vocabulary = Vocabulary.load(vocab)
    metadata = _metadata(saved, vocabulary)
    source = SconeRows(saved.model, device=choose_device(device), bf16=bf16)
    kept = spool_path(path).with_suffix(".sensitivity")
    if restart:
        discard_spool(path)
        kept.unlink(missing_ok=True)
    sensitivity = None
    if has_text:
        if options["held_out"] is None:
            options["held_out"] = saved.description["data"].get("held_out")
        text = open_text(inputs, shards, vocab, progress=not quiet, **options)
        _require_trained_on(str(run), saved, text)
        sensitivity = _sensitivity(saved, source.model, text, kept, is_needed=spool_path(path).exists())
        metadata["rounding"] = "second-order"
    elif is_int4:
        say("note: plain rounding; with --corpus, the text it was trained on, int4 loses less")
    done = export_table(
        source,
        vocabulary,
        path,
        codec=spec,
        sensitivity=sensitivity,
        batch_size=batch,
        metadata=metadata,
        progress=not quiet,
        restart=restart,
        compression=compression,
        memory_bytes=memory,
        threads=threads,
        seed=seed,
    )
    kept.unlink(missing_ok=True)
    if as_json:
        answer = {"store": str(done.path), "rows": done.num_rows, "dim": done.dim, "codec": codec} | metadata
        answer |= {"resumed_rows": done.num_resumed, "seconds": dict(done.seconds), "store_seconds": done.store_seconds}
        emit(answer)
    else:
        _show(done, codec)


def _require_sense(path: Path, codec: str, is_text_useless: bool, given: list[str]) -> None:
    """UsageError for options that do not go together, where a store is already, and where none can be.

    given: how to read text, without any.
    """
    from ngramstore_torch.export.spool import spool_path
    from ngramstore_torch.export.table import require_parent

    if is_text_useless:
        raise UsageError(f"text is for rounding int4, not for {codec}", hint="leave --corpus and --shards out")
    if given:
        raise UsageError(f"{', '.join(given)} without text", hint="they say how to read --corpus or --shards")
    if (path / "MANIFEST").exists() and not spool_path(path).exists():
        raise UsageError(f"{path} already holds a store", hint="give another --store, or remove it first")
    require_parent(path)


def _require_trained_on(name: str, saved: Checkpoint, text: Text) -> None:
    """UsageError where rows would be rounded for text that the run held out; a note where that may be so."""
    data = saved.description["data"]
    require_tokenizer(name, data, text.corpus.tokenizer_id)
    if data.get("corpus_id") == text.corpus.identity and text.held_out < data.get("held_out", 0.0):
        raise UsageError(
            f"{name} was trained with held_out={data['held_out']}: held_out={text.held_out} would round its rows for "
            "some of the text that it is measured on",
            hint="leave --held-out out: the run's own is the default",
        )
    if data.get("corpus_id") not in (text.corpus.identity, "", None):
        say(
            f"note: {name} was trained on another corpus: rows are rounded for the text given here, which may be text "
            "that the run held out"
        )


def _metadata(saved: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the store says of its origin. UsageError where tokenizers differ, a note where vocabularies do."""
    data = saved.description["data"]
    vocabulary.require_tokenizer(data.get("tokenizer_id", ""))
    identity = vocabulary_identity(vocabulary)
    if data.get("vocabulary_id") not in (identity, "", None):
        say("note: this is not the vocabulary of the training run; n-grams that were not trained get untried vectors")
    return {
        "tokenizer_id": data.get("tokenizer_id", ""),
        "tokenizer_name": data.get("tokenizer_name", ""),
        "vocabulary_id": identity,
        "checkpoint_id": saved.identity,
        "checkpoint_step": saved.step,
    }


def _show(done: Exported, codec: str) -> None:
    """What was written, for people."""
    click.echo(f"{done.path}: {done.num_rows:,} rows of {done.dim} numbers, {codec}")
    if done.num_resumed:
        click.echo(f"{done.num_resumed:,} of them were there from an export that was cut short")
    parts = ", ".join(f"{name} {taken:.1f}" for name, taken in done.seconds.items() if name != "model")
    click.echo(
        f"{done.seconds.get('model', 0.0):.1f} s in the model, {done.store_seconds:.1f} s in the store ({parts})"
    )


def _sensitivity(saved: Checkpoint, model: SconeModel, text: Text, kept: Path, *, is_needed: bool) -> np.ndarray:
    """What the decoder minds, measured on the text it was trained on, or by an export that was cut short.

    is_needed: that export left rows, which nothing but the matrix at `kept` goes on with.
    """
    from ngramstore_torch.data.corpus import tag_training
    from ngramstore_torch.export.sensitivity import input_sensitivity, kept_sensitivity

    settings = saved.description["train"]

    def measure() -> np.ndarray:
        train = tag_training(text.corpus, text.vocabulary, held_out=text.held_out)
        shape = {"seq_len": settings.get("seq_len", 0), "batch_size": settings.get("batch_size", 16)}
        return input_sensitivity(model, train, **shape)

    assert text.vocabulary is not None
    parts = (saved.identity, text.corpus.identity, str(text.held_out), vocabulary_identity(text.vocabulary))
    return kept_sensitivity(kept, " ".join(parts), measure, is_needed=is_needed)
