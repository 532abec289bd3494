"""Any input -> token shards: text is tokenised once into a cache, token files are read where they lie."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ngramstore.errors import UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.files import fsync_directory, make_directory, publish, rename
from ngramstore.mine.inputs import RECORD_SUFFIXES, TOKEN_SUFFIXES, Piece, drop_binary, find_files, read_documents
from ngramstore.mine.scratch import folder_beside
from ngramstore.mine.shards import MANIFEST_NAME, TokenShards, file_crc, manifest_bytes
from ngramstore.mine.token_files import open_token_files
from ngramstore.mine.tokenizers import Tokenizer, load_tokenizer, train_bpe
from ngramstore.options import choose

SHARD_TOKENS = 1 << 25
"""A shard ends with the first document that brings it here."""
_BATCH_CHARS = 1 << 22
_TRAIN = "train:"


def open_corpus(
    inputs: str | Path | Sequence[str | Path],
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    cache: str | Path | None = None,
    eos_id: int | None = None,
    dtype: str | None = None,
    documents: str = "file",
    suffixes: Sequence[str] | None = None,
    errors: str = "strict",
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = False,
) -> TokenShards:
    """Open a corpus, tokenising it first where it is text and the cache does not have it yet.

    inputs: text files and folders, .jsonl and .jsonl.zst and .parquet (field "text"), or token files .bin and .npy; a file that
    is named twice, also by its folder or a link, is read once.
    tokenizer: one, a path for `load_tokenizer`, or "train:SIZE" for a BPE trained on the corpus; token files need none, but
    carry its identity if it is given. cache: folder for what text turns into (needed for text).
    eos_id, dtype: for token files, the token that ends a document, and "uint16" or "uint32" for .bin.
    documents, errors: see `read_documents`. Raises UsageError, MissingExtra, DiskFull.
    """
    choose("documents", documents, ("file", "line"))
    choose("errors", errors, ("strict", "replace"))
    files = find_files(inputs, suffixes)
    are_tokens = [path.name.endswith(TOKEN_SUFFIXES) for path in files]
    if all(are_tokens):
        if documents != "file":
            raise UsageError(
                f"documents={documents!r} has no use for tokens, {files[0]} holds some",
                hint="say with eos_id (`--eos-id`) which token ends a document",
            )
        if isinstance(tokenizer, str) and tokenizer.startswith(_TRAIN):
            raise UsageError(
                f"tokenizer {tokenizer!r}: there is no text to train it on, {files[0]} holds tokens",
                hint="name the tokenizer that made the tokens, or none",
            )
        given = None if tokenizer is None else _tokenizer(tokenizer, iter(()))
        return open_token_files(files, eos_id=eos_id, dtype=dtype, tokenizer=given)
    if any(are_tokens):
        raise UsageError(f"token files and text in one corpus: {files[are_tokens.index(True)]} among text")
    if eos_id is not None or dtype is not None:
        name = "dtype" if eos_id is None else "eos_id"
        raise UsageError(f"{name} is for token files, {files[0]} is text", hint=f"leave out {name}")
    if cache is None or tokenizer is None:
        missing = "cache" if cache is None else "tokenizer"
        raise UsageError(f"text needs a {missing}", hint=f"pass {missing}=... (`--{missing}`)")
    text = _Text(drop_binary(files), documents, errors)
    with _folder(Path(cache)) as folder:
        found, entry = _tokenised(text, tokenizer, folder, shard_tokens, progress)
    corpus = TokenShards.load(entry)
    corpus.tokenizer = found
    return corpus


def _tokenised(
    text: _Text, tokenizer: Tokenizer | str | Path, cache: Path, shard_tokens: int, progress: bool
) -> tuple[Tokenizer, Path]:
    """The tokenizer asked for, and the cache's entry of this text."""
    identity = text.identity()
    found = _trained(tokenizer, text, cache / f"tokenizer-{identity[:16]}")
    entry = cache / f"tokens-{identity[:16]}-{found.id[:16]}-{shard_tokens}"
    if not (entry / MANIFEST_NAME).exists():
        with tqdm(unit="token", unit_scale=True, desc="tokenise", disable=not progress) as bar:
            _tokenise(text, identity, found, entry, shard_tokens, bar.update)
    return found, entry


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """A folder that is made for what goes into it, and goes again if nothing came."""
    is_new = not path.exists()
    make_directory(path)
    try:
        yield path
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty: a tokenizer that was trained is worth keeping
                path.rmdir()
        raise


@dataclass(frozen=True)
class _Text:
    """Text files and how they are read."""

    files: list[Path]
    documents: str
    errors: str

    def pieces(self) -> Iterator[Piece]:
        for path in self.files:
            yield from read_documents(path, self.documents, self.errors)

    def identity(self) -> str:
        """sha256 of every file's content, in order, and of what decides how it is read."""
        whole = hashlib.sha256(f"{self.documents} {self.errors}".encode())
        for path in self.files:
            with open(path, "rb") as file:
                part = hashlib.sha256()
                while block := file.read(1 << 20):
                    part.update(block)
            kind = next((suffix for suffix in RECORD_SUFFIXES if path.name.endswith(suffix)), "text")
            whole.update(f" {kind} {part.hexdigest()}".encode())
        return whole.hexdigest()


def _trained(tokenizer: Tokenizer | str | Path, text: _Text, stem: Path) -> Tokenizer:
    """The tokenizer asked for; one trained on this corpus before is found in the cache."""
    if not (isinstance(tokenizer, str) and tokenizer.startswith(_TRAIN)):
        return _tokenizer(tokenizer, iter(()))
    size = tokenizer.removeprefix(_TRAIN)
    path = stem.with_name(f"{stem.name}-{size}.json")
    if not path.exists():
        _tokenizer(tokenizer, (piece.text for piece in text.pieces())).save(path)
    loaded = load_tokenizer(path)
    loaded.name = f"bpe-{size}"
    return loaded


def _tokenizer(tokenizer: Tokenizer | str | Path, texts: Iterator[str]) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if isinstance(tokenizer, str) and tokenizer.startswith(_TRAIN):
        size = tokenizer.removeprefix(_TRAIN)
        if not size.isdigit():
            raise UsageError(f"tokenizer {tokenizer!r}: {size!r} is not a number", hint="write train:4096")
        return train_bpe(texts, int(size))
    return load_tokenizer(tokenizer)


def _tokenise(
    text: _Text,
    identity: str,
    tokenizer: Tokenizer,
    entry: Path,
    shard_tokens: int,
    on_progress: Callable[[int], object],
) -> None:
    """Write a cache entry beside its place and rename the finished folder; another process may win the race."""
    with folder_beside(entry) as folder:
        writer = _ShardWriter(folder, "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4", shard_tokens)
        for batch in _batches(text.pieces()):
            for piece, ids_T in zip(batch, tokenizer.encode_batch([p.text for p in batch]), strict=True):
                writer.add(ids_T, piece.is_last)
                on_progress(len(ids_T))
        entries = writer.finish()
        if not entries:
            raise UsageError(f"the corpus is empty: no text in {len(text.files)} files, the first is {text.files[0]}")
        names = {"tokenizer_id": tokenizer.id, "tokenizer_name": tokenizer.name}
        if text.identity() != identity:
            raise UsageError(
                f"the corpus changed while it was tokenised: {len(text.files)} files, the first is {text.files[0]}",
                hint="mine again when nothing writes to it",
            )
        publish(folder / MANIFEST_NAME, manifest_bytes(identity=identity, shards=entries, **names))
        try:
            rename(folder, entry)
        except (OSError, UsageError):
            if not (entry / MANIFEST_NAME).exists():
                raise
    fsync_directory(entry.parent)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    chars = 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= _BATCH_CHARS or len(batch) >= 4096:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


class _ShardWriter:
    """Tokens of documents, piece by piece -> shard files and their manifest entries."""

    def __init__(self, folder: Path, dtype: str, shard_tokens: int) -> None:
        self._folder, self._dtype, self._shard_tokens = folder, dtype, shard_tokens
        self._entries: list[dict[str, Any]] = []
        self._starts: list[int] = [0]
        self._num = 0
        self._file: FileWriter | None = None

    def add(self, ids_T: np.ndarray, is_last: bool) -> None:
        if self._file is None:
            self._name = f"tokens-{len(self._entries):05d}.u{8 * np.dtype(self._dtype).itemsize}"
            self._file = FileWriter(self._folder / self._name)
        self._file.write(ids_T.astype(self._dtype))
        self._num += len(ids_T)
        if is_last and self._num > self._starts[-1]:
            self._starts.append(self._num)
            if self._num >= self._shard_tokens:
                self._close()

    def finish(self) -> list[dict[str, Any]]:
        self._close()
        return self._entries

    def _close(self) -> None:
        if self._file is None:
            return
        self._file.finish()
        self._file = None
        if self._num:
            starts_name = f"starts-{len(self._entries):05d}.u64"
            data = np.array(self._starts, "<u8").tobytes()
            publish(self._folder / starts_name, data)
            entry = {"tokens": self._name, "starts": starts_name, "dtype": self._dtype, "num_tokens": self._num}
            entry |= {"num_documents": len(self._starts) - 1, "starts_crc": zlib.crc32(data)}
            self._entries.append(entry | {"tokens_crc": file_crc(self._folder / self._name)})
        self._starts, self._num = [0], 0
