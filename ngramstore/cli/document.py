"""docs/cli.md, made from the help of the commands: `python -m ngramstore.cli.document > docs/cli.md`."""

from __future__ import annotations

import copy
from importlib import import_module

import click

from ngramstore.cli.main import CORE_COMMANDS, GROUPS, cli

_HEAD = """# The command line

Made from the commands' own `--help` by `python -m ngramstore.cli.document`; a test fails when this page is out of date.

Results go to stdout, messages and progress bars to stderr. `--json` prints one JSON object. Exit status: 0 success, 1 a check found
faults or something was lost, 2 wrong use or an error that the message explains, 3 a bug in ngramstore, 130 stopped by Ctrl-C (`train`: or
SIGTERM). `ngramstore --verbose COMMAND` shows the traceback of an error.
"""
_WIDTH = 110
_INTEGRATIONS = {
    "train": "ngramstore_torch.cli.train",
    "export": "ngramstore_torch.cli.export",
    "evaluate": "ngramstore_torch.cli.evaluate",
    "generate": "ngramstore_torch.cli.generate",
}


def document() -> str:
    """The whole page."""
    names = {name: f"ngramstore.cli.{name}" for name in CORE_COMMANDS} | _INTEGRATIONS
    commands = {name: import_module(names[name]).command for group in GROUPS.values() for name in group}
    table = [f"| [`{name}`](#ngramstore-{name}) | {command.short_help} |" for name, command in commands.items()]
    sections = [_section(name, command) for name, command in commands.items()]
    return "\n".join([_HEAD, "| command | what it does |", "|---|---|", *table, "", *sections])


def _section(name: str, command: click.Command) -> str:
    command = copy.copy(command)
    vars(command)["_help_option"] = None  # click keeps the one of the context that asked first, and its names
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH, "terminal_width": _WIDTH}
    parent = click.Context(cli, info_name="ngramstore")
    context = click.Context(command, info_name=name, parent=parent, **settings)  # type: ignore[arg-type]
    return f"## ngramstore {name}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    print(document(), end="")
