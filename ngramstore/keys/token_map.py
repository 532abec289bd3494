"""Engram's token map: tokens whose text is the same but for case, accents and spaces share one compressed id.

The text is normalized by the `tokenizers` package, whose Unicode tables the model was made with; Python's own `lower` and
`unicodedata` differ in places (the final sigma, newer code points).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngramstore.errors import MissingExtra, UsageError

_KEPT_SPACE = "\ue000"  # stands for a token that is one space while the ends are stripped
_REPLACEMENT = "\ufffd"  # what decoding gives for a part of a UTF-8 character


def token_map_of(tokenizer: Any) -> np.ndarray:
    """Compressed id of each token id: (V,) i64, dense, in order of first use.

    tokenizer: tokenizers.Tokenizer, or a fast tokenizer of transformers (its `backend_tokenizer` is used).
    """
    normalize = _normalizer()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "id_to_token") or not hasattr(backend, "get_vocab_size"):
        raise UsageError(
            f"the tokenizer is a {type(tokenizer).__name__}", hint="give tokenizers.Tokenizer or a fast tokenizer"
        )
    size = backend.get_vocab_size(with_added_tokens=True)
    known: dict[str, int] = {}
    compressed = np.empty(size, np.int64)
    for token in range(size):
        raw = backend.id_to_token(token)
        if raw is None:
            raise UsageError(f"the tokenizer has {size} tokens but no token {token}", hint="its ids have a gap")
        text = backend.decode([token], skip_special_tokens=False)
        key = raw if _REPLACEMENT in text else normalize(text) or text
        compressed[token] = known.setdefault(key, len(known))
    return compressed


def _normalizer() -> Any:
    try:
        from tokenizers import Regex, normalizers
    except ImportError:
        raise MissingExtra("tokenizers", "mine") from None
    steps = [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex("[ \t\r\n]+"), " "),
        normalizers.Replace(Regex("^ $"), _KEPT_SPACE),
        normalizers.Strip(),
        normalizers.Replace(_KEPT_SPACE, " "),
    ]
    return normalizers.Sequence(steps).normalize_str
