"""Who a vocabulary and a tokenizer are, so that what does not belong together is refused. Needs no torch."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ngramstore.errors import UsageError

if TYPE_CHECKING:
    from ngramstore_torch.data.batches import VocabularyLike


def vocabulary_identity(vocabulary: VocabularyLike) -> str:
    """SHA-256 over the n-grams in rank order."""
    tokens_MK, lengths_M = vocabulary.ngrams
    digest = hashlib.sha256(f"{tokens_MK.shape}".encode())
    digest.update(tokens_MK.astype("<u4").tobytes())
    digest.update(lengths_M.tobytes())
    return digest.hexdigest()


def require_tokenizer(what: str, made_with: dict[str, Any] | None, tokenizer_id: str) -> None:
    """UsageError where it is known that a checkpoint or a store was made with another tokenizer: ids would mean something else."""
    known = (made_with or {}).get("tokenizer_id")
    if known and tokenizer_id and known != tokenizer_id:
        name = (made_with or {}).get("tokenizer_name") or "another one"
        raise UsageError(
            f"{what} was made with the tokenizer {name!r} ({str(known)[:12]}), this is {tokenizer_id[:12]}",
            hint="use that tokenizer; `train` leaves it in its run folder",
        )
