"""`ngramstore demo`: everything once, on text that is on this machine; with --store the store alone, which needs no extras."""

from __future__ import annotations

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ngramstore.cli.common import emit, json_option, quiet_option, say
from ngramstore.errors import MissingExtra, UsageError


@click.command(name="demo", short_help="Show everything working, on text from this machine.")
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--store", "store_only", is_flag=True, help="The store alone: no model, no extras, about a minute.")
@click.option("--quick", is_flag=True, help="A smaller model, trained for less time.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Keep the results here.  [default: ./ngramstore-demo; with --store: nothing is kept]",
)
@json_option
@quiet_option
def command(
    texts: tuple[Path, ...], store_only: bool, quick: bool, out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Show everything working on TEXTS, by default the sources of Python's standard library.

    Mines n-grams, trains a small SCONE model and its rival, exports the table, serves it and compares; report.json and
    report.png are left in --out. Needs the extras torch and mine. Run the same command again to
    resume a demo that was stopped.

    With --store: builds a store from the n-grams of the text with made-up rows, looks all of the text up, checks every row,
    changes it, compacts it and verifies it. Exit status 1 if anything was wrong. A build that was stopped begins again; a
    store that is there is left alone, and refused.

    \b
    Examples:
      ngramstore demo --store
      ngramstore demo --quick --out /tmp/demo
    """
    if store_only and quick:
        raise UsageError("--quick is for the whole demo, not for --store", hint="leave one of them out")
    tell = say if as_json else click.echo
    if not store_only:
        result = _full(out or Path("ngramstore-demo"), texts, quick, not quiet, tell)
        if as_json:
            emit(result)
        return
    from ngramstore.cli.demo_store import run

    if out is None:
        with tempfile.TemporaryDirectory(prefix="ngramstore-demo-") as folder:
            result = run(Path(folder), texts, tell)
    else:
        out.mkdir(parents=True, exist_ok=True)
        result = run(out, texts, tell)
        tell(f"the store is {out / 'store'}")
    if as_json:
        emit(result)
    is_right = (
        not result["verify"]["faults"]
        and result["get"]["found"] == result["get"]["asked"]
        and result["get"]["largest_error_in_bounds"] <= 1
        and result["change"]["reader_sees_it_after_refresh"]
    )
    click.get_current_context().exit(0 if is_right else 1)


def _full(out: Path, texts: tuple[Path, ...], quick: bool, progress: bool, tell: Any) -> dict[str, Any]:
    try:
        run = import_module("ngramstore_torch.experiment.demo").run  # an integration: the core does not know its types
    except ModuleNotFoundError as error:
        if error.name == "ngramstore_torch":
            raise UsageError(
                "the full demo is not part of this installation", hint="`ngramstore demo --store` shows the store alone"
            ) from error
        raise MissingExtra(error.name or "torch", "torch,mine") from error
    return run(out, texts=texts, quick=quick, progress=progress, say=tell)
