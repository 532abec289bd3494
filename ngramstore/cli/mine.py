"""`ngramstore mine`: a corpus in, the vocabulary file of its most frequent n-grams out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import ByteSize, Count, corpus_options, emit, json_option, quiet_option, require_place, say
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    from ngramstore.mine import TokenShards, Vocabulary


@click.command(name="mine", short_help="Find the most frequent n-grams of a corpus.")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The vocabulary file to write.")
@click.option("--max-n", default=5, show_default=True, help="Longest n-gram, in tokens; gains flatten at 4 to 5.")
@click.option(
    "--size", default="100k", show_default=True, type=Count(), help="How many n-grams of all lengths to keep."
)
@click.option(
    "--min-count", default="5", show_default=True, type=Count(), help="Drop n-grams that occur less often than this."
)
@click.option(
    "--tokenizer",
    help="For text: a tokenizer.json, a folder with one or with vocab.json and merges.txt, or train:SIZE to train one on all "
    "of the text, held-out text included.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for tokenised text.  [default: OUT.cache]")
@click.option(
    "--memory",
    default="1GiB",
    show_default=True,
    type=ByteSize(),
    help="Memory for counting, on top of the program itself.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    help="Threads; if the tokens outgrow --memory, processes, at most one per shard.",
)
@click.option("--held-out", default=0.0, show_default=True, help="Fraction of the corpus to leave out and measure on.")
@corpus_options
@click.option("--work", type=click.Path(path_type=Path), help="Folder for intermediate files.  [default: OUT.work]")
@click.option(
    "--resume/--restart", default=True, show_default=True, help="Resume a run that was killed, or start over."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the report into this file (.png, .svg, .pdf).")
@json_option
@quiet_option
def command(out: Path, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Find the most frequent n-grams (2 to K tokens) of a corpus.

    INPUTS are text files and folders, .jsonl, .jsonl.zst and .parquet files (the field "text" of each record is a
    document), or token files: .bin as nanoGPT writes them, and .npy. A file named twice, also by its folder or a link, is
    read once. No n-gram crosses from one document into the next. Counts are exact, whatever the memory: what does not fit
    goes to disk. If a run was killed, run the same command again to resume.

    \b
    Examples:
      ngramstore mine corpus/ --out vocab.ngv --tokenizer train:4096
      ngramstore mine articles.jsonl.zst --out vocab.ngv --tokenizer gpt2/ --size 1M --memory 8GiB
      ngramstore mine train.bin --dtype uint16 --eos-id 50256 --out vocab.ngv --held-out 0.05 --plot vocab.png

    The report says how many n-grams of each length were kept, the count of the last one kept (the cut-off), and the coverage:
    the share of positions at which an n-gram ends. With --held-out it is also measured on text that was not mined.
    The tokenizer is written next to the vocabulary, as OUT.tokenizer.json: `train`, `evaluate` and `export` find it there.
    """
    from ngramstore.mine.reports import report  # here, so that --help needs no numba

    work = _check(out, plot, options)
    corpus = _open(out, options)
    paths = {"vocabulary": str(out)}
    if corpus.tokenizer is not None:
        paths["tokenizer"] = str(out.with_name(out.name + ".tokenizer.json"))
    vocabulary = _mine(corpus, out, work, options, paths.get("tokenizer"))
    found = report(vocabulary, corpus, progress=not options["quiet"])
    if plot is not None:
        found.plot(plot)
        paths["plot"] = str(plot)
    names = {"tokenizer_name": vocabulary.tokenizer_name, "tokenizer_id": vocabulary.tokenizer_id}
    if as_json:
        emit({"paths": paths} | names | found.as_dict())
    else:
        click.echo(found.text())
        for what, path in paths.items():
            click.echo(f"{what:<15}  {path}")


def _check(out: Path, plot: Path | None, options: dict[str, Any]) -> Path:
    """Refuse what cannot work before anything is read. Returns the folder for intermediate files."""
    from ngramstore.mine.miner import check_options
    from ngramstore.mine.reports import check_plot
    from ngramstore.mine.vocab_file import VOCAB_MAGIC
    from ngramstore.mine.work import refuse_foreign

    require_place(out, "vocabulary", VOCAB_MAGIC)
    work = options["work"] or out.with_name(out.name + ".work")
    for name, file in (("--out", out), ("--plot", plot)):
        if file is not None and work.absolute() in file.absolute().parents:
            raise UsageError(f"{name} {str(file)!r} lies in --work, which is deleted", hint="write it somewhere else")
    if plot is not None:
        check_plot(plot)
    refuse_foreign(work)
    check_options(*(options[name] for name in ("max_n", "size", "min_count", "memory", "workers", "held_out")))
    return work


def _open(out: Path, options: dict[str, Any]) -> TokenShards:
    """The corpus as tokens; says how large it is."""
    from ngramstore.mine.corpus import open_corpus
    from ngramstore.mine.shards import num_held_out

    corpus = open_corpus(
        list(options["inputs"]),
        tokenizer=options["tokenizer"],
        cache=options["cache"] or out.with_name(out.name + ".cache"),
        eos_id=options["eos_id"],
        dtype=options["dtype"],
        documents=options["documents"],
        suffixes=options["suffixes"] or None,
        errors=options["errors"],
        progress=not options["quiet"],
    )
    say(f"corpus: {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents, {len(corpus.shards)} shards")
    if options["held_out"]:
        held_out = num_held_out(corpus, options["held_out"])
        say(f"held out: {held_out:,} tokens, {held_out / max(1, corpus.num_tokens):.1%}")
    return corpus


def _mine(
    corpus: TokenShards, out: Path, work: Path, options: dict[str, Any], tokenizer_file: str | None
) -> Vocabulary:
    """The vocabulary, saved to `out`, its tokenizer before it; says where fewer n-grams are frequent than were wanted."""
    from ngramstore.mine.miner import mine_ngrams

    def save_tokenizer() -> None:  # a vocabulary without its tokenizer could not be used, or mined on from
        if corpus.tokenizer is not None and tokenizer_file is not None:
            corpus.tokenizer.save(tokenizer_file)

    vocabulary = mine_ngrams(
        corpus,
        work=work,
        max_n=options["max_n"],
        size=options["size"],
        min_count=options["min_count"],
        memory_bytes=options["memory"],
        workers=options["workers"],
        held_out=options["held_out"],
        restart=not options["resume"],
        save_to=out,
        before_save=save_tokenizer,
        progress=not options["quiet"],
    )
    least = f"at least {options['min_count']} times"
    if not len(vocabulary):
        say(f"note: no n-gram occurs {least}: mine more text, or give a smaller --min-count")
    elif len(vocabulary) < options["size"]:
        say(f"note: only {len(vocabulary):,} n-grams occur {least}; all of them are kept")
    return vocabulary
