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

Made from the docstrings by `python -m ngramstore.cli.document_api`; a test fails when this page is out of date. `help()` shows the same.

Shapes: B lines, T tokens per line, M n-grams or rows in a call, D row width, K tokens in the longest n-gram; `row_bytes` is the size of an
encoded row. Tokens are integers of any type that fit in 32 unsigned bits. `Ngrams` are a list of tuples of tokens, an array (M, n), or a
pair of an array (M, K), left-aligned, and lengths (M,). All errors belong to one tree, shown at the end of this page; each has a hint that
says what to do.
"""
_PAGE = {
    "Build a store": """
        ngramstore: build Builder.add Builder.add_encoded Builder.add_rows Builder.add_encoded_rows Builder.finish
        Builder.abort Builder.stats import_checkpoint store.imports.report.ImportReport
        sizes store.sizes.Sizes
    """,
    "Open one": """
        ngramstore: open serve.open_options.OpenOptions Store store.layers.manifest.Spec __version__
    """,
    "Look up": """
        ngramstore: Store.lookup Hit Store.match Store.get Store.contains Store.rows Store.items Store.batches
        Store.get_encoded Store.rows_encoded Store.lookup_tail Store.lookup_one Store.match_ids
    """,
    "Change": """
        ngramstore: Store.put Store.put_encoded Store.delete Store.flush Store.refresh Store.compact
    """,
    "Maintain it": """
        ngramstore: Store.stats Store.warm Store.trace serve.recorder.Recorder Trace Store.backup Store.verify
        Store.close
    """,
    "Mine": """
        ngramstore.mine: open_corpus python_sources inputs.read_documents TokenShards Shard load_tokenizer train_bpe Tokenizer require_tokenizer
        mine_ngrams Vocabulary Matcher report Report reports.Matches held_out_spans num_held_out count_shard
        merge_runs assign_ids
    """,
    "Codecs": """
        ngramstore.codec: CODECS codec_from_spec Codec SecondOrderInt4
    """,
    "Row numbers of shipped models": """
        ngramstore.keys: read_config keys_from_config keys_from_spec text_config token_map_of Keys Table NOTHING EngramKeys
        QwenPleKeys LongcatKeys OverEncodingKeys ByteKeys
    """,
    "Serve in PyTorch": """
        ngramstore_torch: NGramEmbedding NGramHistory RowTableEmbedding StoreModule Ticket RowHash Windows KeysHash
        OverEncodingHash TrainedTableHash ServingStats live_embedding Decoder KVCache generate
        generate_served
    """,
    "Serve in Transformers": """
        ngramstore_transformers: attach attached detach save_reference load_reference
    """,
    "Train and export": """
        ngramstore_torch: DecoderConfig FgramConfig FgramModel SconeModel PlainModel HashedConfig HashedModel
        cost_of Costs fgram_load tag tag_corpus TaggedTokens Batch TrainConfig train_model TrainResult load_checkpoint Checkpoint
        evaluate_model Evaluation export_table Exported RowSource SconeRows input_sensitivity
    """,
}
"""Sections, and what stands in them: a word with a colon is where the names behind it live."""


def _names(text: str) -> Iterator[str]:
    home = ""
    for word in text.split():
        if word.endswith(":"):
            home = word[:-1]
        else:
            yield f"{home}.{word}"


_SECTIONS = tuple((title, tuple(_names(text))) for title, text in _PAGE.items())
_VALUES = {
    "ngramstore.__version__": "The release.",
    "ngramstore.codec.CODECS": "Names that `codec=` takes: {value}.",
    "ngramstore.keys.NOTHING": "{value}. In `history`: no token there, the sequence had not begun.",
}
"""What is neither class nor function has no docstring to take."""
_INNER = ("serve.open_options.", "serve.recorder.", "store.imports.report.", "store.layers.manifest.", "store.sizes.")
"""Homes that nobody imports from: what stands there is given, not made by the user."""
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
    short = name.removeprefix("ngramstore.")
    for inner in _INNER:
        short = short.removeprefix(inner)
    last = short.rpartition(".")[2]
    if name in _VALUES:
        value = ", ".join(found) if isinstance(found, tuple) else found
        parts = [f"{last}: {type(found).__name__}", "", _VALUES[name].format(value=value)]
    else:
        parts = [*_signature(last, found), "", *_doc(found).splitlines()]
    if inspect.isclass(found):
        for line in _members(found, name):
            parts.append(line)
    text = "\n".join(parts).strip()
    return f"### {short}\n\n```text\n{text}\n```\n"


def _doc(found: Any) -> str:
    """The docstring; behind that of its module, where it says to look there."""
    text = inspect.getdoc(found) or ""
    if "see the module" not in text.lower():
        return text
    module = inspect.cleandoc(import_module(found.__module__).__doc__ or "")
    return f"{module}\n\n{text.removeprefix('See the module.').strip()}".strip()


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
    if getattr(found, "_is_protocol", False):
        return [name]
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
    """Fields that carry a docstring, then public methods and properties that no entry of the page has.

    Of a base that has an entry itself, its name.
    """
    for field, text in _fields(cls):
        yield f"\n{field}"
        yield textwrap.indent(text, "    ")
    listed = {entry for _, entries in _SECTIONS for entry in entries}
    shown = {entry.rpartition(".")[2] for entry in listed}
    bases = [base for base in cls.__mro__[1:] if base.__name__ in shown]
    for member in _public(cls):
        owner = next(base for base in cls.__mro__ if member in vars(base))
        if {f"{name}.{member}", f"ngramstore.{cls.__name__}.{member}"} & listed or owner in bases:
            continue
        value = inspect.getattr_static(cls, member)
        doc = inspect.cleandoc(_own_doc(value))
        if doc:
            is_property = isinstance(value, (property, cached_property))
            yield "\n" + "\n".join([f".{member}"] if is_property else _signature(f".{member}", getattr(cls, member)))
            yield textwrap.indent(doc, "    ")
    for base in bases:
        yield f"\nAnd all that {base.__name__} has."


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
