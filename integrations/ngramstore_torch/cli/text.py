"""What train, export and evaluate share on the command line: a corpus, its vocabulary, and the options that name them."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ngramstore.cli.common import corpus_options, in_order, say
from ngramstore.errors import UsageError
from ngramstore_torch.data.identities import require_tokenizer, vocabulary_identity

if TYPE_CHECKING:
    from ngramstore.mine import TokenShards, Vocabulary


_OF_TEXT = ("cache", "documents", "suffixes", "errors", "dtype", "eos_id")


@dataclass(frozen=True)
class Text:
    """A corpus and the vocabulary mined from it (None for a plain decoder), from the same tokenizer."""

    corpus: TokenShards
    vocabulary: Vocabulary | None
    held_out: float

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer where it is known, else the largest token ID that occurs, plus 1."""
        if self.corpus.tokenizer is not None:
            return self.corpus.tokenizer.vocab_size
        return 1 + max(int(shard.tokens().max(initial=0)) for shard in self.corpus.shards)

    def identity(self) -> dict[str, Any]:
        """JSON values that say what the data are; a resume compares them, an export copies them."""
        return {
            "tokenizer_id": self.corpus.tokenizer_id,
            "tokenizer_name": self.corpus.tokenizer_name,
            "corpus_id": self.corpus.identity,
            "held_out": self.held_out,
            "vocabulary_id": "" if self.vocabulary is None else vocabulary_identity(self.vocabulary),
        }


def open_text(
    inputs: tuple[Path, ...],
    shards: Path | None,
    vocab: Path | None,
    *,
    tokenizer: str | None,
    cache: Path | None,
    held_out: float | None,
    documents: str,
    suffixes: tuple[str, ...],
    errors: str,
    dtype: str | None,
    eos_id: int | None,
    progress: bool,
) -> Text:
    """Open --corpus or --shards and --vocab. Without --tokenizer, the one that `mine` left beside the vocabulary is used.

    held_out None means the fraction that the vocabulary was mined with.
    """
    # Imported here so that --help needs no numba.
    from ngramstore.mine import TokenShards, Vocabulary, open_corpus

    if bool(inputs) == (shards is not None):
        raise UsageError("give the text either as --corpus or as --shards", hint="--corpus takes files and folders")
    if shards is not None and (given := written_options(_OF_TEXT)):
        raise UsageError(f"{', '.join(given)} with --shards", hint="they say how to read text; shards are read already")
    vocabulary = None if vocab is None else Vocabulary.load(vocab)
    is_given = tokenizer is not None
    if tokenizer is None and vocab is not None and vocabulary is not None:
        tokenizer = _beside(vocab, vocabulary.tokenizer_id)
    if shards is not None:
        corpus = _with_tokenizer(TokenShards.load(shards), tokenizer, is_given)
    else:
        if cache is None and vocab is not None:
            cache = vocab.with_name(vocab.name + ".cache")
        corpus = open_corpus(
            list(inputs),
            tokenizer=tokenizer,
            cache=cache,
            documents=documents,
            suffixes=suffixes or None,
            errors=errors,
            dtype=dtype,
            eos_id=eos_id,
            progress=progress,
        )
    if held_out is None:
        held_out = 0.0 if vocabulary is None else vocabulary.held_out
    if vocabulary is not None and held_out:
        _note_what_was_mined(str(vocab), vocabulary, corpus, held_out)
    return Text(corpus, vocabulary, held_out)


def _beside(vocab: Path, tokenizer_id: str) -> str | None:
    """The tokenizer that `mine` left beside a vocabulary, and not one that an earlier vocabulary of that name left there."""
    from ngramstore.mine import load_tokenizer

    path = vocab.with_name(vocab.name + ".tokenizer.json")
    if not path.exists():
        return None
    if not tokenizer_id:
        say(f"note: it is not known what tokenizer {vocab} was mined with; --tokenizer {path} takes the one beside it")
        return None
    if load_tokenizer(path).id != tokenizer_id:
        say(f"note: {path} is not what {vocab} was mined with, and is left alone; --tokenizer names another")
        return None
    return str(path)


def _note_what_was_mined(vocab: str, vocabulary: Vocabulary, corpus: TokenShards, held_out: float) -> None:
    """Say so where text that is held out was counted by mining, or may have been: f-grams look better on it than on new text."""
    if vocabulary.corpus_id not in ("", corpus.identity):
        say(
            f"note: {vocab} was mined from another corpus, or cut into documents in another way (--documents, --eos-id, "
            "--errors): what is held out here is not what mining left out"
        )
    elif vocabulary.corpus_id and held_out > vocabulary.held_out:
        say(
            f"note: {vocab} was mined with held_out={vocabulary.held_out}: some of what held_out={held_out} holds out was "
            "mined, and f-grams look better there than on new text"
        )


def _with_tokenizer(corpus: TokenShards, tokenizer: str | None, is_given: bool) -> TokenShards:
    """Shards that know their tokenizer where it is at hand, so that the run folder gets it. UsageError for another one."""
    from ngramstore.mine import load_tokenizer

    if tokenizer is not None:
        found = load_tokenizer(tokenizer)
        made_with = {"tokenizer_id": corpus.tokenizer_id, "tokenizer_name": corpus.tokenizer_name}
        if is_given:
            require_tokenizer("--shards", made_with, found.id)
        if found.id == corpus.tokenizer_id:
            corpus.tokenizer = found
    return corpus


def written_options(names: Container[str]) -> list[str]:
    """Which of these parameters of the running command were written on its command line, as they are written there."""
    context = click.get_current_context(silent=True)
    if context is None:
        return []
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def text_options(*, held_out: str, cache: str = "VOCAB.cache, as for `mine`") -> Callable[[Any], Any]:
    """The options that `open_text` takes. held_out: what --held-out is for; cache: where tokens are kept if nothing is said."""
    options = [
        click.option(
            "--corpus",
            "inputs",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Text or token files and folders, as `mine` takes them; can be repeated.",
        ),
        click.option(
            "--shards",
            type=click.Path(path_type=Path),
            help="A folder of tokens that `mine` left in VOCAB.cache/, read without tokenising again.",
        ),
        click.option("--tokenizer", help="As for `mine`.  [default: VOCAB.tokenizer.json]"),
        click.option(
            "--cache",
            type=click.Path(path_type=Path),
            help=f"Folder for tokenised text.  [default: {cache}]",
        ),
        click.option(
            "--held-out",
            type=click.FloatRange(0, 1, max_open=True),
            help=held_out,
        ),
        corpus_options,
    ]
    return lambda command: in_order(command, options)
