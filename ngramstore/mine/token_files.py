"""Token files made elsewhere, `.bin` (bare integers) and `.npy`: read where they lie, cut into documents at a separator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.mine.shards import Shard, TokenShards
from ngramstore.npy import map_npy

if TYPE_CHECKING:
    from ngramstore.mine.tokenizers import Tokenizer

_BIN_DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_BLOCK_TOKENS = 1 << 20


def open_token_files(
    files: Sequence[Path], *, eos_id: int | None, dtype: str | None, tokenizer: Tokenizer | None
) -> TokenShards:
    """One shard a file. eos_id ends documents and is their last token; without it a file is one document.

    Every file is read once, to find documents and to know its identity.
    Raises UsageError for a .bin without a dtype or of a wrong size, for an .npy that is not a vector of u16 or u32, for a
    separator that never occurs, for token 2**32 - 1 or one that the tokenizer does not have, and where there is no token at all;
    FormatError for an .npy that cannot be read.
    """
    whole = hashlib.sha256(f"tokens eos={eos_id}".encode())
    shards, is_separated = [], eos_id is None
    for path in map(Path.absolute, files):
        kind, header_bytes, num = _npy_header(path) if path.suffix == ".npy" else _bin_header(path, dtype)
        bare = Shard(path, kind, num, 1, header_bytes, starts_array=np.array([0, num], np.uint64))
        content, ends = hashlib.sha256(kind.encode()), []
        for begin in range(0, num, _BLOCK_TOKENS):
            tokens_T = bare.read(begin, min(begin + _BLOCK_TOKENS, num))
            content.update(tokens_T.data)
            largest = int(tokens_T.max())
            if largest == 0xFFFFFFFF:
                raise UsageError(f"{path}: token id 2**32 - 1 stands for no token and cannot be used")
            if tokenizer is not None and largest >= tokenizer.vocab_size:
                raise UsageError(
                    f"{path}: token id {largest}, the tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens",
                    hint="name the tokenizer that made these tokens; for a .bin, check the dtype too",
                )
            if eos_id is not None:
                ends.append(np.flatnonzero(tokens_T == eos_id) + (begin + 1))
        whole.update(content.digest())
        if num:
            starts_D = np.unique(np.concatenate([[0], *ends, [num]])).astype(np.uint64)
            shards.append(Shard(path, kind, num, len(starts_D) - 1, header_bytes, starts_array=starts_D))
            is_separated = is_separated or any(map(len, ends))
    if not shards:
        raise UsageError(f"the corpus is empty: no token in {len(files)} files, the first is {files[0]}")
    if not is_separated:
        raise UsageError(f"the separator {eos_id} never occurs in the corpus", hint="check eos_id, or leave it out")
    names = ("", "") if tokenizer is None else (tokenizer.id, tokenizer.name)
    return TokenShards(shards, whole.hexdigest(), *names, tokenizer)


def _bin_header(path: Path, dtype: str | None) -> tuple[str, int, int]:
    if dtype not in _BIN_DTYPES:
        raise UsageError(
            f"{path} has no header: its dtype must be given, got {dtype!r}",
            hint='dtype="uint16" or "uint32" (`--dtype`); nanoGPT writes uint16',
        )
    kind = _BIN_DTYPES[dtype]
    size = path.stat().st_size
    if size % np.dtype(kind).itemsize:
        raise UsageError(f"{path}: {size} bytes are not a whole number of {dtype} tokens")
    return kind, 0, size // np.dtype(kind).itemsize


def _npy_header(path: Path) -> tuple[str, int, int]:
    array = map_npy(path)
    if not isinstance(array, np.memmap) or array.ndim != 1 or array.dtype.str not in ("<u2", "<u4"):
        is_other_type = array.ndim == 1 and array.dtype.kind in "iu"
        raise UsageError(
            f"{path}: {array.dtype} of shape {array.shape}, wanted a vector of uint16 or uint32",
            hint="save `ids.astype(np.uint32)`" if is_other_type else "save one vector of token ids",
        )
    return array.dtype.str, int(array.offset), len(array)
