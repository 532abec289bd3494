"""The token ids beside a key-value cache: what its positions were, through reordering, cropping and copying.

A cache that is recorded gets a class in front (in_front.py) whose methods change the record as the cache changes;
`copy.deepcopy` copies the record with it. Positions hold ids and whether they are tokens.

Shapes: B batch, S positions in the cache, T new positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ngramstore.errors import UsageError
from ngramstore_transformers.in_front import is_in_front, put_in_front

_IDS, _MASK = "_ngramstore_ids", "_ngramstore_mask"
_STATES = ("past_key_values", "cache", "cache_params", "state", "mems", "past_buckets_states")
"""What models call the arguments that stand for the positions before."""
_FILL = "fill the cache with this model since attach, from input_ids"


def cache_among(values: Iterable[Any]) -> Cache | None:
    """The key-value cache among a call's arguments or a model's outputs; None: there is none.

    Known by its class: Transformers has named the argument `past_key_values` and `cache`, and takes both for a while.
    """
    return next((value for value in values if isinstance(value, Cache)), None)


def require_recordable(options: Mapping[str, Any]) -> None:
    """UsageError for a state handed in that is no Cache: what came before it is not known, and an n-gram may reach there."""
    for name in _STATES:
        value = options.get(name)
        if value is not None and not isinstance(value, Cache):
            raise UsageError(
                f"{name} is a {type(value).__name__}, no Cache of Transformers: the tokens behind it are not known",
                hint="give the whole sequence to each call, or use generate()",
            )


def length(cache: Any) -> int:
    """Positions that the cache holds. A running state (Mamba's) does not count them: then those on record.

    Raises UsageError for a running state that nobody recorded.
    """
    try:
        return _counted(cache)
    except ValueError:  # no layer of the cache has positions
        if _is_recorded(cache):
            return getattr(cache, _IDS).shape[1]
        if cache.has_previous_state():
            raise UsageError("the cache holds a running state, on record is nothing", hint=_FILL) from None
        return 0


def _counted(cache: Any) -> int:
    """Positions of the layer that holds most: one that never keeps keys, such as MiniMax's first, stays at none.
    ValueError: no layer counts them."""
    layers = (layer for layer in getattr(cache, "layers", ()) if isinstance(layer, CacheLayerMixin))
    return int(cache.get_seq_length()) or max((int(layer.get_seq_length()) for layer in layers), default=0)


def write(cache: Any, ids_BS: Tensor, mask_BS: Tensor | None) -> None:
    """The cache holds, or will hold after this step, exactly these positions. Copied: callers write their next step
    into one buffer."""
    if not _is_recorded(cache):
        put_in_front(cache, _methods)
    setattr(cache, _IDS, ids_BS.clone())
    setattr(cache, _MASK, None if mask_BS is None else mask_BS.clone())


def continued(cache: Any, length: int, new_BT: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ids and mask of the cache's content and T new positions behind it. mask: (B, T), or (B, S + T) or wider, or None.

    Raises UsageError where nobody recorded what the cache holds.
    """
    ids_BS = getattr(cache, _IDS, None) if _is_recorded(cache) else None
    if ids_BS is None or ids_BS.shape != (len(new_BT), length):
        held = "nothing" if ids_BS is None else f"ids of shape {tuple(ids_BS.shape)}"
        raise UsageError(
            f"the cache holds {length} positions of {len(new_BT)} sequences, on record is {held}",
            hint=_FILL,
        )
    ids_BS = ids_BS.to(new_BT.device)
    ids = torch.cat((ids_BS, new_BT), 1)
    if mask is not None and mask.shape[1] >= ids.shape[1]:
        return ids, mask[:, : ids.shape[1]]
    if mask is not None and mask.shape[1] != new_BT.shape[1]:
        raise UsageError(
            f"attention_mask has shape {tuple(mask.shape)}: wanted {tuple(ids.shape)}, or {tuple(new_BT.shape)} for what is new"
        )
    old = getattr(cache, _MASK)
    if old is None and mask is None:
        return ids, None
    old = torch.ones_like(ids_BS) if old is None else old
    new = torch.ones_like(new_BT) if mask is None else mask
    return ids, torch.cat((old.to(new), new), 1)


def _is_recorded(cache: Any) -> bool:
    return is_in_front(cache, _methods)


def _methods(own: Any) -> dict[str, Any]:
    """Of a cache on record: each changes the record as the cache changes."""

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        own.reorder_cache(self, beam_idx)
        _change(self, lambda x: x[beam_idx.to(x.device)])

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        own.batch_select_indices(self, indices)
        _change(self, lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        own.batch_repeat_interleave(self, repeats)
        _change(self, lambda x: x.repeat_interleave(repeats, 0))

    def crop(self: Any, *arguments: Any, **options: Any) -> None:
        own.crop(self, *arguments, **options)
        length = _counted(self)
        _change(self, lambda x: x[:, :length])

    def reset(self: Any) -> None:
        own.reset(self)
        _change(self, lambda x: x[:, :0])

    changing = (reorder_cache, batch_select_indices, batch_repeat_interleave, crop, reset)
    return {method.__name__: method for method in changing}


def _change(cache: Any, change: Any) -> None:
    for name in (_IDS, _MASK):
        value = getattr(cache, name, None)
        if value is not None:
            setattr(cache, name, change(value))
