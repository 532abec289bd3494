"""Input files -> documents as pieces of text, in a fixed order, without holding a large file in memory."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ngramstore.errors import MissingExtra, UsageError
from ngramstore.files import our_errors

_log = logging.getLogger("ngramstore")

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")
RECORD_SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")
TOKEN_SUFFIXES = (".bin", ".npy")
PIECE_BYTES = 1 << 20
"""A longer text is handed on in pieces of about this size, cut at a single newline between two words; where twice this
size has no such newline (one long line, or lines that end in CR LF), before a single space; where four times this size
has neither, before any white space; and at last anywhere."""

_NEWLINE = re.compile(r"(?<=\S)\n(?=\S)")
_NEWLINE_OR_SPACE = re.compile(r"(?<=\S)\n(?=\S)|(?<=\S)(?= \S)")
_WHITE_SPACE = re.compile(r"(?<=\S)(?=\s)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HINT = 'convert the file, or pass errors="replace" (`--errors replace`)'


@dataclass(frozen=True)
class Piece:
    """Some text of one document; `is_last` where the document ends with it."""

    text: str
    is_last: bool


def find_files(inputs: str | Path | Sequence[str | Path], suffixes: Sequence[str] | None = None) -> list[Path]:
    """Files named one by one, and for folders all files below them with one of the suffixes, by path.

    Hidden files and folders are passed over, symbolic links are followed. A file that inputs name twice, or by a link
    of any kind too, is there once, where it came first. Raises UsageError for a path that does not exist, a pipe, one
    that may not be read, and where nothing is found.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    wanted = tuple(suffixes) if suffixes is not None else TEXT_SUFFIXES + RECORD_SUFFIXES
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            files += sorted(file for file in _below(path) if file.name.endswith(wanted))
        elif path.is_file():
            files.append(path)
        elif path.exists():
            raise UsageError(
                f"{str(path)!r} is no regular file, and a corpus is read more than once",
                hint="save what comes through a pipe to a file first",
            )
        else:
            raise UsageError(f"no such file or folder: {str(path)!r}")
    if not files:
        raise UsageError(
            f"nothing to read in {', '.join(repr(str(path)) for path in given) or 'an empty list of inputs'}",
            hint=f"folders are searched for {' '.join(wanted)}; name others with suffixes (`--suffix`)",
        )
    once: dict[tuple[int, int], Path] = {}  # not by name: there are file systems to which "A" and "a" are one
    for path in files:
        with our_errors(path):
            about = path.stat()
        once.setdefault((about.st_dev, about.st_ino), path)
    return list(once.values())


def python_sources(max_bytes: int = 0) -> list[Path]:
    """The Python files of the running interpreter's standard library: a corpus that everybody has.

    max_bytes: stop at about that much, taken evenly from the whole; 0 takes all.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.parts and p.stat().st_size > 200]
    if not max_bytes:
        return files
    total = sum(path.stat().st_size for path in files)
    keep = min(1.0, max_bytes / total)
    return [path for i, path in enumerate(files) if int((i + 1) * keep) > int(i * keep)]


def _below(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, each folder once."""

    def refuse(error: OSError) -> None:
        with our_errors(Path(error.filename)):
            raise error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:  # by a link back to a folder above
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        with our_errors(Path(place)):
            yield from (Path(place, name) for name in names if name[0] != "." and Path(place, name).is_file())


def is_binary(path: Path) -> bool:
    """True for a file of text type whose first 8 KiB hold a NUL byte."""
    with our_errors(path), open(path, "rb") as file:
        return b"\0" in file.read(8192) and not path.name.endswith(RECORD_SUFFIXES)


def read_documents(path: Path, documents: str, errors: str) -> Iterator[Piece]:
    """The documents of one file in order, empty ones left out.

    documents: "file" (a text file is one document) or "line" (each of its lines is); records are always one each.
    errors: "strict" raises UsageError with the file and byte offset of invalid UTF-8, "replace" puts U+FFFD there.
    """
    if path.name.endswith(".parquet"):
        records = _parquet_texts(path, errors)
    elif path.name.endswith((".jsonl", ".jsonl.zst")):
        records = _json_texts(path, errors)
    elif documents == "line":
        records = (line.rstrip("\r\n") for line in _lines(path, errors))
    else:
        yield from _cut(_blocks(path, errors))
        return
    for text in records:
        yield from _cut([text])


def _cut(blocks: Iterable[str]) -> Iterator[Piece]:
    """One document, given in blocks -> pieces. The last piece is known only when no block follows."""
    rest = ""
    for block in blocks:
        rest, at = rest + block, 0
        while end := _end_of_piece(rest, at):
            yield Piece(rest[at:end], False)
            at = end
        rest = rest[at:]
    if rest:
        yield Piece(rest, True)


def _end_of_piece(text: str, at: int) -> int:
    """Where the piece that begins at `at` is cut; 0: nowhere in what is here."""
    size, begin, most = len(text) - at, at + PIECE_BYTES // 2, 4 * PIECE_BYTES
    if size <= PIECE_BYTES:
        return 0
    cut = _NEWLINE.search(text, begin, at + 2 * PIECE_BYTES)
    if cut is None and size >= 2 * PIECE_BYTES:
        cut = _NEWLINE_OR_SPACE.search(text, begin, at + most)
    if cut is None and size >= most:
        cut = _WHITE_SPACE.search(text, begin, at + most)
    if cut is None:
        return at + most if size > most else 0  # a cut at the end would leave nothing to be the last piece
    return cut.end()


def _blocks(path: Path, errors: str) -> Iterator[str]:
    """A text file, decoded block by block."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    with open(path, "rb") as file:
        at = 0
        while True:
            data = file.read(PIECE_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _invalid(path, at - pending + error.start) from None
            if not data:
                return
            at += len(data)


def _lines(path: Path, errors: str) -> Iterator[str]:
    """The lines of a text file, or of a zstd-compressed one."""
    at = 0
    with open(path, "rb") as file:
        for line in _split(_unpacked(path, file)) if path.name.endswith(".zst") else file:
            try:
                yield line.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise _invalid(path, at + error.start) from None
            at += len(line)


def _unpacked(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The content of zstd frames. The library's own reader takes a file that was cut short for a whole one; this does not."""
    import zstandard

    frame = None
    while data := file.read(1 << 18):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise UsageError(f"{path} cannot be decompressed: {error}") from None
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
    if frame is not None:
        raise UsageError(f"{path} cannot be decompressed: it is cut short")


def _split(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _json_texts(path: Path, errors: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, errors), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise UsageError(f'{path}, line {number}: no string under "text"', hint="each line is an object with one")
        text = record["text"]
        if lone := _SURROGATE.search(text):  # JSON can spell half a character, "\\ud800", which no UTF-8 can
            if errors == "strict":
                raise UsageError(
                    f"{path}, line {number}: half a character, \\u{ord(lone[0]):04x}, at {lone.start()}", hint=_HINT
                )
            text = _SURROGATE.sub("\ufffd", text)
        yield text


def _parquet_texts(path: Path, errors: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UsageError(f'{path} has no column "text"; its columns are {file.schema_arrow.names}')
            kind = file.schema_arrow.field("text").type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.null()):
                raise UsageError(f'{path}: the column "text" holds {kind}, not strings')
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                # As bytes: pyarrow does not check that what a file calls a string is UTF-8.
                for data in batch.column(0).cast(kind).cast(pyarrow.large_binary()).to_pylist():
                    try:
                        yield (data or b"").decode("utf-8", errors)
                    except UnicodeDecodeError as error:
                        raise UsageError(
                            f"{path}: invalid UTF-8 in row {row}, at byte {error.start} of it", hint=_HINT
                        ) from None
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:  # a page that does not unpack is an OSError
        raise UsageError(f"{path} is not a Parquet file that can be read: {error}") from None


def _invalid(path: Path, offset: int) -> UsageError:
    return UsageError(f"{path}: invalid UTF-8 at byte {offset}", hint=_HINT)


def drop_binary(files: Sequence[Path]) -> list[Path]:
    """The files that are text; binary ones are named in one warning each. Raises UsageError if nothing is left."""
    kept = []
    for path in files:
        if is_binary(path):
            _log.warning("%s looks binary and is left out", path)
        else:
            kept.append(path)
    if not kept:
        raise UsageError(f"all {len(files)} input files look binary", hint="token files end in .bin or .npy")
    return kept
