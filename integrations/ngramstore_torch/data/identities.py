"""Who a vocabulary and a tokenizer are, so that what does not belong together is refused. Needs no torch, nor numpy to
be imported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngramstore_torch.data.batches import VocabularyLike


def vocabulary_identity(vocabulary: VocabularyLike) -> str:
    """SHA-256 over the n-grams in rank order."""
    tokens_MK, lengths_M = vocabulary.ngrams
    digest = hashlib.sha256(f"{tokens_MK.shape}".encode())
    digest.update(tokens_MK.astype("<u4").tobytes())
    digest.update(lengths_M.tobytes())
    return digest.hexdigest()


def require_tokenizer(what: str, made_with: Mapping[str, Any] | None, tokenizer_id: str) -> None:
    """`ngramstore.mine.require_tokenizer`."""
    from ngramstore.mine import require_tokenizer as require

    require(what, made_with, tokenizer_id)
