"""Tokenizers: text -> token ids, with an identity that every artefact made from the tokens carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngramstore.errors import MissingExtra, UsageError
from ngramstore.files import publish_unlocked

_END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A Hugging Face tokenizer that adds no special tokens. Threads: any number."""

    def __init__(self, backend: Any, name: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.name = name
        self.id = _identity(backend.to_str())
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        """The largest token ID, plus 1: some tokenizers leave IDs out."""

    def encode(self, text: str) -> np.ndarray:
        """Text -> (T,) u32."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Texts -> one (T_i,) u32 each. Raises UsageError for half a character (a surrogate)."""
        encode = getattr(self._backend, "encode_batch_fast", self._backend.encode_batch)
        try:
            encoded = encode(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            bad = next((text for text in texts if not _is_unicode(text)), None)
            if bad is None:
                raise
            raise UsageError(f"the text holds bytes that are not UTF-8, or half a character: {bad!r:.200}") from None
        return [np.array(e.ids, np.uint32) for e in encoded]

    def decode(self, tokens: Iterable[int]) -> str:
        """Token ids -> text."""
        return str(self._backend.decode([int(token) for token in tokens], skip_special_tokens=False))

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face tokenizer.json, whole or not at all. Several processes may write one at once: the last
        one stays."""
        publish_unlocked(Path(path), self._backend.to_str().encode())


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: halves of characters (surrogates) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer.json, or a folder with one or with GPT-2's vocab.json and merges.txt.

    Raises UsageError where there is none or it cannot be read, MissingExtra without the package `tokenizers`.
    """
    backend_type = _library().Tokenizer
    given = Path(path)
    file = given / "tokenizer.json" if given.is_dir() else given
    try:
        if file.is_file() and file.name != "vocab.json":
            return Tokenizer(
                backend_type.from_str(file.read_text("utf-8")), given.stem if file == given else given.name
            )
        folder = file.parent
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _gpt2(folder)
    except Exception as error:  # the library raises bare Exception for what it cannot parse
        raise UsageError(f"{given} is not a tokenizer that can be read: {error}") from error
    raise UsageError(
        f"no tokenizer at {str(given)!r}",
        hint="give a tokenizer.json, or a folder with one or with vocab.json and merges.txt",
    )


def train_bpe(texts: Iterable[str], vocab_size: int, name: str = "bpe") -> Tokenizer:
    """Train a byte-level BPE of at most vocab_size tokens; the same texts give the same tokenizer.

    Token 0 is <|endoftext|>, the other first 256 are the bytes. Raises UsageError for a vocab_size below 257.
    """
    if vocab_size < 257:
        raise UsageError(f"vocab_size {vocab_size} is below 257 (256 bytes and {_END_OF_TEXT})")
    library = _library()
    backend = _byte_level(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, f"{name}-{vocab_size}")


def require_tokenizer(what: str, made_with: Mapping[str, Any] | None, tokenizer_id: str) -> None:
    """UsageError where it is known that a checkpoint or a store was made with another tokenizer: ids would mean something else.

    made_with: the facts of a checkpoint's data, or the metadata of a store; one that `build` made has them under "vocabulary".
    """
    facts = dict(made_with or {})
    if not facts.get("tokenizer_id") and isinstance(facts.get("vocabulary"), Mapping):
        facts = dict(facts["vocabulary"])
    known = facts.get("tokenizer_id")
    if known and tokenizer_id and known != tokenizer_id:
        raise UsageError(
            f"{what} was made with the tokenizer {facts.get('tokenizer_name') or 'another one'!r} ({str(known)[:12]}), "
            f"this is {tokenizer_id[:12]}",
            hint="use that tokenizer: token ids mean something else here; `mine` and `train` leave it beside what they write",
        )


def _gpt2(folder: Path) -> Tokenizer:
    library = _library()
    backend = _byte_level(library.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    if backend.token_to_id(_END_OF_TEXT) is not None:
        backend.add_special_tokens([_END_OF_TEXT])
    return Tokenizer(backend, folder.name)


def _byte_level(model: Any) -> Any:
    library = _library()
    backend = library.Tokenizer(model)
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    return backend


def _identity(serialized: str) -> str:
    """sha256 of all that decides which ids a text gets, in one canonical JSON form."""
    whole = json.loads(serialized)
    parts = {key: whole.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    canonical = json.dumps(_plain(parts), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Without what does not change ids: options that are off in one of their several spellings, and offset trimming."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if key != "trim_offsets"}
        return {key: item for key, item in kept.items() if not (item is None or item is False or item == "")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise MissingExtra("tokenizers", "mine") from None
    return tokenizers
