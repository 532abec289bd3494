"""docs/api.md, made from the docstrings of what the packages offer: `python -m ngramstore.cli.document_api > docs/api.md`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any

from ngramstore import errors

_HEAD = """# The Python interface

Made from the docstrings by `python -m ngramstore.cli.document_api`; a test says when this page is out of date. `help()` says the same.

Shapes: B lines, T tokens a line, M n-grams or rows of a call, D row width, B u8 bytes of an encoded row, K the longest n-gram.
Integers of any kind are taken as tokens; they must fit 32 bits without a sign. Everything raises errors of one tree, at the end of this page,
each with a hint that says what to do.
"""
_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Build a store",
        (
            "ngramstore.build",
            "ngramstore.Builder.add",
            "ngramstore.Builder.add_encoded",
            "ngramstore.Builder.add_rows",
            "ngramstore.Builder.add_encoded_rows",
            "ngramstore.Builder.finish",
            "ngramstore.Builder.abort",
            "ngramstore.Builder.stats",
            "ngramstore.import_checkpoint",
            "ngramstore.sizes",
        ),
    ),
    ("Open one", ("ngramstore.open", "ngramstore.serve.options.OpenOptions", "ngramstore.Store")),
    (
        "Look up",
        (
            "ngramstore.Store.lookup",
            "ngramstore.Hit",
            "ngramstore.Store.match",
            "ngramstore.Store.get",
            "ngramstore.Store.contains",
            "ngramstore.Store.rows",
            "ngramstore.Store.items",
            "ngramstore.Store.batches",
            "ngramstore.Store.get_encoded",
            "ngramstore.Store.rows_encoded",
            "ngramstore.Store.lookup_tail",
            "ngramstore.Store.lookup_one",
            "ngramstore.Store.match_ids",
        ),
    ),
    (
        "Change",
        (
            "ngramstore.Store.put",
            "ngramstore.Store.put_encoded",
            "ngramstore.Store.delete",
            "ngramstore.Store.flush",
            "ngramstore.Store.refresh",
            "ngramstore.Store.compact",
        ),
    ),
    (
        "Keep it well",
        (
            "ngramstore.Store.stats",
            "ngramstore.Store.warm",
            "ngramstore.Store.trace",
            "ngramstore.Trace",
            "ngramstore.Store.backup",
            "ngramstore.Store.verify",
            "ngramstore.Store.close",
        ),
    ),
    (
        "Row numbers of shipped models",
        (
            "ngramstore.keys.keys_from_config",
            "ngramstore.keys.keys_from_spec",
            "ngramstore.keys.token_map_of",
            "ngramstore.keys.Keys",
        ),
    ),
    (
        "Serve in PyTorch",
        (
            "ngramstore_torch.NGramEmbedding",
            "ngramstore_torch.NGramHistory",
            "ngramstore_torch.RowTableEmbedding",
            "ngramstore_torch.KeysHash",
            "ngramstore_torch.OverEncodingHash",
            "ngramstore_torch.TrainedTableHash",
            "ngramstore_torch.serving_stats.ServingStats",
            "ngramstore_torch.live_embedding",
            "ngramstore_torch.served_embedding",
            "ngramstore_torch.generate",
            "ngramstore_torch.generate_served",
        ),
    ),
    (
        "Serve in Transformers",
        (
            "ngramstore_transformers.attach",
            "ngramstore_transformers.attached",
            "ngramstore_transformers.detach",
            "ngramstore_transformers.save_reference",
            "ngramstore_transformers.load_reference",
        ),
    ),
    (
        "Train and export",
        (
            "ngramstore_torch.DecoderConfig",
            "ngramstore_torch.FgramConfig",
            "ngramstore_torch.SconeModel",
            "ngramstore_torch.PlainModel",
            "ngramstore_torch.HashedModel",
            "ngramstore_torch.tag",
            "ngramstore_torch.TrainConfig",
            "ngramstore_torch.train_model",
            "ngramstore_torch.load_checkpoint",
            "ngramstore_torch.evaluate_model",
            "ngramstore_torch.export_table",
            "ngramstore_torch.input_sensitivity",
        ),
    ),
)
_WIDTH = 118


def document() -> str:
    """The whole page."""
    titles = [title for title, _ in _SECTIONS] + ["Errors"]
    contents = "\n".join(f"- [{title}](#{title.lower().replace(' ', '-')})" for title in titles)
    sections = [f"## {title}\n\n" + "\n".join(map(_entry, names)) for title, names in _SECTIONS]
    return "\n".join([_HEAD, contents, "", *sections, _errors()])


def _entry(name: str) -> str:
    """A heading, and in one block signature, docstring and, of a class, its fields and methods."""
    found = _found(name)
    short = name.removeprefix("ngramstore.").removeprefix("serve.options.")
    parts = [*_signature(short.rpartition(".")[2], found), "", *(inspect.getdoc(found) or "").splitlines()]
    if inspect.isclass(found):
        for line in _members(found, name):
            parts.append(line)
    text = "\n".join(parts).strip()
    return f"### {short}\n\n```text\n{text}\n```\n"


def _found(name: str) -> Any:
    words = name.split(".")
    for cut in range(len(words) - 1, 0, -1):
        try:
            found = import_module(".".join(words[:cut]))
        except ModuleNotFoundError:
            continue
        for word in words[cut:]:
            found = getattr(found, word)
        return found
    raise LookupError(name)


def _signature(name: str, found: Any) -> list[str]:
    """`name(parameters) -> result`, a line, or a line a parameter where that is too long."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return [name]
    words, is_keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword:
            words.append("*")
        is_keyword = is_keyword or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else stars
        has_type, has_default = (value is not parameter.empty for value in (parameter.annotation, parameter.default))
        kind = f": {_type(parameter.annotation)}" if has_type else ""
        default = f" = {parameter.default!r}" if has_default else ""
        words.append(f"{stars}{parameter.name}{kind}{default}")
    result = signature.return_annotation
    tail = "" if result is signature.empty or inspect.isclass(found) else f" -> {_type(result)}"
    line = f"{name}({', '.join(words)}){tail}"
    if len(line) <= _WIDTH:
        return [line]
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > _WIDTH - 6:
            lines.append("")
        lines[-1] += f"{word}, "
    return [f"{name}(", *(f"    {line.rstrip()}" for line in lines), f"){tail}"]


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _members(cls: type, name: str) -> Iterator[str]:
    """Fields that carry a docstring, then public methods and properties that no entry of the page has."""
    for field, text in _fields(cls):
        yield f"\n{field}"
        yield textwrap.indent(text, "    ")
    listed = {entry for _, entries in _SECTIONS for entry in entries}
    for member in _public(cls):
        if {f"{name}.{member}", f"ngramstore.{cls.__name__}.{member}"} & listed:
            continue
        value = inspect.getattr_static(cls, member)
        doc = inspect.cleandoc(_own_doc(value))
        if doc:
            is_property = isinstance(value, (property, cached_property))
            yield "\n" + "\n".join([f".{member}"] if is_property else _signature(f".{member}", getattr(cls, member)))
            yield textwrap.indent(doc, "    ")


def _own_doc(value: Any) -> str:
    """The docstring of this very function: one that is inherited would be torch's."""
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    return function.__doc__ or ""


def _public(cls: type) -> list[str]:
    """Names of methods and properties that the class has of our packages, in the order of their definition."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0].startswith("ngramstore"):
            for member, value in vars(base).items():
                is_ours = callable(value) or isinstance(value, (property, cached_property, classmethod, staticmethod))
                if is_ours and not member.startswith("_") and not inspect.isclass(value):
                    names[member] = None
    return list(names)


def _fields(cls: type) -> Iterator[tuple[str, str]]:
    """(`name: type = default`, docstring) of dataclass fields that have one."""
    if not dataclasses.is_dataclass(cls):
        return
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        is_text = (
            isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
        )
        if isinstance(field, ast.AnnAssign) and is_text:
            yield ast.unparse(field), inspect.cleandoc(text.value.value)  # type: ignore[attr-defined]


def _errors() -> str:
    """The tree, and what each says to do."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip()
    lines = ["## Errors", "", "All in `ngramstore.errors`; `hint` says what to do next, `message` what went wrong.", ""]
    lines += [
        "```text",
        tree,
        "```",
        "",
        "| error | hint, where the place that raises it has no better one |",
        "|---|---|",
    ]
    for name, cls in vars(errors).items():
        hint = getattr(cls, "default_hint", "")
        if inspect.isclass(cls) and hint:
            lines.append(f"| `{name}` | {hint} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
