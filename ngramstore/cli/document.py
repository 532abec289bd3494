"""docs/cli.md, made from the help of the commands: `python -m ngramstore.cli.document > docs/cli.md`."""

from __future__ import annotations

import copy

import click

from ngramstore.cli.main import GROUPS, cli

_HEAD = """# The command line

Made from the commands' own `--help` by `python -m ngramstore.cli.document`; a test fails when this page is out of date.

Results go to stdout, messages and progress bars to stderr. `--json` prints one JSON object. Exit status: 0 success, 1 a check found
faults or something was lost, 2 wrong use or an error that the message explains, 3 a bug in ngramstore, 130 stopped by Ctrl-C (`train`: or
SIGTERM), 141 nobody reads stdout any more, as behind `| head`. `ngramstore --verbose COMMAND` shows the traceback of an error.

`eval "$(_NGRAMSTORE_COMPLETE=bash_source ngramstore)"` in `~/.bashrc` completes commands and options; `zsh_source` and `fish_source` are
for the other shells. Where stderr is no terminal, a bar is written every 30 s.
"""
_WIDTH = 110


def document() -> str:
    """The whole page."""
    commands = {name: _command(name) for group in GROUPS.values() for name in group}
    table = [f"| [`{name}`](#ngramstore-{name}) | {command.short_help} |" for name, command in commands.items()]
    sections = [_section(name, command) for name, command in commands.items()]
    return "\n".join([_HEAD, "| command | what it does |", "|---|---|", *table, "", *sections])


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{name} is in GROUPS and not installed"
    return command


def _section(name: str, command: click.Command) -> str:
    command = copy.copy(command)
    vars(command)["_help_option"] = None  # click keeps the one of the context that asked first, and its names
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH, "terminal_width": _WIDTH}
    parent = click.Context(cli, info_name="ngramstore")
    context = click.Context(command, info_name=name, parent=parent, **settings)  # type: ignore[arg-type]
    return f"## ngramstore {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(document(), end="")
