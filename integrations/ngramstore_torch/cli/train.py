"""`ngramstore train`: a tokenised corpus and its f-grams in, a run folder with a trained decoder and f-gram model out."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import Count, emit, json_option, quiet_option, say
from ngramstore.errors import UsageError
from ngramstore_torch.cli.device import choose_device, device_option
from ngramstore_torch.cli.shapes import make_model, shapes
from ngramstore_torch.cli.text import Text, open_text, text_options

if TYPE_CHECKING:
    from ngramstore_torch.model.kinds import LanguageModel
    from ngramstore_torch.training.config import TrainConfig
    from ngramstore_torch.training.train import TrainResult


@click.command(name="train", short_help="Train a decoder and its f-gram model (SCONE).")
@text_options(
    held_out="Fraction that the model is not trained on.  [default: that of the vocabulary]",
    cache="VOCAB.cache, as for `mine`; without --vocab OUT.cache",
)
@click.option("--vocab", type=click.Path(path_type=Path), help="The vocabulary file that `mine` wrote.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder for checkpoints.")
@click.option("--plain", is_flag=True, help="Train the decoder without f-grams, to compare with.")
@click.option(
    "--hashed", type=Count(), help="Train a rival without f-grams: this many hashed n-gram rows, summed into the input."
)
@click.option("--dim", default=192, show_default=True, help="Width of the decoder, and of a row of the table.")
@click.option("--layers", default=2, show_default=True, help="Layers of the decoder.")
@click.option("--heads", default=0, help="Attention heads.  [default: dim / 64]")
@click.option(
    "--flops-factor",
    default=1.0,
    help="With --plain: widen the decoder to about this many times the FLOPs per token.  [default: 1]",
)
@click.option(
    "--fgram-layers", default=1, show_default=True, help="Layers of the f-gram model; none remain when serving."
)
@click.option("--fgram-width", default=0, help="Width of the f-gram model.  [default: dim]")
@click.option(
    "--tokens", default="2.5M", show_default=True, type=Count(), help="Training tokens; several epochs if need be."
)
@click.option("--batch", "batch_size", default=16, show_default=True, help="Sequences per forward pass.")
@click.option("--seq-len", default=256, show_default=True, help="Tokens per sequence.")
@click.option("--accumulate", default=1, show_default=True, help="Forward passes per step.")
@click.option(
    "--lr", default=2e-3, show_default=True, help="Peak learning rate: 2e-3 for millions of parameters, less for more."
)
@click.option(
    "--fgram-lr",
    default=0.1,
    show_default=True,
    help="Rate of the f-gram model, as a fraction of --lr; short runs need more.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the first weights and of the order of the training windows."
)
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16; saves time where the hardware has them.")
@click.option("--compile", is_flag=True, help="torch.compile; pays on long runs on a GPU.")
@device_option
@click.option(
    "--checkpoint-every", default=0, help="Steps between checkpoints.  [default: at the end, on Ctrl-C and on SIGTERM]"
)
@click.option("--resume", is_flag=True, help="Resume the run in --out, with the same loss curve; begin where none is.")
@json_option
@quiet_option
def command(
    inputs: tuple[Path, ...], shards: Path | None, vocab: Path | None, as_json: bool, quiet: bool, **o: Any
) -> None:
    """Train a decoder whose input is the vector of the longest f-gram that ends at each token.

    The decoder and the small f-gram model that makes those vectors are trained together. Afterwards `export` computes the
    vectors of all f-grams once; the f-gram model is not needed any more.

    \b
    Examples:
      ngramstore mine corpus/ --out vocab.ngv --tokenizer train:1024 --held-out 0.05
      ngramstore train --corpus corpus/ --vocab vocab.ngv --out scone/
      ngramstore train --corpus corpus/ --vocab vocab.ngv --out plain/ --plain
      ngramstore export --checkpoint scone/ --vocab vocab.ngv --store table/
      ngramstore evaluate --corpus corpus/ --vocab vocab.ngv --checkpoint scone/ --store table/

    Ctrl-C, or SIGTERM as schedulers send it, saves a checkpoint and says how to resume; with --resume from the start, the same
    command line can be queued again. Against kill -9 and power cuts give --checkpoint-every. What mining held out trains no
    model, and is measured at the end; a tokenizer made by train:SIZE has seen all of the text.
    With --plain give --vocab too: tokenizer and held-out text are then the same, so that the two can be compared.
    How much f-grams gain depends on tokenizer, decoder and tokens; docs/scone.md has what was measured.
    """
    # Imported here so that --help needs no torch.
    from ngramstore_torch.data.batches import document_windows
    from ngramstore_torch.data.corpus import tag_corpus
    from ngramstore_torch.experiment.comparison import fgram_load
    from ngramstore_torch.experiment.evaluate import evaluate_model
    from ngramstore_torch.model.costs import cost_of
    from ngramstore_torch.training.config import TrainConfig
    from ngramstore_torch.training.train import train_model

    with_fgrams = not o["plain"] and o["hashed"] is None
    _require_sense(o, with_fgrams, vocab)
    config = TrainConfig(
        device=choose_device(o["device"]),
        **_of(o, "tokens batch_size seq_len accumulate lr fgram_lr seed bf16 compile checkpoint_every"),
    )
    shapes(o)  # what is wrong with the options is said before the text is read, which may take hours
    resume = _can_resume(o, config)
    if o["resume"] and not resume:
        say(f"note: there is no checkpoint in {o['out']}: the training begins")
    text = _text(inputs, shards, vocab, o, with_fgrams, progress=not quiet)
    model = make_model(text, o)
    started = time.perf_counter()
    train, held = tag_corpus(text.corpus, text.vocabulary if with_fgrams else None, held_out=text.held_out)
    tag_seconds = time.perf_counter() - started
    matched = f", an f-gram ends at {(train.rows_P >= 0).mean():.0%} of them" if with_fgrams and len(train) else ""
    say(f"{len(train):,} tokens to train on{matched}; {len(held):,} held out")
    is_measured = len(document_windows(held.starts, config.seq_len)[0]) > 0
    if len(held) and not is_measured:
        say("note: no held-out document has two tokens, so nothing is measured at the end")
    resume = resume or _can_resume(o, config)  # reading the text may have taken hours: asked again
    keep_tokenizer = _tokenizer_keeper(text, o["out"])
    result = train_model(
        model,
        train,
        config,
        out=o["out"],
        resume=resume,
        must_be_new=not resume,
        data_identity=text.identity(),
        progress=not quiet,
        on_step=keep_tokenizer,
    )
    keep_tokenizer(result.step, 0.0)
    if result.interrupted:
        again = shlex.join(["ngramstore", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
        say(f"stopped at step {result.step} of {config.num_steps}; to resume:\n  {again}")
        raise SystemExit(130)
    found = None
    if is_measured:
        found = evaluate_model(model, held, seq_len=config.seq_len, bf16=config.bf16, progress=not quiet)
    measured = None if found is None else asdict(found) | {"perplexity": found.perplexity}
    cost = cost_of(model, **fgram_load(train, config) if with_fgrams else {})
    answer = _answer(o["out"], model, config, result, tag_seconds) | {
        "flops_per_token": cost.flops_per_token,
        "train_flops_per_token": cost.train_flops_per_token,
        "held_out": measured,
    }
    if as_json:
        emit(answer)
    else:
        _show(answer, with_fgrams)


def _can_resume(o: dict[str, Any], config: TrainConfig) -> bool:
    """Whether there is a run to go on with, if that was asked for; UsageError where its settings are others."""
    from ngramstore_torch.training.checkpoint import FILE_NAME
    from ngramstore_torch.training.train import require_resumable

    if not o["resume"] or not (o["out"] / FILE_NAME).exists():
        return False
    require_resumable(o["out"], config)
    return True


def _require_sense(o: dict[str, Any], with_fgrams: bool, vocab: Path | None) -> None:
    """UsageError for options that do not go together."""
    from ngramstore_torch.training.checkpoint import require_none

    if o["plain"] and o["hashed"] is not None:
        raise UsageError("--plain and --hashed are two models", hint="give one of them, and another run for the other")
    if o["flops_factor"] != 1 and not o["plain"]:
        raise UsageError("--flops-factor scales the plain decoder only", hint="add --plain")
    if o["out"].exists() and not o["out"].is_dir():
        raise UsageError(f"{o['out']} is a file", hint="give a folder for the checkpoints")
    if not o["resume"]:
        require_none(o["out"])
    if with_fgrams and vocab is None:
        raise UsageError(
            "a SCONE model needs its f-grams", hint="give --vocab FILE (from `ngramstore mine`), or --plain"
        )


def _text(
    inputs: tuple[Path, ...],
    shards: Path | None,
    vocab: Path | None,
    o: dict[str, Any],
    with_fgrams: bool,
    *,
    progress: bool,
) -> Text:
    """What to train on; without a vocabulary its tokens are kept beside the run."""
    options = _of(o, "tokenizer cache held_out documents suffixes errors dtype eos_id")
    if vocab is None and o["cache"] is None:
        options["cache"] = o["out"].with_name(o["out"].name + ".cache")
    text = open_text(inputs, shards, vocab, progress=progress, **options)
    if with_fgrams and text.vocabulary is not None and len(text.vocabulary) == 0:
        raise UsageError(
            f"{vocab} holds no f-gram", hint="mine more text, or with a smaller --min-count; or train with --plain"
        )
    return text


def _tokenizer_keeper(text: Text, out: Path) -> Callable[[int, float], None]:
    """Saves the tokenizer once, after the first step: before any checkpoint, and not where the settings are refused."""
    unsaved = [] if text.corpus.tokenizer is None else [text.corpus.tokenizer]

    def keep_tokenizer(_step: int, _loss: float) -> None:
        while unsaved:
            unsaved.pop().save(out / "tokenizer.json")

    return keep_tokenizer


def _answer(
    out: Path, model: LanguageModel, config: TrainConfig, result: TrainResult, tag_seconds: float
) -> dict[str, Any]:
    """What the command says of a run, but what was measured on held-out text."""
    last = result.losses[-20:]
    return {
        "checkpoint": str(out),
        "kind": model.kind,
        "step": result.step,
        "tokens": result.step * config.tokens_per_step,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "train_nats": sum(last) / len(last),
        "matching": {
            "tag_seconds": tag_seconds,
            "batch_seconds": result.batch_seconds,
            "train_seconds": result.seconds,
            "share": (tag_seconds + result.batch_seconds) / result.seconds if result.tokens else None,
        },
    }


def _show(answer: dict[str, Any], with_fgrams: bool) -> None:
    """The answer for people."""
    held, matching = answer["held_out"], answer["matching"]
    click.echo(f"checkpoint      {answer['checkpoint']} ({answer['kind']}, step {answer['step']})")
    click.echo(f"training loss   {answer['train_nats']:.4f} nats (mean of the last 20 steps)")
    if held is not None:
        click.echo(
            f"held out        {held['nats']:.4f} nats, perplexity {held['perplexity']:.2f}, {held['num_tokens']:,} tokens"
        )
    if matching["share"] is None:
        click.echo("nothing was left to train")
        return
    click.echo(f"speed           {answer['tokens_per_second']:,.0f} tokens/s")
    click.echo(
        f"cost            {answer['train_flops_per_token'] / 1e6:,.2f} MFLOPs per token of training, "
        f"{answer['flops_per_token'] / 1e6:,.2f} of inference"
    )
    if with_fgrams:
        click.echo(
            f"matching        {matching['share']:.1%} of that time: {matching['tag_seconds']:.1f} s ahead of it for all tags, "
            f"{matching['batch_seconds']:.1f} s beside it for batches"
        )


def _of(options: dict[str, Any], names: str) -> dict[str, Any]:
    return {name: options[name] for name in names.split()}
