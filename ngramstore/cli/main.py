"""The console script `ngramstore`: finds commands by name, loads only the one asked for, and words its errors.

Commands of the core are listed below; other packages add theirs through the entry-point group `ngramstore.commands`. Help lists
all of them, in groups, without importing any, so that it is there at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

import ngramstore
from ngramstore.errors import MissingExtra, NgramStoreError

_GROUP = "ngramstore.commands"
GROUPS = {
    "A model and its table": ("mine", "train", "export", "evaluate", "generate"),
    "Stores from rows, from checkpoints": ("build", "import", "keys", "sizes"),
    "Inspect a store, bring its rows into memory": ("get", "lookup", "inspect", "stats", "trace", "warm"),
    "Change and maintain a store; try everything": (
        "put",
        "dump",
        "verify",
        "repair",
        "compact",
        "backup",
        "warmup",
        "demo",
    ),
}
"""The commands of this project as help and README list them."""
_REST = "From other packages"
CORE_COMMANDS = {
    "demo": "Show everything working, on text from this machine.",
    "mine": "Find the most frequent n-grams of a corpus.",
    "build": "Pack rows into a new store.",
    "put": "Insert, replace or delete rows of a store.",
    "dump": "Write n-grams and rows as files that build reads.",
    "get": "Rows of n-grams, or of row numbers.",
    "lookup": "The longest stored n-gram at each token.",
    "inspect": "Show a store, a block or a row in readable form.",
    "verify": "Read everything and list every fault.",
    "repair": "Save every good row of a damaged store.",
    "stats": "Counts, sizes and settings of a store.",
    "sizes": "Disk and memory of a store before building it.",
    "compact": "Merge all changes into the packed rows.",
    "backup": "Copy the published state into a new directory.",
    "import": "Make a store of the n-gram tables of a shipped model.",
    "keys": "Row numbers of tokens in the tables of a shipped model.",
    "trace": "Record which rows a text requests, the most frequent first.",
    "warm": "Load the rows of a trace into the page cache.",
    "warmup": "Compile all kernels ahead of use.",
}
_OTHERS = {
    "train": "Train a decoder and its f-gram model (SCONE).",
    "export": "Compute the f-gram table of a trained model into a store.",
    "evaluate": "Measure held-out perplexity, live or served from a store.",
    "generate": "Generate text from a checkpoint served by a store.",
}
_EXTRAS = {"ngramstore_torch": "torch", "ngramstore_transformers": "transformers"}
_EXIT_WRONG_USE = 2
_EXIT_BUG = 3
_EXIT_STOPPED = 130  # as for a program that Ctrl-C ended
_EXIT_PIPE = 141  # what a shell reports for a program that SIGPIPE ended
_LESS_MEMORY = "where the command has --batch or --memory, give less there; or free memory"
_LOG_SECONDS = "30"  # between two states of a bar


class Commands(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        there = {*CORE_COMMANDS, *_entry_points()}
        known = [name for names in GROUPS.values() for name in names if name in there]
        return [*known, *sorted(there - set(known))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in CORE_COMMANDS:
            return import_module(f"ngramstore.cli.{cmd_name}").command
        entry = _entry_points().get(cmd_name)
        if entry is None:
            return None
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            missing = _missing_extra(cmd_name, error)
            if missing is None:
                raise
            raise missing from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], names, 1)
            ctx.fail(f"No such command {args[0]!r}." + "".join(f" Did you mean `ngramstore {name}`?" for name in near))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        width = max(map(len, names))  # of all groups, so that their columns are one
        group_of = {name: group for group, members in GROUPS.items() for name in members}
        for group in (*GROUPS, _REST):
            lines = [(name.ljust(width), _short(name)) for name in names if group_of.get(name, _REST) == group]
            if lines:
                with formatter.section(group):
                    formatter.write_dl(lines)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except OSError as error:  # of --help and --version, which print before anything is invoked
            raise click.exceptions.Exit(_system_error(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        verbose = bool(ctx.params.get("verbose"))
        if sys.stdout is None:
            ctx.exit(_tell("stdout is closed", "results go there: send it to a file, or to /dev/null"))
        if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes; as Python does for stderr
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except NgramStoreError as error:
            code = _tell(error.message, error.hint, verbose)
        except OSError as error:
            code = _system_error(error, verbose)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            code = _EXIT_STOPPED
        except Exception as error:
            missing = _missing_extra(ctx.invoked_subcommand, error)
            if missing is not None:
                code = _tell(missing.message, missing.hint, verbose)
            elif _is_out_of_memory(error):
                code = _tell(f"out of memory: {error}".rstrip(": "), _LESS_MEMORY, verbose)
            else:
                _tell(
                    f"{type(error).__name__}: {error}",
                    "this is a bug in ngramstore: please report what `ngramstore --verbose COMMAND ...` shows",
                    verbose,
                )
                code = _EXIT_BUG
        ctx.exit(code)


def _system_error(error: OSError, verbose: bool = False) -> int:
    """The exit status for it. Said, unless it is a pipe that nobody reads any more: `| head` is no error."""
    try:
        sys.stdout.flush()
    except OSError:  # the exit flushes stdout once more, and would say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _EXIT_PIPE if isinstance(error, BrokenPipeError) else _tell(str(error), "", verbose)


def _is_out_of_memory(error: Exception) -> bool:
    """numpy's error is a MemoryError; PyTorch has one of its own for accelerators, and for the CPU a RuntimeError."""
    is_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_torch)


def _missing_extra(command: str | None, error: Exception) -> MissingExtra | None:
    """What to say where a command of an integration does not find a package that its extra brings."""
    entry = _entry_points().get(command or "")
    if entry is None or not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = entry.value.partition(".")[0]
    if package not in _EXTRAS or error.name.split(".")[0].startswith("ngramstore"):
        return None
    return MissingExtra(error.name, _EXTRAS[package])


def _short(name: str) -> str:
    """What a command does, in a line, without importing it."""
    return CORE_COMMANDS.get(name) or _OTHERS.get(name) or f"From {_entry_points()[name].value.partition('.')[0]}."


def _tell(message: str, hint: str, verbose: bool = False) -> int:
    if verbose and sys.exc_info()[0] is not None:
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)
    return _EXIT_WRONG_USE


def _entry_points() -> dict[str, Any]:
    """Commands of other packages by name."""
    return dict(_each_entry_point())


def _each_entry_point() -> Iterator[tuple[str, Any]]:
    from importlib.metadata import entry_points

    for entry in entry_points(group=_GROUP):
        yield entry.name, entry


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--verbose", is_flag=True, help="Log what happens, and show tracebacks of errors.")
@click.version_option(ngramstore.__version__, prog_name="ngramstore")
def cli(verbose: bool) -> None:
    """New here? `ngramstore demo --quick` shows everything working; `ngramstore demo --store` needs no extras.

    An embedded key-value store for n-gram embeddings: mine, train, build, serve. Every command has a --help with examples.

    Results go to stdout, messages and progress bars to stderr; --json prints one JSON object, null where a number is
    NaN or infinite.
    Exit status: 0 success, 1 a check found faults or something was lost, 2 wrong use or an error that the message
    explains, 3 a bug in ngramstore, 130 stopped by Ctrl-C, 141 nobody reads stdout any more (a pipe was closed).
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


def main() -> None:
    """Run the command line; does not return."""
    if sys.stderr is None:
        _stand_in_for_stderr()
    if not sys.stderr.isatty():  # a log, where bars would write ten times a second; tqdm reads this when it is imported
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, _LOG_SECONDS)
    cli(prog_name="ngramstore")


def _stand_in_for_stderr() -> None:
    """Where stderr is closed: messages and bars need a stream, and no file of ours may be given its number."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.set_inheritable(2, True)  # `dup2` of a number to itself does not make it so
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)


__all__ = ["cli", "main"]
