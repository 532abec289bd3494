"""What every command shares: sizes and counts as options, n-grams as text, results on stdout, messages on stderr."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ngramstore.errors import UsageError

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_THOUSANDS = re.compile(r"^\d{1,3}(?:,\d{3})+(?!\d)")
_MOST = 2**63


class ByteSize(click.ParamType):
    """A number of bytes with an optional unit: 800000, 512MiB, 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _NUMBER.fullmatch(str(value).strip().lower())
        if found is None or found[2].removesuffix("b") not in _BYTES:
            self.fail(f"{value!r} is not a size; write 512MiB or 2GiB", param, ctx)
        size = float(found[1]) * _BYTES[found[2].removesuffix("b")]
        if size >= _MOST:
            self.fail(f"{value!r:.40} is more than 2**63 bytes", param, ctx)
        return int(size)


class Count(click.ParamType):
    """A count with an optional unit: 20000, 20,000, 100k, 2.5M, 1B. Commas stand between groups of three digits only."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = _THOUSANDS.sub(lambda group: group[0].replace(",", ""), str(value).strip().lower())
        found = _NUMBER.fullmatch(text)
        if found is None or found[2] not in _COUNTS:
            self.fail(f"{value!r} is not a count; write 100k, 2.5M or 1B", param, ctx)
        count = float(found[1]) * _COUNTS[found[2]]
        if count >= _MOST:
            self.fail(f"{value!r:.40} is more than 2**63", param, ctx)
        return round(count)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
trust_option = click.option(
    "--trust-external",
    is_flag=True,
    help="Also read rows from files outside the store that its manifest names (`import` without --pack).",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")


def corpus_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a corpus is read, as `open_corpus` takes it: what a document is in text and in token files, and what files are."""
    options = (
        click.option("--eos-id", type=int, help="Token files: the token that ends a document."),
        click.option("--dtype", type=click.Choice(["uint16", "uint32"]), help="Token files: what a .bin holds."),
        click.option(
            "--documents",
            type=click.Choice(["file", "line"]),
            default="file",
            show_default=True,
            help="Text: what a document is.",
        ),
        click.option(
            "--suffix", "suffixes", multiple=True, help="Folders: read files with this ending; can be repeated."
        ),
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace"]),
            default="strict",
            show_default=True,
            help="Invalid UTF-8: stop, or put U+FFFD in its place.",
        ),
    )
    return in_order(command, options)


def build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that builds a store lets one choose: compression, memory, threads, seed."""
    options = (
        click.option(
            "--compression",
            type=click.Choice(["auto", "none", "zstd"]),
            default="auto",
            show_default=True,
            help="auto: zstd where it saves 5 % of a sample.",
        ),
        click.option(
            "--memory",
            type=ByteSize(),
            help="For sorting; the rest goes to disk.  [default: a quarter of what is free]",
        ),
        click.option(
            "--threads",
            type=click.IntRange(1),
            help="Threads that encode and pack rows.  [default: one per core, up to 4]",
        ),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            help="Seed of the n-gram IDs. Change it only if a build reports a hash collision.",
        ),
    )
    return in_order(command, options)


def in_order(command: Any, options: Sequence[Callable[[Any], Any]]) -> Any:
    """The command with these options, as --help shows them."""
    for option in reversed(options):
        command = option(command)
    return command


def say(message: str) -> None:
    """A message, on stderr, so that stdout holds the result alone."""
    click.echo(message, err=True)


def require_place(out: Path, kind: str, magic: bytes) -> None:
    """UsageError for an --out that no file can be written to, or that holds something else than a `kind` of file, which
    begins with `magic`: it would be replaced, and may be an input. Asked before the work that may take hours."""
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {str(out)!r}: there is no folder {str(out.absolute().parent)!r}")
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder", hint="name a file in it")
    if not out.exists():
        return
    if not out.is_file():
        raise UsageError(f"--out {str(out)!r} is no regular file", hint="name a file")
    with out.open("rb") as file:
        head = file.read(len(magic))
    if head not in (b"", magic):
        raise UsageError(f"--out {str(out)!r} holds something else than a {kind}", hint="choose another name")


def emit(result: Any) -> None:
    """The result as one JSON object on stdout; numpy numbers and arrays as plain ones, null for what JSON has no number for."""
    try:
        text = json.dumps(result, default=_plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(result), default=_plain, allow_nan=False)
    click.echo(text)


def _finite(value: Any) -> Any:
    """None for NaN and infinities, wherever they are."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def as_ngram(text: str) -> tuple[int, ...]:
    """Token ids as people type them, "3,14" or "3 14" -> (3, 14). UsageError shows what is not a number."""
    words = [word for word in re.split(r"[,\s]+", text.strip(" \t\n()[]")) if word]
    try:
        if not all(word.isascii() and word.isdigit() for word in words):
            raise ValueError
        return tuple(map(int, words))
    except ValueError:  # also of more digits than Python reads
        raise UsageError(
            f"{text!r} is not a list of token ids", hint='write integers with commas or spaces between, such as "3,14"'
        ) from None


def as_codec(text: str) -> str | dict[str, Any]:
    """A codec as an option: a name, or a name with options, "int4:group=64" -> what `build` takes."""
    name, _, rest = text.partition(":")
    if not rest:
        return name
    options: dict[str, Any] = {"name": name}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"codec {text!r}", hint='options are written name:key=value, such as "int4:group=64"')
        options[key.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return options


def bytes_text(count: float) -> str:
    """A number of bytes for people: 1.53 GB, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.3g} {unit}"


def row_text(row: Iterable[float], most: int = 6) -> str:
    """The first values of a row and how many more there are."""
    values = [float(value) for value in row]
    more = f", ... {len(values) - most} more" if len(values) > most else ""
    return "[" + ", ".join(f"{value:.4g}" for value in values[:most]) + more + "]"


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Columns aligned: words to the left, numbers to the right."""
    body = [[str(cell) for cell in line] for line in lines]
    columns = []
    for name, *cells in zip(header, *body, strict=True):
        width = max(len(name), *map(len, cells)) if cells else len(name)
        is_words = any(cell[:1].isalpha() or cell.startswith("[") for cell in cells)
        columns.append([cell.ljust(width) if is_words else cell.rjust(width) for cell in (name, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
